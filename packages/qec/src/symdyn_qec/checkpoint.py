"""Trained networks on disk: weights in safetensors, and beside them what they are for, in JSON.

The folder of a checkpoint holds ``model.safetensors`` and ``decoder.json``. The latter tells another program
all that it needs to use the weights: the code, the order of the detectors, the supports of the observables;
and a reader how they came about. A checkpoint is for one circuit at any strength of its noise.

A network that commutes with the translations of a torus has no weight that knows how large the torus is, or
how many cycles there are. The weights of a small code therefore decode larger ones of the same polynomials.
"""

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.torch
import stim
import torch
from torch import nn

from symdyn_core.errors import InputError
from symdyn_core.files import write_atomically
from symdyn_qec import __version__, gf2
from symdyn_qec.calibration import Calibration
from symdyn_qec.circuits import bb_memory
from symdyn_qec.codes import Basis, BivariateBicycleCode, Monomial
from symdyn_qec.gf2 import BitMatrix
from symdyn_qec.networks.sector import SectorNetwork
from symdyn_qec.networks.torus import TorusNetwork
from symdyn_qec.structure import KINDS, Structure

# Of the side-car; a reader of this version refuses all others.
SCHEMA = 2

SIDECAR, WEIGHTS = "decoder.json", "model.safetensors"

Precision = Literal["float32", "bfloat16"]
NETWORKS: dict[str, type[TorusNetwork] | type[SectorNetwork]] = {
    "torus": TorusNetwork,
    "sector": SectorNetwork,
}

