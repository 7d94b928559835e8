"""Decoders from the user's own modules."""

import os
import sys
from importlib import import_module

import sinter

from symdyn_core.errors import InputError, TargetError


def load_decoders(reference: str) -> dict[str, sinter.Decoder]:
    """Return the decoders of a function, as sinter's ``--custom_decoders_module_function`` names it.

    Args:
        reference: ``module:function``; the working folder is looked at first. The function takes nothing and
            returns sinter decoders by name.

    Raises:
        InputError: not of this form.
        TargetError: the module does not import, lacks the function, or the function returns something else.

    >>> "symdyn" in load_decoders("symdyn_qec.sinter:decoders")
    True
    """
    module, colon, name = reference.partition(":")
    if not (module and colon and name):
        raise InputError(f"--custom-decoders must be module:function, got {reference!r}")
    # For good: worker processes inherit the path, and must import the module too.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise TargetError(f"{reference}: {error}") from error
    found = function()
    if not isinstance(found, dict) or not all(isinstance(value, sinter.Decoder) for value in found.values()):
        raise TargetError(f"{reference} must return a dict of sinter decoders by name, got {found!r}")
    return found
