"""Which trained networks come with the package, and which of them is for a circuit."""

import os
from contextlib import suppress
from pathlib import Path

import stim

from symdyn_core.errors import InputError
from symdyn_qec.checkpoint import NETWORKS, SIDECAR, Checkpoint, read_sidecar
from symdyn_qec.graph_checkpoint import KIND, GraphCheckpoint

# Ends the names of shipped checkpoints that trade accuracy for time.
FAST = "-fast"

SHIPPED = Path(__file__).parent / "weights"


def shipped() -> dict[str, Path]:
    """Return the folders of the checkpoints that come with the package, by name."""
    return {path.parent.name: path.parent for path in sorted(SHIPPED.glob(f"*/{SIDECAR}"))}


def load(folder: str | os.PathLike[str]) -> Checkpoint | GraphCheckpoint:
    """Read a checkpoint of whatever kind.

    Raises:
        InputError: as :meth:`Checkpoint.load` and :meth:`GraphCheckpoint.load` do.
    """
    sidecar = read_sidecar(Path(folder) / SIDECAR, [*NETWORKS, KIND])
    if sidecar["network"]["kind"] == KIND:
        return GraphCheckpoint.load(folder)
    return Checkpoint.load(folder)


def find(dem: stim.DetectorErrorModel, fast: bool = False) -> Checkpoint | GraphCheckpoint:
    """Return the shipped checkpoint for a detector error model, transferred to its size where need be.

    Of several that can be transferred the one that was trained in the most similar number of cycles is taken:
    that mattered more than the size of the torus wherever it was measured.

    Args:
        dem: of the circuit.
        fast: whether to take a small one rather than an accurate one.

    Raises:
        InputError: there is none; the message says of each in what it differs.
    """
    candidates = [load(folder) for name, folder in shipped().items() if name.endswith(FAST) == fast]
    # What was trained for the circuit first: to try what can be transferred takes a second.
    for checkpoint in candidates:
        with suppress(InputError):
            checkpoint.check(dem)
            return checkpoint
    transferred: dict[int, Checkpoint] = {}
    reasons = []
    for checkpoint in candidates:
        try:
            adapted = checkpoint.adapted(dem)
        except InputError as error:
            reasons.append(str(error))
            continue
        if isinstance(checkpoint, Checkpoint) and isinstance(adapted, Checkpoint):
            transferred.setdefault(abs(adapted.rounds - checkpoint.rounds), adapted)
    if transferred:
        return transferred[min(transferred)]
    raise InputError(
        f"no shipped checkpoint is for this model: {'; '.join(reasons)}. "
        "`symdyn qec train` makes one; the decoder min-sum needs none"
    )
