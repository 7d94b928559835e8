"""What is left of a run: configuration, samples, judged claims; as text that can be read and diffed.

A record lives in ``<out>/<study id>/<identity>/`` as ``record.json``, ``samples.csv`` and ``figure.svg``.
The identity is the SHA-256 of everything that determines the numbers: study, version, configuration, master
seed. The number of repetitions is not part of it: repetition k of a seed is the same whatever their number,
so asking for more adds to what is there.
"""

import csv
import dataclasses
import hashlib
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from symdyn_core.errors import InputError
from symdyn_core.files import write_atomically
from symdyn_core.random import derive_seed
from symdyn_core.study.claim import ClaimResult, Verdict
from symdyn_core.study.provenance import code_digest, machine, versions
from symdyn_core.study.spec import Study

SCHEMA = 1
UNFINISHED = "UNFINISHED"
COLUMNS = ["repetition", "measurement", "index", "value"]

# A measurement: named scalars or (nested) lists of numbers.
Measurements = Mapping[str, Any]


def repetition_seed(seed: int, study_id: str, repetition: int) -> int:
    """Return the seed of one repetition: a pure function of master seed, study and its number."""
    return derive_seed(seed, study_id, repetition)


@dataclass(frozen=True)
class Record:
    """One configuration of a study at one master seed, with the repetitions done so far.

    ``samples[k]`` holds what ``measure`` returned for repetition ``k``; ``error`` is the reason of the first
    failure, if any; ``seconds`` the time spent measuring, summed over repetitions.
    """

    study: Study
    preset: str
    config: Any
    seed: int
    samples: Mapping[int, Measurements] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None

    @property
    def identity(self) -> str:
        """SHA-256 (hex) of what determines the numbers."""
        text = json.dumps(self.identity_value(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def identity_value(self) -> dict[str, Any]:
        """Return what the identity is made of, so that anyone can see what it means."""
        return {
            "study": self.study.id,
            "version": self.study.version,
            "config": dataclasses.asdict(self.config),
            "seed": self.seed,
        }

    @property
    def repetitions(self) -> list[int]:
        """The repetitions done, in order."""
        return sorted(self.samples)

    def values(self, name: str) -> list[Any]:
        """Return measurement ``name`` of every repetition, in order."""
        return [self.samples[k][name] for k in self.repetitions]

    def array(self, name: str) -> NDArray[np.float64]:
        """Return measurement ``name`` as an array, repetitions along the first axis."""
        return np.asarray(self.values(name), dtype=float)

    @property
    def results(self) -> list[ClaimResult]:
        """The claims, judged on the repetitions done; none if the run failed."""
        if self.error is not None or not self.samples:
            return []
        seeds = [repetition_seed(self.seed, self.study.id, k) for k in self.repetitions]
        return [
            ClaimResult.of(claim, self.config, seeds, self.values(claim.measured))
            for claim in self.study.claims
        ]

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of the claims: ERROR, then REFUTED, INCONCLUSIVE, CONFIRMED."""
        return worst([result.verdict for result in self.results])

    def folder(self, out: Path) -> Path:
        """Return where this record lives."""
        return out / self.study.id / self.identity

    def with_sample(self, repetition: int, measurements: Measurements, seconds: float) -> "Record":
        """Return the record with one repetition added."""
        samples = {**self.samples, repetition: plain(measurements)}
        return dataclasses.replace(self, samples=samples, seconds=self.seconds + seconds)

    def only(self, repetitions: int) -> "Record":
        """Return the record of the first repetitions, whatever else is known."""
        samples = {k: v for k, v in self.samples.items() if k < repetitions}
        return dataclasses.replace(self, samples=samples)

    def summary(self) -> dict[str, Any]:
        """Return the row that ``symdyn run --json`` prints, without the place of the record."""
        return {
            "id": self.study.id,
            "paper": self.study.paper.arxiv,
            "package": self.study.package,
            "preset": self.preset,
            "config": dataclasses.asdict(self.config),
            "seed": self.seed,
            "repetitions": len(self.samples),
            "claims": [finite(dataclasses.asdict(result)) for result in self.results],
            "verdict": self.verdict.value,
            "seconds": round(self.seconds, 3),
            **({"error": self.error} if self.error is not None else {}),
        }

    def save(self, out: Path, *, finished: bool = True) -> None:
        """Write ``samples.csv`` and ``record.json``, each whole or not at all.

        The claims are judged, and the figure is due, when the run is `finished`; until then the verdict reads
        UNFINISHED.

        Raises:
            InputError: the folder cannot be written to.
        """
        folder = self.folder(out)
        if finished:
            state = {**self.summary(), "study": describe(self.study)}
        else:
            state = {"id": self.study.id, "seed": self.seed, "verdict": UNFINISHED, "seconds": self.seconds}
        document = {
            "schema": SCHEMA,
            "identity": self.identity,
            **state,
            "code": code_digest(self.study.module),
            "versions": versions(),
            "machine": machine(),
        }
        write_atomically(folder / "samples.csv", to_csv(self.samples))
        write_atomically(folder / "record.json", json.dumps(document, indent=2, ensure_ascii=False) + "\n")

    def resumed(self, out: Path) -> "Record":
        """Return this record with the repetitions that are already on disk, if the code is still the same.

        Raises:
            InputError: the files are there but cannot be read.
        """
        folder = self.folder(out)
        if not (folder / "record.json").exists():
            return self
        try:
            document = json.loads((folder / "record.json").read_text(encoding="utf-8"))
            if document.get("schema") != SCHEMA or document.get("code") != code_digest(self.study.module):
                return self
            samples = from_csv((folder / "samples.csv").read_text(encoding="utf-8"))
            return dataclasses.replace(self, samples=samples, seconds=float(document["seconds"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"the record in {folder} cannot be read ({error}); delete the folder or pass --force"
            ) from error


def describe(study: Study) -> dict[str, Any]:
    """Return the words of a study, so that a record explains itself without the code that made it."""
    claims = [
        {
            "name": claim.name,
            "formula": claim.formula,
            "because": claim.because,
            "rival": claim.rival.name,
        }
        for claim in study.claims
    ]
    settings = [
        {
            "name": field.name,
            "help": field.metadata.get("help", ""),
            "valid": field.metadata.get("valid"),
            "choices": field.metadata.get("choices"),
        }
        for field in dataclasses.fields(study.config)
    ]
    return {
        "title": study.title,
        "version": study.version,
        "text": study.text,
        "paper": {**dataclasses.asdict(study.paper), "url": study.paper.url, "bibtex": study.paper.bibtex()},
        "claims": claims,
        "settings": settings,
        "presets": {name: dataclasses.asdict(study.configure(name)) for name in study.presets},
        "tools": list(study.tools),
    }


def worst(verdicts: "list[Verdict]") -> Verdict:
    """Return the worst of some verdicts; ERROR if there are none."""
    order = [Verdict.ERROR, Verdict.REFUTED, Verdict.INCONCLUSIVE, Verdict.CONFIRMED]
    return min(verdicts, key=order.index, default=Verdict.ERROR)


def finite(row: dict[str, Any]) -> dict[str, Any]:
    """Replace numbers that JSON cannot hold (infinities, NaN) by None."""
    bad = {key: None for key, v in row.items() if isinstance(v, float) and not math.isfinite(v)}
    return {**row, **bad}


def plain(value: Any) -> Any:
    """Convert a measurement to Python numbers in nested lists.

    Raises:
        TypeError: it holds something that is not a number.
    """
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, bool | np.bool_):
        return int(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):  # NumPy's float64 is one, and prints differently
        return float(value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy arrays and scalars, torch tensors
        return plain(value.tolist())
    raise TypeError(f"a measurement must be a number or nested lists of numbers, got {type(value).__name__}")


def to_csv(samples: Mapping[int, Measurements]) -> str:
    """Write samples as tidy rows: repetition, measurement, index (``3`` or ``3;0``; empty: scalar), value."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for repetition in sorted(samples):
        for name, value in samples[repetition].items():
            for index, number in _flatten(value):
                writer.writerow([repetition, name, ";".join(map(str, index)), repr(number)])
    return stream.getvalue()


def from_csv(text: str) -> dict[int, dict[str, Any]]:
    """Read what :func:`to_csv` wrote, number for number."""
    samples: dict[int, dict[str, Any]] = {}
    reader = csv.DictReader(io.StringIO(text))
    if reader.fieldnames != COLUMNS:
        raise ValueError(f"samples.csv must have the columns {COLUMNS}, got {reader.fieldnames}")
    for row in reader:
        sample = samples.setdefault(int(row["repetition"]), {})
        number = float(row["value"]) if set(row["value"]) & set(".einf") else int(row["value"])
        if not row["index"]:
            sample[row["measurement"]] = number
            continue
        place: Any = sample.setdefault(row["measurement"], [])
        *outer, last = map(int, row["index"].split(";"))
        for position in outer:
            if position == len(place):
                place.append([])
            place = place[position]
        if last != len(place):
            raise ValueError(f"rows of {row['measurement']!r} are out of order at index {row['index']}")
        place.append(number)
    return samples


def _flatten(value: Any, index: tuple[int, ...] = ()) -> "list[tuple[tuple[int, ...], float]]":
    if not isinstance(value, list):
        return [(index, value)]
    return [pair for i, item in enumerate(value) for pair in _flatten(item, (*index, i))]
