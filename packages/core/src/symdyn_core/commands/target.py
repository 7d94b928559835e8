"""TARGET: a function of the user's that returns a model, a loss and data."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from symdyn_core.errors import InputError, TargetError

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor, nn

_EXPECTED = "(model, loss_fn, inputs, targets)"


@dataclass(frozen=True)
class Target:
    """What a TARGET function returns, checked: the loss of the model on the data is one finite number.

    Args:
        model: maps inputs to one tensor.
        loss_fn: maps (outputs, targets) to one number.
        inputs: shape (n_samples, ...).
        targets: shape (n_samples, ...).
    """

    model: "nn.Module"
    loss_fn: "Callable[[Tensor, Tensor], Tensor]"
    inputs: "Tensor"
    targets: "Tensor"


def load_target(text: str) -> Target:
    """Return what the function named by ``file.py:function`` or ``module:function`` returns.

    While it is imported and called, its folder (for a module: the current one) is on ``sys.path``, and what
    it prints goes to standard error.

    Raises:
        TargetError: it does not import, does not exist, does not run, or returns something else than a model,
            a loss and data that fit together.
    """
    source, colon, name = text.rpartition(":")
    if not (colon and source and name.isidentifier()):
        raise TargetError(f"TARGET must look like file.py:function or module:function, got {text!r}")
    is_file = source.endswith(".py") or "/" in source or "\\" in source
    folder = Path(source).resolve().parent if is_file else Path.cwd()
    with _import_from(folder), redirect_stdout(sys.stderr):
        module = _load_file(Path(source), text) if is_file else _load_module(source, text)
        function = getattr(module, name, None)
        if function is None:
            raise TargetError(f"{text}: {source} has no function {name!r}")
        return _check(_call(function, text), text)


def _load_file(path: Path, text: str) -> "ModuleType":
    if not path.is_file():
        raise TargetError(f"{text}: there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise TargetError(f"{text}: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickle look a class's module up by name. A module of that name that is already there (a
    # file called json.py) must come back afterwards.
    shadowed = sys.modules.get(path.stem)
    sys.modules[path.stem] = module
    try:
        with _one_line(text, "does not import"):
            spec.loader.exec_module(module)
    finally:
        if shadowed is not None:
            sys.modules[path.stem] = shadowed
    return module


def _load_module(name: str, text: str) -> "ModuleType":
    with _one_line(text, "does not import"):
        return importlib.import_module(name)


def _call(function: object, text: str) -> Any:
    if not callable(function):
        raise TargetError(f"{text} must be a function, got {type(function).__name__}")
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError) as error:
        raise TargetError(f"{text} must be callable without arguments: {error}") from error
    with _one_line(text, "fails"):
        return function()


def _check(returned: Any, text: str) -> Target:
    from symdyn_core.params import evaluate_loss

    if not isinstance(returned, tuple | list) or len(returned) != 4:
        what = f"{len(returned)} values" if isinstance(returned, tuple | list) else type(returned).__name__
        raise TargetError(f"{text} must return {_EXPECTED}, got {what}")
    try:
        evaluate_loss(*returned)
    except InputError as error:
        raise TargetError(f"{text}: {error}") from error
    except SystemExit as error:
        raise TargetError(f"{text}: the model or the loss ends the program: SystemExit: {error}") from error
    return Target(*returned)


@contextmanager
def _import_from(folder: Path) -> Iterator[None]:
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before


@contextmanager
def _one_line(text: str, what: str) -> Iterator[None]:
    """Turn whatever the user's code raises into one line; sys.exit() counts, Ctrl-C does not."""
    try:
        yield
    except (Exception, SystemExit) as error:
        reason = " ".join(str(error).split())
        raise TargetError(
            f"{text} {what}: {type(error).__name__}{f': {reason}' if reason else ''}"
        ) from error
