"""Decoders by name: what each needs, and how it is set."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import sinter

from symdyn_core.errors import InputError, unknown
from symdyn_qec.baselines.beliefmatching import BeliefMatching
from symdyn_qec.baselines.bplsd import BpLsd
from symdyn_qec.baselines.bposd import BpOsd
from symdyn_qec.baselines.extra import EXTRA, require
from symdyn_qec.baselines.fusion import FusionBlossom
from symdyn_qec.baselines.matching import Matching
from symdyn_qec.baselines.relay import RelayBp
from symdyn_qec.baselines.tesseract import Tesseract
from symdyn_qec.min_sum_decoder import MinSumDecoder


@dataclass(frozen=True)
class DecoderInfo:
    """What has to be known about a decoder before it is used.

    Fields:
        make: returns the decoder; it does not need the package yet.
        settings: in words; a comparison without them is worth little.
        graphlike: whether it needs errors split into parts of at most two detectors.
        module: importable name of the package it needs, ``None`` if what symdyn-qec depends on suffices.
        install: what to install where the module is missing.
    """

    make: Callable[[], sinter.Decoder]
    settings: str
    graphlike: bool = False
    module: str | None = None
    install: str = EXTRA


def _symdyn(fast: bool) -> Callable[[], sinter.Decoder]:
    def make() -> sinter.Decoder:
        from symdyn_qec.decoder import SymdynDecoder  # torch takes a second to import

        return SymdynDecoder(fast=fast)

    return make


def _classes() -> sinter.Decoder:
    from symdyn_qec.class_decoder import ClassDecoder  # for torch's sake, as above

    return ClassDecoder()


def _built_in(name: str) -> Callable[[], sinter.Decoder]:
    return lambda: sinter.BUILT_IN_DECODERS[name]


# Decoders that know how sure they are.
CONFIDENT = ("symdyn", "symdyn-fast", "symdyn-matching", "min-sum")

DECODERS: Mapping[str, DecoderInfo] = {
    "symdyn": DecoderInfo(_symdyn(False), "the shipped network for the circuit"),
    "symdyn-fast": DecoderInfo(_symdyn(True), "the shipped small network for the circuit"),
    "symdyn-matching": DecoderInfo(
        _classes,
        "no network: the likelier class of explanations, summed around 8 matchings of each",
        graphlike=True,
    ),
    "min-sum": DecoderInfo(
        MinSumDecoder,
        "all detectors, in two sectors; versions until one answer is 4 votes ahead, at most 60",
    ),
    "bposd": DecoderInfo(
        BpOsd,
        "detectors of the observables; min-sum, adaptive, at most 1000 iterations; OSD-CS of order 7",
        module="ldpc",
    ),
    "bposd-full": DecoderInfo(
        lambda: BpOsd(one_sector=False),
        "all detectors; min-sum, adaptive, at most 1000 iterations; OSD-CS of order 7",
        module="ldpc",
    ),
    "bplsd": DecoderInfo(
        BpLsd,
        "detectors of the observables; min-sum, adaptive, at most 1000 iterations; LSD-CS of order 7",
        module="ldpc",
    ),
    "bplsd-full": DecoderInfo(
        lambda: BpLsd(one_sector=False),
        "all detectors; min-sum, adaptive, at most 1000 iterations; LSD-CS of order 7",
        module="ldpc",
    ),
    "relay-bp-5": DecoderInfo(
        RelayBp, "all detectors; the lightest of 5 solutions from at most 100 legs of 60", module="relay_bp"
    ),
    "relay-bp-1": DecoderInfo(
        lambda: RelayBp(solutions=1),
        "all detectors; the first solution from at most 100 legs of 60",
        module="relay_bp",
    ),
    "tesseract": DecoderInfo(
        Tesseract, "all detectors; its preset for a short beam", module="tesseract_decoder"
    ),
    "pymatching": DecoderInfo(Matching, "plain", graphlike=True, module="pymatching"),
    "pymatching-correlated": DecoderInfo(
        lambda: Matching(correlated=True), "correlated", graphlike=True, module="pymatching"
    ),
    "beliefmatching": DecoderInfo(
        BeliefMatching,
        "product-sum, at most 20 iterations, then matching",
        graphlike=True,
        module="beliefmatching",
    ),
    "fusion_blossom": DecoderInfo(FusionBlossom, "serial", graphlike=True, module="fusion_blossom"),
    "hypergraph_union_find": DecoderInfo(
        _built_in("hypergraph_union_find"), "as sinter has it", module="mwpf", install="mwpf"
    ),
    "mw_parity_factor": DecoderInfo(
        _built_in("mw_parity_factor"), "as sinter has it", module="mwpf", install="mwpf"
    ),
    "vacuous": DecoderInfo(_built_in("vacuous"), "predicts that no observable flips"),
}


def decoder_info(name: str) -> DecoderInfo:
    """Return what is known of a decoder, whether or not its package is installed.

    Args:
        name: in :data:`DECODERS`; or two of them with a plus between, one of :data:`CONFIDENT` that hands
            what it is not sure of to the other.

    Raises:
        InputError: unknown name, where the message suggests the nearest; or a first decoder that does not
            know how sure it is.

    >>> decoder_info("symdyn+relay-bp-5").module
    'relay_bp'
    """
    first, plus, second = name.partition("+")
    if plus:
        return _escalating(first, second)
    if name not in DECODERS:
        raise InputError(unknown("decoder", name, list(DECODERS)))
    return DECODERS[name]


def _escalating(first: str, second: str) -> DecoderInfo:
    if first not in CONFIDENT:
        raise InputError(f"only {', '.join(CONFIDENT)} know when to ask another decoder, got {first!r}")
    quick, slow = decoder_info(first), decoder_info(second)

    def make() -> sinter.Decoder:
        from symdyn_qec.escalation import EscalatingDecoder

        return EscalatingDecoder(quick.make(), slow.make())

    words = f"{quick.settings}; where that is not sure enough: {slow.settings}"
    return DecoderInfo(make, words, slow.graphlike, slow.module, slow.install)


def make_decoder(name: str) -> sinter.Decoder:
    """Return a decoder in its best configuration.

    Args:
        name: as for :func:`decoder_info`.

    Raises:
        InputError: as there.
        DependencyError: its package is not installed; the message says what to install.

    >>> make_decoder("pymatching-correlated")
    Matching(correlated=True)
    """
    info = decoder_info(name)
    if info.module is not None:
        require(info.module, name, info.install)
    return info.make()
