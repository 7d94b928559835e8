"""Trained networks as ONNX files, for runtimes without torch.

The graph takes detectors as floats, 0 or 1, in the circuit's order, as decoders built on TensorRT want them,
and gives the log odds of net flips of all data qubits. A file beside it says how to read them out: the flips
e of least weight with ``checks @ e = syndrome`` modulo 2, then ``observables = logicals @ e``.
"""

import json
import logging
import os
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from symdyn_core.errors import DependencyError, InputError
from symdyn_core.files import write_atomically
from symdyn_qec.checkpoint import Checkpoint
from symdyn_qec.codes import Basis, check_basis
from symdyn_qec.layout import TorusLayout
from symdyn_qec.networks.sector import BASES, Edges, SectorNetwork, SectorView, Tables

OPSET = 18
EXTRA = "symdyn-qec[onnx]"


def export_onnx(
    checkpoint: Checkpoint, path: str | os.PathLike[str], basis: Basis = "Z", batch: int | None = None
) -> Path:
    """Write a checkpoint's network for one experiment, and ``PATH.json`` with what the read-out needs.

    Args:
        checkpoint: to export.
        path: of the ONNX file, replaced if it exists.
        basis: of the experiment.
        batch: shots per call, at least 1; any number by default.

    Returns:
        The path.

    Raises:
        InputError: an unknown basis, or a batch out of range.
        DependencyError: the exporter's packages are not installed.
    """
    check_basis(basis)
    if batch is not None and batch < 1:
        raise InputError(f"batch must be at least 1, got {batch}")
    for module in ("onnx", "onnxscript"):
        if find_spec(module) is None:
            raise DependencyError(f"export needs the package {module}: pip install '{EXTRA}'")
    graph = _Graph(checkpoint, basis)
    path, shots = Path(path), 2 if batch is None else batch  # one shot would be taken for a fixed number
    write_atomically(path, _exported(graph, torch.zeros(shots, graph.detectors), batch is None))
    write_atomically(
        path.with_name(path.name + ".json"), json.dumps(_readout(checkpoint, basis), indent=1) + "\n"
    )
    return path


class _Graph(nn.Module):
    """From detectors to log odds."""

    place: Tensor

    def __init__(self, checkpoint: Checkpoint, basis: Basis) -> None:
        super().__init__()
        layout = TorusLayout(checkpoint.code, checkpoint.rounds, basis)
        network = checkpoint.network
        self.network = AnyShots(network) if isinstance(network, SectorNetwork) else network
        self.basis, self.detectors = basis, layout.num_detectors
        self.shape = layout.place.shape
        self.register_buffer("place", torch.from_numpy(layout.place).flatten(), persistent=False)

    def forward(self, detectors: Tensor) -> Tensor:
        """Return log odds, shape ``(shots, n)``, from detectors, shape ``(shots, detectors)``."""
        states = nn.functional.pad(detectors.to(torch.long) + 1, (0, 1))
        checks = states[:, self.place].view(-1, *self.shape)
        odds: Tensor = self.network.readout(checks, self.basis)
        return odds


class AnyShots(SectorNetwork):
    """A network of one sector whose tables hold for a number of shots that is not known yet."""

    def __init__(self, network: SectorNetwork) -> None:
        super().__init__(network.code, network.width, len(network.layers))
        self.load_state_dict(network.state_dict())

    def readout(self, checks: Tensor, basis: Basis) -> Tensor:
        """Return the same as the network, without asking for a length, which would become a constant."""
        view = SectorView(self.code, basis)
        number = checks.new_full((checks.shape[0],), BASES.index(basis))
        return view.back(self(view.checks(checks), number)[1])

    def _table(self, shots: int, cycles: int, device: torch.device) -> Tables:
        table, rows = Tables(self.code, 1, cycles, device), cycles * self.code.cells
        table.left, table.right = _repeated(table.left, shots, rows), _repeated(table.right, shots, rows)
        table.own = _repeated(table.own, shots, rows)
        table.hints = [_repeated(edges, shots, rows) for edges in table.hints]
        return table


def _repeated(edges: Edges, shots: int, rows: int) -> Edges:
    """Return the edges of many shots from those of one, which has so many rows."""
    one = edges.heard.long()
    source, row = one // rows, one % rows
    # The row of zeros comes after all sources, and is there once for all shots.
    shift = torch.where(source < len(edges.hearers), rows, 0)
    shot = torch.arange(shots, device=one.device).view(-1, 1, 1)
    return Edges((source * rows * shots + row + shift * shot).flatten(0, 1), ())


def _exported(graph: _Graph, example: Tensor, dynamic: bool) -> bytes:
    shapes: dict[str, Any] | None = {"detectors": {0: torch.export.Dim("shots")}} if dynamic else None
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's own, of its internals
        exporter.setLevel(logging.ERROR)
        file = Path(folder) / "graph.onnx"
        try:
            torch.onnx.export(
                graph.eval(),
                (example,),
                file,
                input_names=["detectors"],
                output_names=["log_odds"],
                dynamic_shapes=shapes,
                opset_version=OPSET,
                external_data=False,
                dynamo=True,
                verbose=False,
            )
        finally:
            exporter.setLevel(level)
        return file.read_bytes()


def _readout(checkpoint: Checkpoint, basis: Basis) -> dict[str, Any]:
    layout = TorusLayout(checkpoint.code, checkpoint.rounds, basis)
    own = layout.place[0 if basis == "X" else 1].reshape(checkpoint.rounds + 1, -1)
    return {
        "input": "detectors, 0 or 1 in float32, in the circuit's order",
        "output": "log_odds of the net flip of every data qubit",
        "basis": basis,
        "rounds": checkpoint.rounds,
        "syndromes": [column.tolist() for column in own.T],
        "checks": checkpoint.code.checks(basis).tolist(),
        "logicals": checkpoint.experiments[basis].observables.tolist(),
        "calibration": None if checkpoint.calibration is None else checkpoint.calibration.to_json(),
    }
