"""Several decoders on the same shots of one circuit, in this process, each until its limits."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import sinter

from symdyn_core.errors import DependencyError, InputError
from symdyn_core.random import derive_seed
from symdyn_qec.baselines.registry import decoder_info, make_decoder
from symdyn_qec.entrant import Entrant, Limits, Packed
from symdyn_qec.experiment import Experiment
from symdyn_qec.pairing import Paired
from symdyn_qec.results import Result
from symdyn_qec.timing import Stopwatch

# Shots are drawn in blocks, so that no more of them are ever kept than one block.
BLOCK = 1024

# Shots of another stream, decoded before the clock runs: some decoders compile themselves at first use.
WARM_UP_SHOTS, WARM_UP_SECONDS = 64, 1.0

# Why a decoder is left out of a comparison.
Refusal = InputError | DependencyError


def shot_blocks(case: Experiment, seed: int, purpose: str = "shots") -> Iterator[tuple[Packed, Packed]]:
    """Yield blocks of shots of a circuit, detectors and observables, packed; the same for the same seed.

    Seeds depend on the circuit as well, so that circuits of one benchmark have independent shots. Stim
    promises the same shots only on the same kind of machine and in the same version.
    """
    digest = hashlib.sha256(str(case.circuit).encode()).hexdigest()
    sampler = case.circuit.compile_detector_sampler(seed=derive_seed(seed, purpose, digest))
    while True:
        yield sampler.sample(BLOCK, separate_observables=True, bit_packed=True)


def compare_on(
    case: Experiment,
    names: Sequence[str],
    limits: Limits,
    seed: int,
    custom_decoders: Mapping[str, sinter.Decoder],
    report: Callable[[float], None],
) -> tuple[list[Result], list[Refusal]]:
    """Decode shots of a circuit with several decoders.

    Decoders take turns block by block, so that a busy machine is busy for all. Where the first one has had
    enough, the others go on without being compared with it.

    Args:
        case: the circuit.
        names: of the decoders; the others are compared with the first one.
        limits: for each of them.
        seed: of the shots.
        custom_decoders: those that are not in the registry.
        report: called with the part of the work that is done, in [0, 1].

    Returns:
        A row for each decoder, and why some were skipped.
    """
    entrants: dict[str, Entrant] = {}
    refused: dict[str, Refusal] = {}
    for name in names:
        try:
            entrants[name] = _enter(case, name, limits, seed, custom_decoders)
        except (InputError, DependencyError) as error:
            refused[name] = error

    def progress() -> None:
        report(sum(entrant.progress for entrant in entrants.values()) / len(entrants))

    reference = entrants.get(names[0])
    for detectors, observables in shot_blocks(case, seed):
        active = [entrant for entrant in entrants.values() if entrant.progress < 1]
        if not active:
            break
        for entrant in active:
            entrant.work(detectors, observables, progress)
        if reference in active:
            for entrant in active:
                entrant.pair(reference)
    rows = []
    for name in names:
        graphlike = _graphlike(name, custom_decoders)
        if name in refused:
            rows.append(_row(case, name, seed, skipped=str(refused[name])))
        else:
            strong_id = case.task(name, graphlike, seed=seed).strong_id()
            rows.append(_row(case, name, seed, entrants[name], names[0], strong_id))
    return rows, list(refused.values())


def _enter(
    case: Experiment, name: str, limits: Limits, seed: int, custom_decoders: Mapping[str, sinter.Decoder]
) -> Entrant:
    """Make a decoder ready for a circuit."""
    decoder = custom_decoders[name] if name in custom_decoders else make_decoder(name)
    dem, watch = case.model(_graphlike(name, custom_decoders)), Stopwatch()
    compiled = watch.construct(lambda: decoder.compile_decoder_for_dem(dem=dem))
    detectors, _ = next(shot_blocks(case, seed, "warm-up"))
    watch.construct(lambda: _warm_up(compiled, detectors[:WARM_UP_SHOTS]))
    return Entrant(name, compiled, case.circuit.num_observables, limits, watch)


def _warm_up(compiled: sinter.CompiledDecoder, detectors: Packed) -> None:
    start = time.thread_time()
    for index in range(len(detectors)):
        compiled.decode_shots_bit_packed(bit_packed_detection_event_data=detectors[index : index + 1])
        if time.thread_time() - start > WARM_UP_SECONDS:
            return
    compiled.decode_shots_bit_packed(bit_packed_detection_event_data=detectors)


def _graphlike(name: str, custom_decoders: Mapping[str, sinter.Decoder]) -> bool:
    return name not in custom_decoders and decoder_info(name).graphlike


def _row(
    case: Experiment,
    name: str,
    seed: int,
    entrant: Entrant | None = None,
    reference: str = "",
    strong_id: str = "",
    skipped: str = "",
) -> Result:
    paired = None
    if entrant is not None and name != reference and entrant.paired_shots:
        paired = Paired(reference, entrant.paired_shots, entrant.only_this, entrant.only_reference)
    return Result(
        circuit=case.name,
        decoder=name,
        distance=case.distance,
        rounds=case.rounds,
        p=case.p,
        observables=case.circuit.num_observables,
        shots=entrant.shots if entrant else 0,
        errors=entrant.errors if entrant else 0,
        discards=entrant.discards if entrant else 0,
        seconds=entrant.watch.decoding if entrant else 0.0,
        strong_id=strong_id,
        seed=seed,
        timing=entrant.watch.read() if entrant else None,
        paired=paired,
        skipped=skipped,
    )
