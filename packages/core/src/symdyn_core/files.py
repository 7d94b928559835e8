"""Files that are either whole or absent: write to a temporary neighbour, then rename."""

import os
import tempfile
from pathlib import Path

from symdyn_core.errors import InputError


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> Path:
    """Write ``content`` to ``path``, creating parent folders, so that no reader ever sees half of it.

    Raises:
        InputError: the place cannot be written to.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise InputError(f"cannot write to {path}: {error.strerror or error}") from error
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise InputError(f"cannot write to {path}: {error.strerror or error}") from error
        raise
    return path


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Find out before the work, not after it, whether results have a place; create nothing.

    Raises:
        InputError: neither the folder nor, where it does not exist yet, its nearest ancestor takes files.
    """
    ancestor = Path(folder).absolute()
    while not ancestor.exists() and ancestor != ancestor.parent:
        ancestor = ancestor.parent
    try:
        with tempfile.TemporaryFile(dir=ancestor):
            pass
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}") from error


def _umask() -> int:
    # mkstemp creates private files; the result should have the permissions of any other file of the user.
    mask = os.umask(0)
    os.umask(mask)
    return mask
