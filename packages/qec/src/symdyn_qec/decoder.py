r"""Trained decoders, for sinter and for direct use.

For circuits of bicycle codes the network is one on a torus, of any size; for others one on the graph of
detectors, see :mod:`symdyn_qec.graph_decoder`. What follows is about the former.

The network gives log odds that each data qubit has flipped, net of all cycles. Ordered statistics make of
them the likeliest flips e that explain the checks, :math:`H e = \bigoplus_t D_t`, and the observables are
:math:`o = L e`, L being the supports of the logical operators that the circuit observes. Nothing but the log
odds is learnt, so that every answer agrees with every check.

The weight of the qubits that had to differ from what the network suggests is zero where the suggestion
explains all checks by itself. With the doubt that is left in the suggestion it makes a confidence; see
:mod:`symdyn_qec.calibration`.
"""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sinter
import stim
import torch
from numpy.typing import NDArray

from symdyn_core.errors import InputError
from symdyn_qec import gf2
from symdyn_qec.checkpoint import PRECISIONS, Checkpoint, Precision
from symdyn_qec.circuits import bb_memory
from symdyn_qec.codes import Basis
from symdyn_qec.gf2 import BitMatrix
from symdyn_qec.graph_checkpoint import GraphCheckpoint
from symdyn_qec.graph_decoder import CompiledGraphDecoder
from symdyn_qec.layout import TorusLayout
from symdyn_qec.mechanisms import errors_per_shot
from symdyn_qec.networks.fused import fused
from symdyn_qec.osd import OrderedStatistics
from symdyn_qec.packed_decoder import PackedDecoder, check_postselect, placed
from symdyn_qec.shipped import find, load
from symdyn_qec.threads import limited_threads

# Pairs of changes are tried among this many doubtful qubits; more of them hardly ever find a better answer.
OSD_ORDER = 10

# Noise this much stronger than in training is still taken for the same.
NOISE_TOLERANCE = 1.05


class Prediction(NamedTuple):
    """What the decoder makes of some shots.

    Fields:
        observables: predicted flips, bits, shape ``(shots, k)``.
        flips: of data qubits as the readout sees them, bits, shape ``(shots, n)``.
        doubt: negative log probability of the network's suggestion, shape ``(shots,)``.
        weight: in log odds, of the qubits that had to differ from the suggestion, shape ``(shots,)``.
        confidence: calibrated probability that all observables are right, at noise of the strengths that the
            network was trained for, shape ``(shots,)``; NaN where the checkpoint is not calibrated.
        kept: whether the confidence is at least ``postselect``; true where that is not given, shape
            ``(shots,)``.
    """

    observables: BitMatrix
    flips: BitMatrix
    doubt: NDArray[np.float64]
    weight: NDArray[np.float32]
    confidence: NDArray[np.float64]
    kept: NDArray[np.bool_]


class ShotPrediction(NamedTuple):
    """The same for one shot: the fields of :class:`Prediction` without their first axis."""

    observables: NDArray[np.uint8]
    flips: NDArray[np.uint8]
    doubt: float
    weight: float
    confidence: float
    kept: bool


