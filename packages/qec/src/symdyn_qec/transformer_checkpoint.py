"""A trained transformer on disk, in the files of :mod:`symdyn_qec.checkpoint`, with the code's checks.

A checkpoint is for one memory experiment of one CSS code, at any strength of its noise.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import stim
import torch

from symdyn_core.errors import InputError
from symdyn_core.files import write_atomically
from symdyn_qec import __version__
from symdyn_qec.checkpoint import (
    SCHEMA,
    SIDECAR,
    WEIGHTS,
    Experiment,
    Precision,
    _experiment,
    _rows_from_text,
    _rows_to_text,
    load_weights,
    read_sidecar,
    saved_weights,
    whole_number,
)
from symdyn_qec.codes import Basis, CSSCode, check_basis
from symdyn_qec.gf2 import BitMatrix
from symdyn_qec.memory import opposite
from symdyn_qec.networks.transformer import CodeTransformer
from symdyn_qec.structure import Structure
from symdyn_qec.transformer_layout import TokenLayout
from symdyn_qec.transformer_training import TransformerSettings, memory

KIND = "transformer"


@dataclass(frozen=True, eq=False)
class TransformerCheckpoint:
    """A trained transformer with all that is needed to decode with it.

    Fields:
        network: with its weights.
        code: that it decodes.
        rounds: cycles of the experiment.
        basis: of the experiment.
        experiment: its detectors and observables.
        layout: which stabiliser and cycle each detector belongs to.
        training: how the weights were found; anything that JSON can hold.
        versions: of the packages that wrote it.
        name: of its folder.
    """

    network: CodeTransformer
    code: CSSCode
    rounds: int
    basis: Basis
    experiment: Experiment
    layout: TokenLayout
    training: Mapping[str, Any]
    versions: Mapping[str, str]
    name: str = "this checkpoint"

    @classmethod
    def of(
        cls,
        network: CodeTransformer,
        code: CSSCode,
        settings: TransformerSettings,
        training: Mapping[str, Any],
    ) -> "TransformerCheckpoint":
        """Return the checkpoint of a network trained with these settings."""
        dem = memory(code, settings.p[0], settings).detector_error_model(flatten_loops=True)
        structure, basis = Structure.of(dem), settings.basis
        versions = {
            "symdyn-qec": __version__,
            "numpy": np.__version__,
            "stim": stim.__version__,
            "torch": str(torch.__version__),
        }
        return cls(
            network=network,
            code=code,
            rounds=settings.rounds,
            basis=basis,
            experiment=Experiment(structure, code.logicals(basis)),
            layout=TokenLayout(code, structure.detectors, settings.rounds),
            training=training,
            versions=versions,
        )

    def check(self, dem: stim.DetectorErrorModel) -> None:
        """Raise InputError unless a model is that of the experiment, naming the field that does not match."""
        self.experiment.structure.check(Structure.of(dem), f"the {self.basis} memory of {self.name}")

    def save(self, folder: str | os.PathLike[str], precision: Precision = "float32") -> Path:
        """Write weights and side-car, each first under a temporary name; return the folder.

        Args:
            folder: created where it does not exist; a checkpoint in it is replaced.
            precision: of the weights on disk, float32 or bfloat16, which halves them.

        Raises:
            InputError: another precision, or a place that cannot be written to.
        """
        content = saved_weights(self.network, precision)
        folder = Path(folder)
        write_atomically(folder / WEIGHTS, content)
        write_atomically(folder / SIDECAR, json.dumps(self._sidecar(content, precision), indent=1) + "\n")
        return folder

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "TransformerCheckpoint":
        """Read a checkpoint.

        Raises:
            InputError: files that are missing, damaged or do not belong together, of another schema or
                another kind of network; the message names the field.
        """
        folder = Path(folder)
        sidecar = read_sidecar(folder / SIDECAR, [KIND])
        try:
            fields, code = sidecar["network"], _code(sidecar["code"])
            basis, rounds = check_basis(sidecar["basis"]), whole_number(sidecar, "rounds")
            experiment = _experiment(sidecar["experiments"][basis], code)  # type: ignore[arg-type]  # any code
            _check_detectors(experiment, code, rounds, basis, folder)
            positions = [(x, y, kind) for x, y, kind in _rows_from_text(sidecar["tokens"])]
            layout = TokenLayout(code, experiment.structure.detectors, rounds, positions)
            width, layers, heads = (whole_number(fields, name) for name in ("width", "layers", "heads"))
            network = CodeTransformer(layout.related, len(experiment.observables), width, layers, heads)
            load_weights(network, folder / WEIGHTS, sidecar["weights"]["sha256"])
            training, versions = sidecar["training"], sidecar["versions"]
        except KeyError as error:
            raise InputError(f"{folder / SIDECAR} lacks the field {error}") from error
        except (TypeError, IndexError, ValueError) as error:
            raise InputError(f"{folder / SIDECAR} has a field of the wrong kind: {error}") from error
        return cls(network.eval(), code, rounds, basis, experiment, layout, training, versions, folder.name)

    def _sidecar(self, content: bytes, precision: str) -> dict[str, Any]:
        network, structure = self.network, self.experiment.structure
        return {
            "schema": SCHEMA,
            "versions": dict(self.versions),
            "network": {
                "kind": KIND,
                "width": network.width,
                "layers": len(network.layers),
                "heads": network.num_heads,
            },
            "code": {"n": self.code.n, "hx": _supports(self.code.hx), "hz": _supports(self.code.hz)},
            "tokens": _rows_to_text(self.layout.positions),
            "rounds": self.rounds,
            "basis": self.basis,
            "weights": {
                "sha256": hashlib.sha256(content).hexdigest(),
                "precision": precision,
                "parameters": sum(value.numel() for value in network.parameters()),
            },
            "experiments": {
                self.basis: {
                    "detectors": _rows_to_text(structure.detectors),
                    "observables": _supports(self.experiment.observables),
                    "sha256_detection": structure.detection,
                    "sha256_mechanisms": structure.mechanisms,
                }
            },
            "training": dict(self.training),
        }


def _check_detectors(experiment: Experiment, code: CSSCode, rounds: int, basis: Basis, folder: Path) -> None:
    """Raise InputError unless there are as many detectors as code, rounds and basis imply."""
    own, other = len(code.checks(basis)), len(code.checks(opposite(basis)))
    expected, found = (rounds + 1) * own + (rounds - 1) * other, len(experiment.structure.detectors)
    if found != expected:
        raise InputError(
            f"experiments.{basis}.detectors of {folder} must be the {expected} of the code in "
            f"{rounds} rounds, got {found}"
        )


def _code(fields: Mapping[str, Any]) -> CSSCode:
    n = whole_number(fields, "n")

    def matrix(text: str) -> BitMatrix:
        supports = _rows_from_text(text)
        bits = np.zeros((len(supports), n), dtype=np.uint8)
        for row, support in zip(bits, supports, strict=True):
            row[list(support)] = 1
        return bits

    return CSSCode(matrix(fields["hx"]), matrix(fields["hz"]))


def _supports(rows: BitMatrix) -> str:
    return _rows_to_text([np.flatnonzero(row).tolist() for row in rows])