PRECISIONS: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class Experiment:
    """One of the memory experiments that a network was trained on.

    Fields:
        structure: of its detector error model.
        observables: supports on the data qubits, bits, shape ``(k, n)``.
    """

    structure: Structure
    observables: BitMatrix


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained network with all that is needed to decode with it.

    Fields:
        network: with its weights.
        code: that it decodes.
        rounds: cycles of the experiments.
        experiments: by basis.
        training: how the weights were found; anything that JSON can hold.
        versions: of the packages that wrote it.
        name: of its folder, or where it came from.
        calibration: how sure an answer is; ``None`` where that has not been found out.

    >>> from symdyn_qec.shipped import shipped
    >>> checkpoint = Checkpoint.load(shipped()["bb72"])
    >>> checkpoint.code.n, checkpoint.rounds, sorted(checkpoint.experiments)
    (72, 6, ['X', 'Z'])
    """

    network: TorusNetwork | SectorNetwork
    code: BivariateBicycleCode
    rounds: int
    experiments: Mapping[Basis, Experiment]
    training: Mapping[str, Any]
    versions: Mapping[str, str]
    name: str = "this checkpoint"
    calibration: Calibration | None = None

    @classmethod
    def of(
        cls,
        network: TorusNetwork | SectorNetwork,
        code: BivariateBicycleCode,
        rounds: int,
        training: Mapping[str, Any],
    ) -> "Checkpoint":
        """Return the checkpoint of a network trained on both memory experiments of a code."""
        versions = {
            "symdyn-qec": __version__,
            "numpy": np.__version__,
            "stim": stim.__version__,
            "torch": str(torch.__version__),
        }
        return cls(network, code, rounds, _memories(code, rounds), training, versions)

    def basis_of(self, dem: stim.DetectorErrorModel | Structure) -> Basis:
        """Return which of the experiments a model belongs to.

        Raises:
            InputError: it belongs to none; the message names the field that does not match.
        """
        found = dem if isinstance(dem, Structure) else Structure.of(dem)
        basis = found.basis
        if basis not in self.experiments:
            raise InputError(f"basis must be {' or '.join(self.experiments)} for {self.name}, got {basis}")
        self.experiments[basis].structure.check(found, f"the {basis} memory of {self.name}")
        return basis

    def check(self, dem: stim.DetectorErrorModel) -> None:
        """Raise InputError unless a model belongs to an experiment, naming the field that differs."""
        self.basis_of(dem)

    def adapted(self, dem: stim.DetectorErrorModel) -> "Checkpoint":
        """Return the checkpoint for a model of any size.

        Args:
            dem: of a memory experiment of this code, or of one with the same polynomials on another torus or
                in another number of cycles.

        Raises:
            InputError: it is of none of them; the message names the field that does not match.
        """
        found = Structure.of(dem)
        checkpoint = self if found.size == (self.code.l, self.code.m, self.rounds) else self._resized(found)
        checkpoint.basis_of(found)
        return checkpoint

    def transferred(self, code: BivariateBicycleCode, rounds: int) -> "Checkpoint":
        """Return the same weights for another torus or another number of cycles, not calibrated.

        How well they do there is for you to measure; training may start from them.

        Args:
            code: with the same polynomials.
            rounds: cycles, at least 1.

        Raises:
            InputError: other polynomials.

        >>> from symdyn_qec.codes import bivariate_bicycle
        >>> from symdyn_qec.shipped import shipped
        >>> larger = Checkpoint.load(shipped()["bb72"]).transferred(bivariate_bicycle("bb108"), rounds=9)
        >>> larger.name, larger.rounds
        ('bb72 on a torus of 9 x 6 cells, 9 cycles', 9)
        """
        if any(
            tuple((i % code.l, j % code.m) for i, j in own) != other
            for own, other in zip((self.code.a, self.code.b), (code.a, code.b), strict=True)
        ):
            raise InputError(f"code must have the polynomials of {self.code!r} for {self.name}, got {code!r}")
        network = NETWORKS[self.kind](code, self.network.width, len(self.network.layers))
        network.load_state_dict(self.network.state_dict())
        origin = {"transferred_from": {"code": repr(self.code), "rounds": self.rounds}}
        return replace(
            self,
            network=network.eval(),
            code=code,
            rounds=rounds,
            experiments=_memories(code, rounds),
            training={**self.training, **origin},
            name=f"{self.name} on a torus of {code.l} x {code.m} cells, {rounds} cycles",
            calibration=None,
        )

    def _resized(self, found: Structure) -> "Checkpoint":
        """Return the checkpoint of the size of a structure, which is looked at no further than that."""
        l, m, rounds = found.size  # noqa: E741 - the field's name for it
        # Numbers first: to look for the logical operators of a code takes a while.
        if (detectors := 2 * l * m * rounds) != len(found.detectors):
            raise InputError(
                f"detectors must be {detectors} for a bicycle code on a torus of {l} x {m} cells in {rounds} "
                f"cycles, got {len(found.detectors)}"
            )
        code = _code(l, m, _polynomial(self.code.a), _polynomial(self.code.b))
        if found.num_observables != code.k:
            raise InputError(
                f"observables must be {code.k} for the polynomials of {self.name} on a torus of {l} x {m} "
                f"cells, got {found.num_observables}"
            )
        return self.transferred(code, rounds)

    @property
    def kind(self) -> str:
        """Of the network, a name in :data:`NETWORKS`."""
        return next(kind for kind, made in NETWORKS.items() if isinstance(self.network, made))

    def save(self, folder: str | os.PathLike[str], precision: Precision = "float32") -> Path:
        """Write weights and side-car, each first under a temporary name.

        A reader that comes between the two finds weights that the side-car does not know, and says so.

        Args:
            folder: created where it does not exist; a checkpoint in it is replaced.
            precision: of the weights on disk, float32 or bfloat16, which halves them.

        Returns:
            The folder.

        Raises:
            InputError: another precision, or a place that cannot be written to.
        """
        content = saved_weights(self.network, precision)
        folder = Path(folder)
        write_atomically(folder / WEIGHTS, content)
        write_atomically(folder / SIDECAR, json.dumps(self._sidecar(content, precision), indent=1) + "\n")
        return folder

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Checkpoint":
        """Read a checkpoint.

        Raises:
            InputError: files that are missing, damaged or do not belong together, or another schema; the
                message names the field.
        """
        folder = Path(folder)
        sidecar = read_sidecar(folder / SIDECAR, NETWORKS)
        try:
            fields, rounds = sidecar["network"], whole_number(sidecar, "rounds")
            code = _code(
                *(whole_number(sidecar["code"], key) for key in "lm"),
                *(str(sidecar["code"][key]) for key in "ab"),
            )
            network = NETWORKS[fields["kind"]](
                code, width=whole_number(fields, "width"), layers=whole_number(fields, "layers")
            )
            load_weights(network, folder / WEIGHTS, sidecar["weights"]["sha256"])
            experiments: dict[Basis, Experiment] = {
                basis: _experiment(sidecar["experiments"][basis], code)
                for basis in KINDS
                if basis in sidecar["experiments"]
            }
            checkpoint = cls(
                network=network.eval(),
                code=code,
                rounds=rounds,
                experiments=experiments,
                training=sidecar["training"],
                versions=sidecar["versions"],
                name=folder.name,
                calibration=None
                if sidecar["calibration"] is None
                else Calibration.from_json(sidecar["calibration"]),
            )
        except KeyError as error:
            raise InputError(f"{folder / SIDECAR} lacks the field {error}") from error
        except (TypeError, IndexError) as error:
            raise InputError(f"{folder / SIDECAR} has a field of the wrong kind: {error}") from error
        checkpoint._check_layout()
        return checkpoint

    def _check_layout(self) -> None:
        """Raise InputError unless the detectors listed are those that code and rounds imply."""
        for basis, experiment in self.experiments.items():
            expected = self.code.cells * 2 * self.rounds
            if len(experiment.structure.detectors) != expected or experiment.structure.basis != basis:
                raise InputError(
                    f"experiments.{basis}.detectors of {self.name} must be the {expected} of {self.code!r} "
                    f"in {self.rounds} rounds and basis {basis}, got {len(experiment.structure.detectors)} "
                    f"of basis {experiment.structure.basis}"
                )

    def _sidecar(self, content: bytes, precision: str) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "versions": dict(self.versions),
            "network": {
                "kind": self.kind,
                "width": self.network.width,
                "layers": len(self.network.layers),
            },
            "code": {
                "l": self.code.l,
                "m": self.code.m,
                "a": _polynomial(self.code.a),
                "b": _polynomial(self.code.b),
            },
            "rounds": self.rounds,
            "weights": {
                "sha256": hashlib.sha256(content).hexdigest(),
                "precision": precision,
                "parameters": sum(value.numel() for value in self.network.parameters()),
            },
            "experiments": {
                basis: {
                    "detectors": _rows_to_text(found.structure.detectors),
                    "observables": _rows_to_text([np.flatnonzero(row).tolist() for row in found.observables]),
                    "sha256_detection": found.structure.detection,
                    "sha256_mechanisms": found.structure.mechanisms,
                }
                for basis, found in self.experiments.items()
            },
            "calibration": None if self.calibration is None else self.calibration.to_json(),
            "training": dict(self.training),
        }


@cache
def _memories(code: BivariateBicycleCode, rounds: int) -> Mapping[Basis, Experiment]:
    """Return the memory experiments of a code; training asks twice, and their structure takes seconds."""
    experiments = {}
    for basis in KINDS:
        # The strength plays no part in the structure.
        dem = bb_memory(code, p=0.001, rounds=rounds, basis=basis).detector_error_model(flatten_loops=True)
        experiments[basis] = Experiment(Structure.of(dem), code.logicals(basis))
    return experiments


def read_sidecar(path: Path, kinds: Collection[str]) -> dict[str, Any]:
    """Return what a side-car says.

    Args:
        path: of the file.
        kinds: of networks that the caller can read.

    Raises:
        InputError: no such file, or one of another schema or kind.
    """
    try:
        sidecar = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"checkpoint must be a folder with {SIDECAR}, cannot read {path}: {error.strerror}"
        ) from error
    except ValueError as error:  # of JSON or of UTF-8
        raise InputError(f"{path} is not JSON: {error}") from error
    found = sidecar if isinstance(sidecar, dict) else {}
    if found.get("schema") != SCHEMA:
        raise InputError(f"schema of {path} must be {SCHEMA}, got {found.get('schema')!r}")
    network = found.get("network")
    kind = network.get("kind") if isinstance(network, dict) else network
    if kind not in kinds:
        raise InputError(f"network.kind of {path} must be {' or '.join(kinds)}, got {kind!r}")
    return found


def whole_number(fields: Mapping[str, Any], key: str) -> int:
    """Return a field, or raise InputError unless it is a whole number."""
    if not isinstance(fields[key], int):
        raise InputError(f"{key} of a checkpoint must be a whole number, got {fields[key]!r}")
    return int(fields[key])


def saved_weights(network: nn.Module, precision: Precision) -> bytes:
    """Return the weights of a network as a safetensors file has them.

    Args:
        network: on any device.
        precision: of the weights in the file, float32 or bfloat16.

    Raises:
        InputError: another precision.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision must be {' or '.join(PRECISIONS)}, got {precision!r}")
    kind = PRECISIONS[precision]
    state = {
        name: value.detach().to("cpu", kind).contiguous() for name, value in network.state_dict().items()
    }
    return safetensors.torch.save(state)


