"""A circuit to decode, with what is known about it."""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sinter
import stim

from symdyn_core.errors import InputError
from symdyn_qec.circuits import check_rounds, error_model, memory_circuit, read_circuit
from symdyn_qec.codes import NAMED, Basis

# Of the codes that a name determines: how many cycles a memory experiment has where nobody says.
DISTANCES = {"bb72": 6, "bb90": 10, "bb108": 10, "bb144": 12, "bb288": 18}


@dataclass(frozen=True)
class Experiment:
    """A circuit to decode, with what is known about it.

    Fields:
        name: shown in results.
        circuit: with detectors and observables.
        distance, rounds, p: ``None`` where unknown; ``rounds`` turns rates per shot into rates per round.
    """

    name: str
    circuit: stim.Circuit
    distance: int | None = None
    rounds: int | None = None
    p: float | None = None

    @classmethod
    def generate(
        cls,
        code: str,
        p: float,
        distance: int | None = None,
        rounds: int | None = None,
        basis: Basis = "Z",
    ) -> "Experiment":
        """Return a memory experiment by the name of its code.

        Args:
            code: as for :func:`symdyn_qec.circuits.memory_circuit`.
            p: noise strength in [0, 0.75].
            distance: for the codes that come in several.
            rounds: as many as the distance by default.
            basis: the logical operators that are kept, "Z" or "X".

        >>> Experiment.generate("surface", p=0.01, distance=3).name
        'surface d=3 r=3 p=0.01'
        >>> Experiment.generate("bb72", p=0.003, basis="X").name
        'bb72 X r=6 p=0.003'
        """
        cycles = rounds if rounds is not None else distance if code not in NAMED else DISTANCES[code]
        circuit = memory_circuit(
            code, p=p, rounds=1 if cycles is None else cycles, distance=distance, basis=basis
        )
        parts = [code, *(["X"] if basis == "X" else []), *([f"d={distance}"] if distance is not None else [])]
        known = DISTANCES.get(code, distance)
        return cls(" ".join([*parts, f"r={cycles}", f"p={p:g}"]), circuit, known, cycles, p)

    @classmethod
    def read(cls, path: str | os.PathLike[str], rounds: int | None = None) -> "Experiment":
        """Return the circuit of a ``.stim`` file.

        A name in sinter's style, like ``d=5,r=15,p=0.002.stim``, says distance, rounds and noise; ``rounds``
        overrides it.

        Raises:
            InputError: ``rounds`` below 1, or as :func:`symdyn_qec.circuits.read_circuit`.
        """
        if rounds is not None:
            check_rounds(rounds)
        said = dict(re.findall(r"(?:^|,)(d|r|p)=([^,]*)", Path(path).stem))
        distance, named_rounds, p = (
            _number(said.get(key), kind) for key, kind in (("d", int), ("r", int), ("p", float))
        )
        return cls(str(path), read_circuit(path), distance, rounds if rounds is not None else named_rounds, p)

    def model(self, graphlike: bool = False) -> stim.DetectorErrorModel:
        """Return the detector error model, as :func:`symdyn_qec.circuits.error_model` does."""
        return error_model(self.circuit, self.name, graphlike)

    def task(self, decoder: str, graphlike: bool, **metadata: Any) -> sinter.Task:
        """Return the work of a decoder on this circuit as sinter knows it.

        Args:
            decoder: name.
            graphlike: as for :meth:`model`.
            metadata: more of it; what plots may want is there already.
        """
        known = {"d": self.distance, "r": self.rounds, "p": self.p}
        return sinter.Task(
            circuit=self.circuit,
            decoder=decoder,
            detector_error_model=self.model(graphlike),
            json_metadata={"name": self.name, **metadata}
            | {key: value for key, value in known.items() if value is not None},
        )


def check_experiments(cases: list[Experiment]) -> None:
    """Raise InputError unless there is an experiment, and every one is there once."""
    if not cases:
        raise InputError("nothing to do: expected at least one circuit")
    if len({case.name for case in cases}) < len(cases):
        raise InputError(f"every circuit must be given once, got {', '.join(case.name for case in cases)}")


def _number(text: str | None, kind: type[int] | type[float]) -> Any:
    # A name that only looks like sinter's style says nothing.
    try:
        value = kind(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= (1 if kind is int else 0) else None
