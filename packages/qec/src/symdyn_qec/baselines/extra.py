"""Packages that only some decoders need, and that need not be installed."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from symdyn_core.errors import DependencyError

EXTRA = "symdyn-qec[baselines]"


def require(module: str, decoder: str, install: str = EXTRA) -> None:
    """Raise DependencyError unless a module could be imported.

    Args:
        module: importable name.
        decoder: that needs it, for the message.
        install: what to install where it is missing.

    >>> require("symdyn_nothing", "nothing")
    Traceback (most recent call last):
        ...
    symdyn_core.errors.DependencyError: decoder nothing needs the package symdyn-nothing: pip install ...
    """
    if find_spec(module) is None:
        package = module.replace("_", "-")
        raise DependencyError(f"decoder {decoder} needs the package {package}: pip install '{install}'")


def load(module: str, decoder: str) -> Any:
    """Return a module of the extra ``baselines``.

    Raises:
        DependencyError: it is not installed.
    """
    require(module, decoder)
    return import_module(module)
