r"""Sliding windows: decode an experiment of any length while it is running.

A window covers ``commit + buffer`` rounds. Its decoder explains all that it sees by error mechanisms, but
only those that begin in the first ``commit`` rounds are final: their observables are added up, and what they
do to later detectors is taken away. Then the window moves on by ``commit`` rounds. The buffer lets the final
rounds see what comes after them; without it every border costs accuracy.

All detectors of the final rounds are explained exactly, as mechanisms that begin later do not reach back.

Source: the overlapping recovery of Dennis et al., quant-ph/0110143; Skoric et al., arXiv 2209.08552.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import numpy as np
import sinter
import stim
from numpy.typing import NDArray
from scipy import sparse

from symdyn_core.errors import InputError
from symdyn_qec import gf2
from symdyn_qec.baselines.extra import load
from symdyn_qec.baselines.rare import RareErrors

Bits = NDArray[np.uint8]


class MechanismDecoder(Protocol):
    """Explains syndromes by error mechanisms."""

    def __call__(self, syndromes: Bits) -> Bits:
        """Return which mechanisms happened.

        Args:
            syndromes: bits, shape ``(shots, detectors)``.

        Returns:
            Bits, shape ``(shots, mechanisms)``, that have these syndromes.
        """


# From a check matrix, shape (detectors, mechanisms), and the mechanisms' probabilities.
Inner = Callable[[sparse.csc_matrix, NDArray[np.float64]], MechanismDecoder]


def matching(checks: sparse.csc_matrix, priors: NDArray[np.float64]) -> MechanismDecoder:
    """Return PyMatching as the decoder of a window; mechanisms flip at most two detectors."""
    import pymatching

    most = int(np.diff(checks.indptr).max(initial=0))
    if most > 2:
        raise InputError(
            f"matching needs errors split into parts of at most two detectors, got one of {most}; "
            "ask Stim for decompose_errors=True"
        )
    graph = pymatching.Matching.from_check_matrix(checks, weights=np.log((1 - priors) / priors))

    def decode(syndromes: Bits) -> Bits:
        found: Bits = graph.decode_batch(syndromes)
        return found

    return decode


def bposd(checks: sparse.csc_matrix, priors: NDArray[np.float64]) -> MechanismDecoder:
    """Return BP-OSD as the decoder of a window, set as :class:`~symdyn_qec.baselines.bposd.BpOsd` is."""
    order = min(7, checks.shape[1] - gf2.rank(checks.toarray()))
    decoder = load("ldpc", "windows of bposd").BpOsdDecoder(
        checks.tocsr(),
        error_channel=priors.tolist(),
        max_iter=1000,
        bp_method="minimum_sum",
        ms_scaling_factor=0.0,
        osd_method="OSD_CS" if order else "OSD_0",
        osd_order=order,
    )

    def decode(syndromes: Bits) -> Bits:
        return np.stack([decoder.decode(syndrome) for syndrome in syndromes]).astype(np.uint8)

    return decode


INNER: dict[str, Inner] = {"pymatching": matching, "bposd": bposd}


@dataclass(frozen=True)
class WindowedDecoder(sinter.Decoder):  # type: ignore[misc]  # sinter has no types
    """A decoder in sliding windows, for sinter or round by round.

    Args:
        commit: rounds that a window makes final, at least 1.
        buffer: rounds that it looks further, at least 0; about the code's distance is enough.
        inner: "pymatching", for errors split into parts of at most two detectors; "bposd", which takes errors
            whole; or your own, which gets the parts that the model has.
        time: which of a detector's coordinates is its round; by default the last, as Stim's own circuits have
            it. In those of :mod:`symdyn_qec.circuits` for bicycle codes it is 2.

    Raises:
        InputError: a value out of range or an unknown inner decoder.
    """

    commit: int
    buffer: int
    inner: str | Inner = "pymatching"
    time: int = -1

    def __post_init__(self) -> None:
        if self.commit < 1 or self.buffer < 0:
            raise InputError(
                f"commit must be at least 1 and buffer at least 0, got {self.commit} and {self.buffer}"
            )
        if not callable(self.inner) and self.inner not in INNER:
            raise InputError(f"inner must be {' or '.join(INNER)} or a function, got {self.inner!r}")

    def compile_decoder_for_dem(self, *, dem: stim.DetectorErrorModel) -> "CompiledWindowedDecoder":
        """Cut a detector error model into windows.

        Raises:
            InputError: a detector without the coordinate, errors that flip observables but no detector, or
                errors that the inner decoder cannot work with.
        """
        return CompiledWindowedDecoder(self, dem)


@dataclass(frozen=True, eq=False)
class _Window:
    """One window: what it sees, what explains it, and what of that is final."""

    stop: int
    detectors: NDArray[np.int64]
    decode: MechanismDecoder
    # Of the window's mechanisms, those that begin in its final rounds, and what each of them flips anywhere.
    final: NDArray[np.int64]
    flips: sparse.csr_matrix


class CompiledWindowedDecoder(sinter.CompiledDecoder):  # type: ignore[misc]  # sinter has no types
    """The windows of a circuit; made by :class:`WindowedDecoder`."""

    def __init__(self, settings: WindowedDecoder, dem: stim.DetectorErrorModel) -> None:
        self.num_detectors, self.num_observables = dem.num_detectors, dem.num_observables
        self.rounds = _rounds(dem, settings.time)
        self.num_rounds = int(self.rounds.max(initial=-1)) + 1
        # Errors that happen more often than not are rare errors and known flips.
        rare = RareErrors.of(dem)
        self._known = rare.detectors, rare.observables
        inner = settings.inner if callable(settings.inner) else INNER[settings.inner]
        checks, logicals, priors = _mechanisms(dem, whole=inner is bposd)
        flips = sparse.hstack([checks.T, logicals.T], format="csr")
        first = np.array(
            [self.rounds[column].min() for column in np.split(checks.indices, checks.indptr[1:-1])]
        )
        # In the middle of a long experiment all windows look alike.
        known: dict[tuple[int, bytes, bytes, bytes], MechanismDecoder] = {}
        self.windows = []
        for start in range(0, max(self.num_rounds, 1), settings.commit):
            stop = min(start + settings.commit + settings.buffer, self.num_rounds)
            last = stop == self.num_rounds
            seen = np.flatnonzero((self.rounds >= start) & (self.rounds < stop))
            inside = np.flatnonzero((first >= start) & (first < stop))
            part, likeliest, odd = _distinct(checks[seen][:, inside], priors[inside])
            mechanisms = inside[likeliest]
            key = len(seen), part.indices.tobytes(), part.indptr.tobytes(), odd.tobytes()
            if key not in known:
                known[key] = inner(part, odd)
            final = np.flatnonzero((first[mechanisms] < start + settings.commit) | last)
            self.windows.append(_Window(stop, seen, known[key], final, flips[mechanisms[final]]))
            if last:
                break

    def session(self, shots: int = 1) -> "Session":
        """Begin an experiment, or as many at once as there are shots.

        Raises:
            InputError: fewer than one shot.
        """
        if shots < 1:
            raise InputError(f"shots must be at least 1, got {shots}")
        return Session(self, shots)

    def decode_shots_bit_packed(
        self, *, bit_packed_detection_event_data: NDArray[np.uint8]
    ) -> NDArray[np.uint8]:
        """Decode for sinter.

        Args:
            bit_packed_detection_event_data: ``uint8``, little endian, shape ``(shots, ceil(detectors / 8))``.

        Returns:
            Observables, ``uint8``, little endian, shape ``(shots, ceil(k / 8))``.

        Raises:
            InputError: shots of another type or width.
        """
        packed, width = bit_packed_detection_event_data, -(-self.num_detectors // 8)
        if packed.ndim != 2 or packed.dtype != np.uint8 or packed.shape[1] != width:
            raise InputError(
                f"bit_packed_detection_event_data must be packed, uint8 of shape (shots, {width}), "
                f"got {packed.dtype} of shape {packed.shape}"
            )
        bits = np.unpackbits(packed, axis=1, count=self.num_detectors, bitorder="little")
        if not len(bits):
            return np.zeros((0, -(-self.num_observables // 8)), dtype=np.uint8)
        session = self.session(len(bits))
        for number in range(self.num_rounds):
            session.push(bits[:, self.rounds == number])
        return np.packbits(session.observables, axis=1, bitorder="little")

    def start(self, shots: int) -> tuple[Bits, Bits]:
        """Return the detectors and observables that are flipped before anything is measured."""
        detectors, observables = (np.tile(known, (shots, 1)) for known in self._known)
        return detectors, observables


class Session:
    """An experiment on its way; made by :meth:`CompiledWindowedDecoder.session`.

    Fields:
        observables: flips that are final so far, bits, shape ``(shots, k)``.
        rounds: that have been pushed.
        residual: detectors not explained so far, bits, shape ``(shots, detectors)``; zero at the end.
    """

    def __init__(self, compiled: CompiledWindowedDecoder, shots: int) -> None:
        self._compiled, self._next = compiled, 0
        self.rounds = 0
        self.residual, self.observables = compiled.start(shots)

    def push(self, detectors: NDArray[np.uint8]) -> Bits:
        """Take the detectors of the next round; decode the windows that are complete with it.

        Args:
            detectors: of this round, in the circuit's order, bits, shape ``(shots, detectors of the round)``.

        Returns:
            The observables that are final so far.

        Raises:
            InputError: another shape, or a round too many.
        """
        compiled = self._compiled
        if self.rounds == compiled.num_rounds:
            raise InputError(f"the experiment has {compiled.num_rounds} rounds, and all are there")
        places = np.flatnonzero(compiled.rounds == self.rounds)
        if detectors.shape != (len(self.residual), len(places)):
            raise InputError(
                f"round {self.rounds} must have detectors of shape {(len(self.residual), len(places))}, "
                f"got {detectors.shape}"
            )
        # Mechanisms that are final may have reached into this round.
        self.residual[:, places] ^= detectors.astype(np.uint8)
        self.rounds += 1
        while self._next < len(compiled.windows) and compiled.windows[self._next].stop <= self.rounds:
            self._decode(compiled.windows[self._next])
            self._next += 1
        return self.observables

    def _decode(self, window: _Window) -> None:
        happened = window.decode(self.residual[:, window.detectors])[:, window.final]
        flips = (happened @ window.flips).astype(np.uint8) & 1
        self.residual ^= flips[:, : self._compiled.num_detectors]
        # Anew, as the caller may have kept what was final before.
        self.observables = self.observables ^ flips[:, self._compiled.num_detectors :]


def _rounds(dem: stim.DetectorErrorModel, time: int) -> NDArray[np.int64]:
    """Return the round of every detector, counted from zero."""
    places = dem.get_detector_coordinates()
    values = []
    for detector in range(dem.num_detectors):
        place = places.get(detector, [])
        if not -len(place) <= time < len(place):
            raise InputError(
                f"detector {detector} must have a coordinate number {time} that tells its round, got {place}"
            )
        values.append(place[time])
    return np.unique(np.array(values), return_inverse=True)[1].reshape(-1)


def _mechanisms(
    dem: stim.DetectorErrorModel, whole: bool
) -> tuple[sparse.csc_matrix, sparse.csc_matrix, NDArray[np.float64]]:
    """Return checks and observables of errors or their parts, one column each, and their probabilities."""
    merged: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = {}
    for instruction in dem.flattened():
        if instruction.type != "error":
            continue
        p = min(instruction.args_copy()[0], 1 - instruction.args_copy()[0])
        parts = instruction.target_groups() if p else []
        for part in [list(chain.from_iterable(parts))] if whole else parts:
            detectors, observables = set[int](), set[int]()
            for target in part:
                (detectors if target.is_relative_detector_id() else observables).symmetric_difference_update(
                    {target.val}
                )
            if observables and not detectors:
                raise InputError(f"errors must flip a detector, got {instruction}")
            if detectors:
                key = tuple(sorted(detectors)), tuple(sorted(observables))
                q = merged.get(key, 0.0)
                merged[key] = p * (1 - q) + q * (1 - p)
    shapes = (dem.num_detectors, dem.num_observables)
    columns = (
        sparse.csc_matrix(
            (
                np.ones(sum(len(key[kind]) for key in merged), dtype=np.uint8),
                np.array([row for key in merged for row in key[kind]], dtype=np.int64),
                np.cumsum([0, *(len(key[kind]) for key in merged)]),
            ),
            shape=(shapes[kind], len(merged)),
        )
        for kind in range(2)
    )
    # Of probability 1/2, a mechanism would have no weight.
    return *columns, np.minimum(np.array(list(merged.values())), 0.5 - 1e-12)


def _distinct(
    checks: sparse.csc_matrix, priors: NDArray[np.float64]
) -> tuple[sparse.csc_matrix, NDArray[np.int64], NDArray[np.float64]]:
    """Return the columns that a window can tell apart.

    Returns:
        The columns; of each kind the likeliest, by its number; the probability that an odd number of the
        kind happen.
    """
    checks.sort_indices()
    kinds: dict[bytes, list[int]] = {}
    for column, rows in enumerate(np.split(checks.indices, checks.indptr[1:-1])):
        kinds.setdefault(rows.tobytes(), []).append(column)
    likeliest = np.array([max(same, key=priors.__getitem__) for same in kinds.values()], dtype=np.int64)
    odd = np.array([(1 - np.prod(1 - 2 * priors[same])) / 2 for same in kinds.values()])
    return checks[:, likeliest], likeliest, odd
