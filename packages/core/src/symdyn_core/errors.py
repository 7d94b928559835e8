"""What symdyn raises when the caller can do something about it.

The message always says what was wrong, what was expected and the value seen. The command line prints it as
one line and exits with status 2; everything else is a defect of ours and keeps its traceback.
"""


class SymdynError(Exception):
    """Base of everything symdyn raises on purpose."""


class InputError(SymdynError, ValueError):
    """A value that cannot be used: out of range, of the wrong type, unknown, unreadable."""


class TargetError(SymdynError):
    """The user's TARGET does not import, does not run, or returns something else than promised."""


class DependencyError(SymdynError, ImportError):
    """An optional dependency is missing; the message names the extra that brings it."""
