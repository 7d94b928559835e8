"""What symdyn raises when the caller can do something about it.

The message always says what was wrong, what was expected and the value seen. The command line prints it as
one line and exits with status 2; everything else is a defect of ours and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class SymdynError(Exception):
    """Base of everything symdyn raises on purpose."""


class InputError(SymdynError, ValueError):
    """A value that cannot be used: out of range, of the wrong type, unknown, unreadable."""


class TargetError(SymdynError):
    """The user's TARGET does not import, does not run, or returns something else than promised."""


class DependencyError(SymdynError, ImportError):
    """An optional dependency is missing; the message names the extra that brings it."""


class Interrupted(SymdynError):
    """The user stopped a command; the message says what is kept and how to go on."""


def unknown(kind: str, name: str, known: Iterable[str], where: str = "") -> str:
    """Return the message for a name that does not exist, with the nearest ones that do.

    >>> unknown("study", "law_of_balence", ["core.law_of_balance", "qec.decoder"])
    "unknown study 'law_of_balence'; did you mean core.law_of_balance?"
    """
    known = list(known)
    full_names = {alias: key for key in known for alias in (key, key.split(".")[-1])}
    matches = difflib.get_close_matches(name, list(full_names), n=3, cutoff=0.6)
    near = list(dict.fromkeys(full_names[match] for match in matches))
    hint = f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(known)}"
    return f"unknown {kind} {name!r}{where}; {hint}"