class SymdynDecoder(sinter.Decoder):  # type: ignore[misc]  # sinter has no types
    """A trained network as a sinter decoder.

    It holds settings and a path, never weights, so that it can be sent to worker processes.

    Args:
        checkpoint: folder; by default the shipped checkpoint that is for the circuit.
        fast: of the shipped checkpoints take a smaller one, which fails more often and takes a fraction of
            the time.
        postselect: keep a shot only if it is right with at least this probability, in [0, 1]; sinter counts
            all others as discards. By default every shot is kept. A threshold rather than a share of the
            shots, as nobody knows how doubtful the shots of the next batch will be.
        batch_size: shots that go through the network together, at least 1.
        device: where the network runs, as torch names it; by default the CPU.
        dtype: of activations, float32 or bfloat16. The latter suits CUDA devices and CPUs with matrix units
            for it; on a CPU without them it took ten times as long.
        threads: on the CPU, at least 1; they share out batches. One, as sinter starts a process for every
            core.

    Raises:
        InputError: a value out of range.

    >>> from symdyn_qec.circuits import memory_circuit
    >>> circuit = memory_circuit("bb72", p=0.003, rounds=6)
    >>> decoder = SymdynDecoder().compile_decoder_for_dem(dem=circuit.detector_error_model())
    >>> detectors, observables = circuit.compile_detector_sampler(seed=5).sample(8, separate_observables=True)
    >>> prediction = decoder.predict(detectors)
    >>> bool((prediction.observables == observables).all())
    True
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str] | None = None,
        *,
        fast: bool = False,
        postselect: float | None = None,
        batch_size: int = 64,
        device: str | None = None,
        dtype: Precision = "float32",
        threads: int = 1,
    ) -> None:
        check_postselect(postselect)
        for name, value in (("batch_size", batch_size), ("threads", threads)):
            if value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if dtype not in PRECISIONS:
            raise InputError(f"dtype must be {' or '.join(PRECISIONS)}, got {dtype!r}")
        if fast and checkpoint is not None:
            raise InputError(f"fast chooses among shipped checkpoints, leave it out with {checkpoint}")
        self.checkpoint, self.fast = None if checkpoint is None else Path(checkpoint), fast
        self.postselect, self.batch_size, self.threads = postselect, batch_size, threads
        self.device, self.dtype = device or "cpu", dtype

    def compile_decoder_for_dem(
        self, *, dem: stim.DetectorErrorModel
    ) -> "CompiledSymdynDecoder | CompiledGraphDecoder":
        """Load the weights and make ready for a circuit.

        Where the noise is stronger than any that the network was trained for, a warning says so.

        Args:
            dem: of the circuit; networks of bicycle codes do not look at its probabilities.

        Raises:
            InputError: a checkpoint that cannot be read or is for another circuit, an unknown device, or
                ``postselect`` with a checkpoint that is not calibrated, as those transferred to another size
                are not.
        """
        checkpoint = find(dem, self.fast) if self.checkpoint is None else load(self.checkpoint).adapted(dem)
        if isinstance(checkpoint, GraphCheckpoint):
            compiled = CompiledGraphDecoder(self, checkpoint, dem)
            _warn_of_stronger_noise(errors_per_shot(dem), checkpoint.strongest, checkpoint.name)
            return compiled
        basis = checkpoint.basis_of(dem)
        if "p" in checkpoint.training:
            p = float(checkpoint.training["p"][1])
            strongest = bb_memory(checkpoint.code, p, checkpoint.rounds, basis).detector_error_model()
            most, name = errors_per_shot(strongest), f"{checkpoint.name} (p = {p:g})"
            _warn_of_stronger_noise(errors_per_shot(dem), most, name)
        return CompiledSymdynDecoder(self, checkpoint, basis)


class CompiledSymdynDecoder(PackedDecoder):
    """A decoder that is ready for one circuit; made by :class:`SymdynDecoder`."""

    def __init__(self, settings: SymdynDecoder, checkpoint: Checkpoint, basis: Basis) -> None:
        code, kind = checkpoint.code, 0 if basis == "X" else 1
        self.settings, self.calibration = settings, checkpoint.calibration
        if self.calibration is None and settings.postselect is not None:
            raise InputError(
                f"postselect needs a calibrated checkpoint, and {checkpoint.name} is not calibrated"
            )
        self.basis = basis
        self.num_detectors = len(checkpoint.experiments[basis].structure.detectors)
        self.logicals = checkpoint.experiments[basis].observables
        self._network = placed(checkpoint.network, settings.device)
        self._layout = TorusLayout(code, checkpoint.rounds, basis)
        # None where the network is on another device, in another type or of another width.
        self._fused = (
            fused(self._network, basis, checkpoint.rounds + 1)
            if (settings.device, settings.dtype) == ("cpu", "float32")
            else None
        )
        self._own = self._layout.place[kind].reshape(checkpoint.rounds + 1, code.cells)
        self._search = OrderedStatistics(code.checks(basis), OSD_ORDER)
        # Sums of checks that are always zero, whatever the errors.
        self._redundancies = gf2.nullspace(code.checks(basis).T)
        # What is compiled at its first use is so now; no shot shall wait for it.
        self._search.prepare()
        self.predict(np.zeros((1, self.num_detectors), dtype=np.bool_))

    def predict(self, detectors: NDArray[Any]) -> Prediction:
        """Decode shots.

        Args:
            detectors: packed little endian, ``uint8``, shape ``(shots, ceil(detectors / 8))``, as Stim's
                ``bit_packed=True`` gives them; or one by one, ``bool``, shape ``(shots, detectors)``.

        Raises:
            InputError: another type or width, or a shot that no errors lead to.
        """
        packed = self.packed(np.asarray(detectors))
        size, threads = self.settings.batch_size, self.settings.threads
        batches = [packed[start : start + size] for start in range(0, max(len(packed), 1), size)]
        if self._fused is None or threads == 1 or len(batches) == 1:
            with limited_threads(threads):
                parts = [self._predict_batch(batch) for batch in batches]
        else:
            # Our own products use one core each, and let others run meanwhile.
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                parts = list(pool.map(self._predict_batch, batches))
        if len(parts) == 1:
            return parts[0]
        return Prediction(*(np.concatenate(field) for field in zip(*parts, strict=True)))

    def predict_shot(self, detectors: NDArray[Any]) -> ShotPrediction:
        """Decode one shot, without waiting for others.

        Args:
            detectors: as for :meth:`predict`, without the first axis.

        Raises:
            InputError: as for :meth:`predict`.
        """
        shot = np.asarray(detectors)
        if shot.ndim != 1:
            raise InputError(f"detectors of one shot must have 1 dimension, got shape {shot.shape}")
        with limited_threads(self.settings.threads):
            found = self._predict_batch(self.packed(shot[None]))
        return ShotPrediction(
            found.observables[0],
            found.flips[0],
            float(found.doubt[0]),
            float(found.weight[0]),
            float(found.confidence[0]),
            bool(found.kept[0]),
        )

    def answer(self, detectors: NDArray[Any]) -> tuple[BitMatrix, NDArray[np.bool_] | None]:
        """Return predicted observables and which shots to keep, as sinter's methods want them."""
        found = self.predict(detectors)
        return found.observables, None if self.settings.postselect is None else found.kept

    def _predict_batch(self, packed: NDArray[np.uint8]) -> Prediction:
        if not len(packed):
            return self._nothing()
        bits = np.unpackbits(packed, axis=1, count=self.num_detectors, bitorder="little")
        syndromes = np.bitwise_xor.reduce(bits[:, self._own], axis=1)
        impossible = np.flatnonzero((syndromes @ self._redundancies.T & 1).any(axis=1))
        if impossible.size:
            raise InputError(
                f"detectors must be those of a {self.basis} memory, but no errors lead to those of shot "
                f"{impossible[0]} of a batch of {len(packed)}"
            )
        odds = self._log_odds(packed)
        flips, weight = self._search.decode(odds, syndromes)
        doubt = np.log1p(np.exp(-np.abs(odds.astype(np.float64)))).sum(axis=1)
        observables: BitMatrix = (flips @ self.logicals.T & 1).astype(np.uint8)
        if self.calibration is None:
            confidence = np.full(len(weight), np.nan)
        else:
            confidence = self.calibration.confidence(doubt, weight)
        least = self.settings.postselect
        kept = np.ones(len(weight), np.bool_) if least is None else confidence >= least
        return Prediction(observables, flips, doubt, weight, confidence, kept)

    def _log_odds(self, packed: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the network's log odds of net flips, shape ``(shots, n)``."""
        if self._fused is not None:
            return self._fused(self._layout.checks(torch.from_numpy(packed)).numpy())[1]
        device, half = torch.device(self.settings.device), self.settings.dtype == "bfloat16"
        with (
            torch.inference_mode(),
            torch.autocast(device.type, torch.bfloat16, enabled=half),
        ):
            checks = self._layout.checks(torch.from_numpy(packed).to(device))
            odds: NDArray[np.float32] = self._network.readout(checks, self.basis).float().cpu().numpy()
        return odds

    def _nothing(self) -> Prediction:
        """Return the answer to no shots at all; networks do not like empty batches."""
        k, n = self.logicals.shape
        return Prediction(
            np.zeros((0, k), dtype=np.uint8),
            np.zeros((0, n), dtype=np.uint8),
            np.zeros(0),
            np.zeros(0, dtype=np.float32),
            np.zeros(0),
            np.zeros(0, dtype=np.bool_),
        )


def _warn_of_stronger_noise(found: float, most: float, name: str) -> None:
    """Warn if there are more errors per shot than there were in training."""
    if found > NOISE_TOLERANCE * most:
        warnings.warn(
            f"the noise is {found / most:.2g} times as strong as the strongest in the training of {name}: "
            "expect more failures than a decoder trained for it would have",
            stacklevel=3,
        )
