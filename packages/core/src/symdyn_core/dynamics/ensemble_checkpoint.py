"""The state of an ensemble on disk: numbers in an npz without pickle, and beside it what they belong to.

The side-car ``checkpoint.json`` names the file with the numbers, its digest, and the identity of the run:
everything that decides what the numbers are. It is renamed into place last, so that at every moment it
names a file that is whole.
"""

import hashlib
import io
import json
import os
import platform
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from symdyn_core.errors import InputError
from symdyn_core.files import write_atomically

Arrays = Mapping[str, NDArray[Any]]
Identity = Mapping[str, str | int | float | bool | None]

SIDE_CAR = "checkpoint.json"
FORMAT = 1


def digest(*tensors: torch.Tensor) -> str:
    """Return the SHA-256 of dtypes, shapes and numbers.

    >>> digest(torch.zeros(2)) == digest(torch.zeros(2, 1))
    False
    """
    total = hashlib.sha256()
    for tensor in tensors:
        array = tensor.detach().cpu().contiguous()
        total.update(f"{array.dtype} {tuple(array.shape)};".encode())
        # reshape: a number without dimensions has no bytes to view.
        total.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def save_checkpoint(folder: str | os.PathLike[str], identity: Identity, step: int, arrays: Arrays) -> None:
    """Write the state after ``step`` steps; the one written before is removed after that.

    Raises:
        InputError: the folder cannot be written to.
    """
    folder = Path(folder)
    content = io.BytesIO()
    np.savez(content, **dict(arrays), allow_pickle=False)
    name = f"state-{step:012d}.npz"
    write_atomically(folder / name, content.getvalue())
    about = {
        "format": FORMAT,
        "step": step,
        "file": name,
        "sha256": hashlib.sha256(content.getvalue()).hexdigest(),
        "identity": dict(identity),
        "written with": {
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
    write_atomically(folder / SIDE_CAR, json.dumps(about, indent=2) + "\n")
    for old in folder.glob("state-*.npz"):
        if old.name != name:
            old.unlink(missing_ok=True)


def load_checkpoint(
    folder: str | os.PathLike[str], identity_at: Callable[[int], Identity]
) -> tuple[int, dict[str, Any]] | None:
    """Return step and arrays of the state in the folder, None if there is none.

    Args:
        folder: where the state is.
        identity_at: what the identity must be of a state after so many steps.

    Raises:
        InputError: the state is of another run, damaged or of another format.
    """
    folder = Path(folder)
    try:
        about = json.loads((folder / SIDE_CAR).read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the checkpoint {folder / SIDE_CAR}: {error}") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise InputError(f"the checkpoint {folder / SIDE_CAR} must have format {FORMAT}")
    stored, step = about.get("identity", {}), int(about["step"])
    identity = identity_at(step)
    for field in [*identity, *(name for name in stored if name not in identity)]:
        if field not in stored or field not in identity or stored[field] != identity[field]:
            raise InputError(
                f"the checkpoint in {folder} is of another run: {field} must be {identity.get(field)!r}, "
                f"got {stored.get(field)!r}"
            )
    try:
        content = (folder / str(about["file"])).read_bytes()
        if hashlib.sha256(content).hexdigest() != about["sha256"]:
            raise InputError(f"the checkpoint in {folder} is damaged: {about['file']} has changed")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return step, dict(arrays)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"the checkpoint in {folder} is damaged: {error}") from error
