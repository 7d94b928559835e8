"""Trained networks for any circuit on disk: weights, what they are for, and the model of their circuit.

The folder holds ``model.safetensors`` and ``decoder.json`` as those of :mod:`symdyn_qec.checkpoint` do, and
``circuit.dem``, the detector error model whose graph the network works on. A checkpoint is for that circuit
under noise of any strength.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pymatching
import stim
import torch

from symdyn_core.errors import InputError
from symdyn_core.files import write_atomically
from symdyn_qec import __version__
from symdyn_qec.calibration import Calibration
from symdyn_qec.checkpoint import (
    SCHEMA,
    SIDECAR,
    WEIGHTS,
    Precision,
    load_weights,
    read_sidecar,
    saved_weights,
    whole_number,
)
from symdyn_qec.graph_reading import MEMBERS, CircuitGraph
from symdyn_qec.networks.detector_graph import DetectorGraphNetwork

KIND, MODEL = "graph", "circuit.dem"


@dataclass(frozen=True, eq=False)
class GraphCheckpoint:
    """A trained network with all that is needed to decode with it.

    Fields:
        network: with its weights.
        graph: of the circuit.
        training: how the weights were found; anything that JSON can hold.
        versions: of the packages that wrote it.
        name: of its folder, or where it came from.
        calibration: how sure an answer is; ``None`` where that has not been found out.
    """

    network: DetectorGraphNetwork
    graph: CircuitGraph
    training: Mapping[str, Any]
    versions: Mapping[str, str]
    name: str = "this checkpoint"
    calibration: Calibration | None = None

    @classmethod
    def of(
        cls, network: DetectorGraphNetwork, graph: CircuitGraph, training: Mapping[str, Any]
    ) -> "GraphCheckpoint":
        """Return the checkpoint of a network trained on a circuit."""
        versions = {
            "symdyn-qec": __version__,
            "numpy": np.__version__,
            "pymatching": pymatching.__version__,
            "stim": stim.__version__,
            "torch": str(torch.__version__),
        }
        return cls(network, graph, training, versions)

    @property
    def strongest(self) -> float:
        """Errors per shot under the strongest noise of training; infinite where that is not recorded."""
        return float(max(self.training.get("errors_per_shot", [float("inf")])))

    def check(self, dem: stim.DetectorErrorModel) -> None:
        """Raise InputError unless a model is of this circuit, naming what differs."""
        self.graph.split.probabilities(dem, self.name)

    def adapted(self, dem: stim.DetectorErrorModel) -> "GraphCheckpoint":
        """Return this checkpoint, or raise InputError unless a model is of its circuit."""
        self.check(dem)
        return self

    def save(self, folder: str | os.PathLike[str], precision: Precision = "float32") -> Path:
        """Write weights, model and side-car, each first under a temporary name, the side-car last.

        A reader that comes in between finds files that the side-car does not know, and says so.

        Args:
            folder: created where it does not exist; a checkpoint in it is replaced.
            precision: of the weights on disk, float32 or bfloat16, which halves them.

        Returns:
            The folder.

        Raises:
            InputError: another precision, or a place that cannot be written to.
        """
        content = saved_weights(self.network, precision)
        model, folder = f"{self.graph.dem}\n", Path(folder)
        sidecar = {
            "schema": SCHEMA,
            "versions": dict(self.versions),
            "network": {
                "kind": KIND,
                "width": self.network.width,
                "layers": len(self.network.layers),
                "members": MEMBERS,
            },
            "weights": {
                "sha256": hashlib.sha256(content).hexdigest(),
                "precision": precision,
                "parameters": sum(value.numel() for value in self.network.parameters()),
            },
            "circuit": {
                "sha256": hashlib.sha256(model.encode()).hexdigest(),
                "detectors": self.graph.layout.num_detectors,
                "observables": self.graph.layout.num_observables,
                "errors": len(self.graph.split.errors),
                "edges": self.graph.layout.num_edges,
            },
            "calibration": None if self.calibration is None else self.calibration.to_json(),
            "training": dict(self.training),
        }
        write_atomically(folder / WEIGHTS, content)
        write_atomically(folder / MODEL, model)
        write_atomically(folder / SIDECAR, json.dumps(sidecar, indent=1) + "\n")
        return folder

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "GraphCheckpoint":
        """Read a checkpoint.

        Raises:
            InputError: files that are missing, damaged or do not belong together, or another schema; the
                message names the field.
        """
        folder = Path(folder)
        sidecar = read_sidecar(folder / SIDECAR, [KIND])
        try:
            fields = sidecar["network"]
            if (members := whole_number(fields, "members")) != MEMBERS:
                raise InputError(f"network.members of {folder / SIDECAR} must be {MEMBERS}, got {members}")
            graph = CircuitGraph(_read_model(folder / MODEL, sidecar["circuit"]["sha256"]))
            network = DetectorGraphNetwork(
                graph.layout, width=whole_number(fields, "width"), layers=whole_number(fields, "layers")
            )
            load_weights(network, folder / WEIGHTS, sidecar["weights"]["sha256"])
            calibration = sidecar["calibration"]
            return cls(
                network=network.eval(),
                graph=graph,
                training=sidecar["training"],
                versions=sidecar["versions"],
                name=folder.name,
                calibration=None if calibration is None else Calibration.from_json(calibration),
            )
        except KeyError as error:
            raise InputError(f"{folder / SIDECAR} lacks the field {error}") from error
        except TypeError as error:
            raise InputError(f"{folder / SIDECAR} has a field of the wrong kind: {error}") from error


def _read_model(path: Path, expected: str) -> stim.DetectorErrorModel:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"checkpoint must be a folder with {MODEL}, cannot read {path}: {error.strerror}"
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected:
        raise InputError(f"circuit.sha256 of {path} must be {expected} as {SIDECAR} says, got {digest}")
    try:
        return stim.DetectorErrorModel(content.decode())
    except (ValueError, IndexError) as error:
        raise InputError(f"{path} is not a detector error model: {error}") from error
