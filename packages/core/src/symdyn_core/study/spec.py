"""What a study is: a question, settings, claims, a measurement and a picture."""

import dataclasses
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_type_hints

from symdyn_core.errors import InputError, unknown
from symdyn_core.study.claim import Claim
from symdyn_core.study.paper import Paper, check_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from symdyn_core.study.record import Record

PRESETS = ("quick", "full")


def setting(
    default: Any,
    *,
    valid: tuple[float, float] | None = None,
    choices: Sequence[Any] | None = None,
    verify: Sequence[Any] = (),
    help: str = "",
) -> Any:
    """Declare one field of a study's configuration.

    Args:
        default: an int, float, bool or str.
        valid: closed range in which the study's claims hold; values outside it are refused.
        choices: the only values allowed, where a range makes no sense.
        verify: a few values of the range that ``make verify`` runs besides the default.
        help: one line for ``symdyn show``.
    """
    metadata = {"valid": valid, "choices": choices, "verify": tuple(verify), "help": help}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Study:
    """A reproducible experiment that holds a prediction against an independent measurement.

    Lives as the constant ``STUDY`` of a module in some distribution's ``studies`` package; the module's
    docstring is the text of the gallery: question, set-up, what would refute it.

    Args:
        title: a short noun phrase, a literal string (``symdyn list`` reads it without importing the module).
        paper: the paper and the result that is tested, with literal arguments for the same reason.
        version: raised whenever numbers may change; records of other versions are not reused.
        config: frozen dataclass of settings, each int, float, bool or str, declared by :func:`setting`.
        presets: settings of ``quick`` (about 15 s on one core) and ``full``.
        claims: what is predicted; at least one.
        measure: ``measure(config, seed)`` runs one repetition and returns named numbers or lists of numbers.
            Simulation only: it never uses the formula under test, and depends on nothing but its arguments.
        draw: ``draw(record)`` returns the matplotlib figure.
        tools: qualified names of the public functions that put this theory into the user's hands.
        repetitions: independent repetitions of a run unless asked otherwise.
        time_limit: seconds one repetition may take before it counts as an error.
    """

    title: str
    paper: Paper
    version: int
    config: type[Any]
    presets: Mapping[str, Mapping[str, Any]]
    claims: Sequence[Claim]
    measure: Callable[[Any, int], Mapping[str, Any]]
    draw: Callable[["Record"], "Figure"]
    tools: Sequence[str] = ()
    repetitions: int = 8
    time_limit: float = 300.0

    def __post_init__(self) -> None:
        check_text("title", self.title)
        if not dataclasses.is_dataclass(self.config):
            raise TypeError(f"config must be a dataclass, got {self.config!r}")
        if not self.claims:
            raise ValueError(f"study {self.title!r} claims nothing")
        names = [claim.name for claim in self.claims]
        if len(set(names)) < len(names):
            raise ValueError(f"study {self.title!r} has two claims of one name: {names}")
        if missing := [preset for preset in PRESETS if preset not in self.presets]:
            raise ValueError(f"study {self.title!r} lacks the preset {missing[0]!r}")
        if self.repetitions < 1:
            raise ValueError(f"repetitions must be at least 1, got {self.repetitions}")

    @property
    def module(self) -> str:
        """Name of the module that defines this study."""
        return self.measure.__module__

    @property
    def id(self) -> str:
        """``core.law_of_balance``: the package's short name and the module's."""
        distribution, *_, name = self.module.split(".")
        return f"{distribution.removeprefix('symdyn_')}.{name}"

    @property
    def package(self) -> str:
        """Short name of the distribution: core, finance, qec, neuro, ssl."""
        return self.id.split(".")[0]

    @property
    def text(self) -> str:
        """The module's docstring."""
        return inspect.cleandoc(sys.modules[self.module].__doc__ or "")

    def configure(self, preset: str = "quick", overrides: Mapping[str, Any] | None = None) -> Any:
        """Return the configuration of a preset with some settings replaced, everything validated.

        Args:
            preset: name in :attr:`presets`.
            overrides: values by setting name; strings are converted to the setting's type.

        Raises:
            InputError: unknown preset or setting, wrong type, value out of range.
        """
        if preset not in self.presets:
            raise InputError(f"{self.id} has no preset {preset!r}; expected one of {', '.join(self.presets)}")
        values = {**self.presets[preset], **(overrides or {})}
        types = get_type_hints(self.config)
        fields = {field.name: field for field in dataclasses.fields(self.config)}
        for name, value in values.items():
            if name not in fields:
                raise InputError(unknown("setting", name, fields, where=f" of {self.id}"))
            values[name] = convert(f"{self.id}: {name}", value, types[name])
        config = self.config(**values)
        for name, field in fields.items():
            check_setting(f"{self.id}: {name}", getattr(config, name), field.metadata)
        return config

    def verification(self) -> list[dict[str, Any]]:
        """Return the overrides that ``make verify`` runs: each verify value of each setting by itself."""
        return [
            {field.name: value}
            for field in dataclasses.fields(self.config)
            for value in field.metadata.get("verify", ())
        ]


def convert(what: str, value: Any, kind: type) -> Any:
    """Convert a value, perhaps a string from the command line, to int, float, bool or str.

    >>> convert("runs", "500", int)
    500
    >>> convert("runs", "1e3", int)
    1000
    """
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    try:
        if kind is bool:
            named = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
            return named[str(value).lower()]
        if kind is int:
            if float(value) != int(float(value)):
                raise ValueError(value)
            return (
                int(value)
                if isinstance(value, int) or str(value).lstrip("+-").isdigit()
                else int(float(value))
            )
        return kind(value)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{what} must be {words.get(kind, kind.__name__)}, got {value!r}") from error


def check_setting(what: str, value: Any, metadata: Mapping[str, Any]) -> None:
    """Raise InputError unless the value lies in the declared range or among the choices."""
    valid, choices = metadata.get("valid"), metadata.get("choices")
    if choices is not None and value not in choices:
        raise InputError(f"{what} must be one of {', '.join(map(str, choices))}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{what} must be finite, got {value}")
    if valid is not None and not valid[0] <= value <= valid[1]:
        raise InputError(f"{what} must be in [{valid[0]:g}, {valid[1]:g}], got {value:g}")
