"""What is left of a run: configuration, samples, judged claims; as text that can be read and diffed.

A record lives in ``<out>/<study id>/<identity>/`` as ``record.json``, ``samples.csv`` and ``figure.svg``.
The identity is the SHA-256 of everything that determines the numbers: study, version, configuration, master
seed. The number of repetitions is not part of it: repetition k of a seed is the same whatever their number, so
asking for more adds to what is there.
"""

import csv
import dataclasses
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from symdyn_core.errors import InputError
from symdyn_core.files import write_atomically
from symdyn_core.random import derive_seed
from symdyn_core.study.claim import ClaimResult, Verdict
from symdyn_core.study.spec import Study

# A measurement: named scalars or (nested) lists of numbers.
Measurements = Mapping[str, Any]


def repetition_seed(seed: int, study_id: str, repetition: int) -> int:
    """Return the seed of one repetition: a pure function of master seed, study and its number."""
    return derive_seed(seed, study_id, repetition)


@dataclass(frozen=True)
class Record:
    """One configuration of a study at one master seed, with the repetitions done so far.

    ``samples[k]`` holds what ``measure`` returned for repetition ``k``; ``error`` the reason of the first
    failure, if any.
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

    def array(self, name: str) -> "np.typing.NDArray[np.float64]":
        """Return measurement ``name`` as an array, repetitions along the first axis."""
        return np.asarray(self.values(name), dtype=float)

    @property
    def results(self) -> list[ClaimResult]:
        """The claims, judged on the repetitions done."""
        seeds = [repetition_seed(self.seed, self.study.id, k) for k in self.repetitions]
        return [
            claim.evaluate(self.config, seeds, self.values(claim.measured)) for claim in self.study.claims
        ]