def load_weights(network: nn.Module, path: Path, expected: str) -> None:
    """Read the weights of a network.

    Args:
        network: gets them.
        path: of the file.
        expected: its SHA-256.

    Raises:
        InputError: no such file, a damaged one, or one of another network.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"checkpoint must be a folder with {WEIGHTS}, cannot read {path}: {error.strerror}"
        ) from error
    try:
        state = safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file: {error}") from error
    wanted = network.state_dict()
    if different := sorted(wanted.keys() ^ state.keys()):
        name = different[0]
        raise InputError(
            f"weights of {path} must {'have' if name in wanted else 'not have'} a tensor {name!r}"
        )
    for name, value in wanted.items():
        if state[name].shape != value.shape:
            raise InputError(
                f"weights of {path} must have shape {tuple(value.shape)} in {name!r}, "
                f"got {tuple(state[name].shape)}"
            )
        if not torch.isfinite(state[name]).all():
            raise InputError(f"weights of {path} must be finite, but {name!r} is not")
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected:
        raise InputError(f"weights.sha256 of {path} must be {expected} as {SIDECAR} says, got {digest}")
    network.load_state_dict(state)


def _experiment(fields: Mapping[str, str], code: BivariateBicycleCode) -> Experiment:
    supports = _rows_from_text(fields["observables"])
    observables = np.zeros((len(supports), code.n), dtype=np.uint8)
    for row, support in zip(observables, supports, strict=True):
        row[list(support)] = 1
    structure = Structure(
        detectors=tuple(_rows_from_text(fields["detectors"])),
        num_observables=len(supports),
        detection=fields["sha256_detection"],
        mechanisms=fields["sha256_mechanisms"],
    )
    return Experiment(structure, gf2.bits(observables))


@cache
def _code(l: int, m: int, a: str, b: str) -> BivariateBicycleCode:  # noqa: E741 - the field's name for it
    """Return the same object at every call, as the search for its logical operators takes a while."""
    return BivariateBicycleCode(l, m, a, b)


def _polynomial(monomials: tuple[Monomial, ...]) -> str:
    return " + ".join(f"x^{i} y^{j}" for i, j in monomials)


def _rows_to_text(rows: Any) -> str:
    """Write rows of whole numbers in one line; JSON would give every number its own."""
    return " ".join(",".join(str(value) for value in row) for row in rows)


def _rows_from_text(text: str) -> list[tuple[int, ...]]:
    return [tuple(int(value) for value in row.split(",")) for row in text.split()]
