import pickle
from importlib.util import find_spec
from itertools import product

import numpy as np
import pytest
import sinter
import stim
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from symdyn_core.errors import DependencyError, InputError
from symdyn_qec import gf2
from symdyn_qec.baselines import bplsd, bposd, extra, tesseract
from symdyn_qec.baselines.beliefmatching import BeliefMatching
from symdyn_qec.baselines.bplsd import BpLsd
from symdyn_qec.baselines.bposd import BpOsd
from symdyn_qec.baselines.fusion import FusionBlossom
from symdyn_qec.baselines.matching import Matching
from symdyn_qec.baselines.problem import DecodingProblem
from symdyn_qec.baselines.rare import RareErrors
from symdyn_qec.baselines.registry import DECODERS, decoder_info, make_decoder
from symdyn_qec.baselines.relay import RelayBp
from symdyn_qec.baselines.sector import _by_connection, observable_sector
from symdyn_qec.baselines.tesseract import Tesseract
from symdyn_qec.circuits import error_model, memory_circuit
from symdyn_qec.mechanisms import Mechanisms

exactly = settings(derandomize=True, deadline=None, max_examples=40)

BASELINES = (
    BpOsd(),
    BpOsd(one_sector=False),
    BpLsd(),
    BpLsd(one_sector=False),
    RelayBp(),
    RelayBp(solutions=1),
    Tesseract(),
    Matching(),
    Matching(correlated=True),
    BeliefMatching(),
    FusionBlossom(),
)
MODULES = {
    BpOsd: "ldpc",
    BpLsd: "ldpc",
    RelayBp: "relay_bp",
    Tesseract: "tesseract_decoder",
    BeliefMatching: "beliefmatching",
    FusionBlossom: "fusion_blossom",
}
every_baseline = pytest.mark.parametrize(
    "decoder",
    [
        pytest.param(
            decoder,
            id=repr(decoder),
            marks=pytest.mark.skipif(
                find_spec(MODULES.get(type(decoder), "stim")) is None, reason="the extra is not installed"
            ),
        )
        for decoder in BASELINES
    ],
)


@pytest.fixture(scope="module")
def surface():
    circuit = memory_circuit("surface", distance=3, rounds=2, p=0.004)
    return error_model(circuit, "surface", graphlike=True)


def packed(bits):
    return np.packbits(np.asarray(bits, dtype=np.uint8), axis=1, bitorder="little")


def decode(decoder, dem, detectors):
    """Return the observables that a decoder predicts, as bits, after a round trip through pickle."""
    compiled = pickle.loads(pickle.dumps(decoder)).compile_decoder_for_dem(dem=dem)  # noqa: S301  # our own bytes
    found = compiled.decode_shots_bit_packed(bit_packed_detection_event_data=packed(detectors))
    return np.unpackbits(found, axis=1, count=dem.num_observables, bitorder="little")


def single_errors(dem):
    """Return the detectors and observables of every error by itself, bits."""
    found = Mechanisms.of(dem)
    detectors = np.zeros((len(found), dem.num_detectors + 1), dtype=np.uint8)
    np.put_along_axis(detectors, found.detectors.astype(np.int64), 1, axis=1)
    return detectors[:, :-1], found.observables


def distribution(dem, known_detectors=0, known_observables=0):
    """Return the exact probability of every pattern of detectors and observables, by enumeration."""
    errors = [
        (
            i.args_copy()[0],
            [t.val for t in i.targets_copy() if t.is_relative_detector_id()],
            [t.val for t in i.targets_copy() if t.is_logical_observable_id()],
        )
        for i in dem.flattened()
        if i.type == "error"
    ]
    found = {}
    for happens in product([0, 1], repeat=len(errors)):
        detectors = np.zeros(dem.num_detectors, np.uint8) ^ known_detectors
        observables = np.zeros(dem.num_observables, np.uint8) ^ known_observables
        weight = 1.0
        for bit, (p, flipped, logical) in zip(happens, errors, strict=True):
            weight *= p if bit else 1 - p
            np.bitwise_xor.at(detectors, flipped if bit else [], 1)
            np.bitwise_xor.at(observables, logical if bit else [], 1)
        key = (*detectors.tolist(), *observables.tolist())
        found[key] = found.get(key, 0.0) + weight
    return {key: weight for key, weight in found.items() if weight}


an_error = st.tuples(
    st.sampled_from([0.0, 0.1, 0.5, 0.6, 0.9, 1.0]),
    st.sets(st.integers(0, 3), min_size=1, max_size=3),
    st.sets(st.integers(0, 1), max_size=2),
)


def model(errors):
    lines = [
        f"error({p}) "
        + " ".join([*(f"D{d}" for d in sorted(detectors)), *(f"L{o}" for o in sorted(logical))])
        for p, detectors, logical in errors
    ]
    return stim.DetectorErrorModel("\n".join([*lines, "detector D3", "logical_observable L1"]))


@exactly
@given(st.lists(an_error, max_size=6))
def test_rare_errors_with_known_flips_are_the_same_model(errors):
    dem = model(errors)
    rare = RareErrors.of(dem)
    assert all(i.args_copy()[0] <= 0.5 for i in rare.model if i.type == "error")
    found, expected = distribution(rare.model, rare.detectors, rare.observables), distribution(dem)
    assert found.keys() == expected.keys()
    assert list(found.values()) == pytest.approx([expected[key] for key in found])


@exactly
@given(st.lists(an_error, max_size=6))
def test_columns_have_the_probability_of_an_odd_number_of_their_errors(errors):
    """The naive sum over all combinations of the errors with the same detectors."""
    rare = RareErrors.of(model(errors))
    problem = DecodingProblem.of(rare)
    groups = {}
    for instruction in rare.model:
        if instruction.type == "error":
            flipped = frozenset(t.val for t in instruction.targets_copy() if t.is_relative_detector_id())
            groups.setdefault(flipped, []).append(instruction.args_copy()[0])
    expected = {
        flipped: sum(
            np.prod([p if bit else 1 - p for bit, p in zip(bits, group, strict=True)])
            for bits in product([0, 1], repeat=len(group))
            if sum(bits) % 2
        )
        for flipped, group in groups.items()
    }
    columns = problem.checks.toarray().T
    found = {
        frozenset(problem.detectors[column == 1].tolist()): p
        for column, p in zip(columns, problem.priors, strict=True)
    }
    assert found == pytest.approx(expected)
    assert problem.rank == gf2.rank(columns.reshape(len(columns), -1)) if len(columns) else problem.rank == 0


def component_of_the_observables(circuit):
    """Return the detectors that Stim's decomposition into edges connects to an observable."""
    dem = circuit.detector_error_model(decompose_errors=True)
    edges, logical = [], []
    for detectors, observables in RareErrors.of(dem).parts():
        edges.append((detectors[0], detectors[-1]))
        logical += detectors if observables else []
    n = dem.num_detectors
    graph = sparse.coo_array((np.ones(len(edges)), np.array(edges).T), shape=(n, n))
    labels = sparse.csgraph.connected_components(graph, directed=False)[1]
    return np.isin(labels, labels[logical])


@pytest.mark.parametrize("basis", ["X", "Z"])
@pytest.mark.parametrize("code", ["surface", "surface-unrotated"])
def test_the_sector_is_what_stim_connects_to_the_observables(code, basis):
    circuit = memory_circuit(code, distance=3, rounds=3, p=0.01, basis=basis)
    kept = observable_sector(error_model(circuit, code))
    assert (kept == component_of_the_observables(circuit)).all()
    assert 0 < kept.sum() < len(kept)


@pytest.mark.parametrize(("basis", "kind"), [("X", 0), ("Z", 1)])
def test_the_sector_of_a_bicycle_code_is_the_checks_of_its_basis(basis, kind):
    dem = error_model(memory_circuit("bb72", rounds=2, p=0.01, basis=basis), "bb72")
    kinds = np.array([place[3] for _, place in sorted(dem.get_detector_coordinates().items())])
    assert (observable_sector(dem) == (kinds == kind)).all()
    # Without looking at coordinates, too.
    assert (_by_connection(Mechanisms.of(dem)) == (kinds == kind)).all()


def test_all_detectors_are_kept_where_all_are_needed():
    color = error_model(memory_circuit("color", distance=3, rounds=2, p=0.01), "color")
    assert observable_sector(color).all()
    both = stim.DetectorErrorModel("error(0.1) D0 L0\nerror(0.1) D1 L1\nerror(0.1) D0 D1 L0 L1")
    assert observable_sector(both).all()
    ambiguous = stim.DetectorErrorModel("error(0.1) D0 L0\nerror(0.1) D0\nerror(0.1) D1\nerror(0.1) D0 D1")
    assert observable_sector(ambiguous).all()


def test_the_problem_of_one_sector_is_the_published_size():
    dem = error_model(memory_circuit("bb72", rounds=6, p=0.003), "bb72")
    assert DecodingProblem.of(RareErrors.of(dem), one_sector=True).checks.shape == (252, 2232)


@every_baseline
def test_single_errors_are_corrected(decoder, surface):
    """A code of distance 3 allows it; some take two likely errors for one unlikely error, rarely."""
    detectors, observables = single_errors(surface)
    wrong = (decode(decoder, surface, detectors) != observables).any(axis=1)
    assert len(wrong) == 107
    assert wrong.sum() <= (3 if decoder in (RelayBp(solutions=1), BeliefMatching()) else 0)
    assert observables.sum() == 17  # what not decoding fails on


@every_baseline
def test_the_usual_case_is_that_nothing_happens(decoder, surface):
    assert not decode(decoder, surface, np.zeros((3, surface.num_detectors))).any()
    assert decode(decoder, surface, np.zeros((0, surface.num_detectors))).shape == (0, 1)


@every_baseline
def test_an_error_likelier_than_not_is_its_absence(decoder, surface):
    """Replacing p by 1 - p flips what goes in and what comes out, and nothing else."""
    detectors, _ = single_errors(surface)
    turned, known, follows = stim.DetectorErrorModel(), np.zeros(surface.num_detectors, np.uint8), 0
    for index, instruction in enumerate(surface.flattened()):
        if instruction.type == "error" and index % 3 == 0:
            for target in instruction.targets_copy():
                if target.is_relative_detector_id():
                    known[target.val] ^= 1
                elif target.is_logical_observable_id():
                    follows ^= 1
            turned.append("error", 1 - instruction.args_copy()[0], instruction.targets_copy())
        else:
            turned.append(instruction)
    assert known.any()
    expected = decode(decoder, surface, detectors) ^ follows
    assert (decode(decoder, turned, detectors ^ known) == expected).all()


@every_baseline
def test_errors_without_detectors_change_nothing(decoder, surface):
    detectors, _ = single_errors(surface)
    more = surface + stim.DetectorErrorModel("error(0.01) L0\nerror(0) D0 D1")
    assert (decode(decoder, more, detectors) == decode(decoder, surface, detectors)).all()


@every_baseline
def test_a_model_without_errors_predicts_no_flips(decoder):
    dem = stim.DetectorErrorModel("detector D8\nlogical_observable L9")
    assert decode(decoder, dem, np.zeros((2, 9))).tolist() == [[0] * 10] * 2


@every_baseline
@pytest.mark.parametrize(
    "shots",
    [
        np.zeros((1, 16), np.uint8),
        np.zeros((1, 2), np.bool_),
        np.zeros(2, np.uint8),
        np.zeros((1, 3), np.uint8),
    ],
)
def test_shots_that_are_not_packed_are_refused(decoder, surface, shots):
    compiled = decoder.compile_decoder_for_dem(dem=surface)
    with pytest.raises(InputError, match=r"must be packed, uint8 of shape \(shots, 2\), got"):
        compiled.decode_shots_bit_packed(bit_packed_detection_event_data=shots)


@pytest.mark.parametrize("decoder", [Matching(), BeliefMatching(), FusionBlossom()], ids=repr)
def test_matching_refuses_errors_that_are_not_split(decoder):
    pytest.importorskip(MODULES.get(type(decoder), "pymatching"))
    with pytest.raises(InputError, match="parts of at most two detectors for matching, got one of 3"):
        decoder.compile_decoder_for_dem(dem=stim.DetectorErrorModel("error(0.1) D0 D1 D2 L0"))


def test_errors_split_or_whole_are_the_same_to_decoders_that_do_not_match():
    circuit = memory_circuit("surface", distance=3, rounds=2, p=0.004)
    split, whole = (RareErrors.of(error_model(circuit, "a", graphlike=graph)) for graph in (True, False))
    assert distribution_of(split.whole()) == distribution_of(whole.model)


def distribution_of(dem):
    found = Mechanisms.of(dem)
    rows = zip(map(tuple, found.detectors.tolist()), map(tuple, found.observables.tolist()), strict=True)
    return dict(zip(rows, map(pytest.approx, found.probabilities.tolist()), strict=True))


class Recorder:
    """Stands for a package's decoder and keeps what it was made with."""

    def __init__(self):
        self.settings = {}

    def BpOsdDecoder(self, checks, **settings):  # as ldpc names it
        self.settings = settings
        return self

    BpLsdDecoder = BpOsdDecoder

    def decode(self, syndrome):
        return np.zeros(3, dtype=np.uint8)


@pytest.mark.parametrize(
    ("free", "expected"), [("error(0.1) D0 D1\nerror(0.1) D0 D2", 2), ("error(0.1) D0 D1", 1), ("", 0)]
)
@pytest.mark.parametrize(("module", "decoder", "name"), [(bposd, BpOsd(), "osd"), (bplsd, BpLsd(), "lsd")])
def test_the_order_is_at_most_the_number_of_free_columns(monkeypatch, module, decoder, name, free, expected):
    """ldpc writes beyond its memory otherwise."""
    recorder = Recorder()
    monkeypatch.setattr(module, "load", lambda *_: recorder)
    dem = stim.DetectorErrorModel("error(0.1) D0 L0\nerror(0.1) D1\nerror(0.1) D2\n" + free)
    decoder.compile_decoder_for_dem(dem=dem)
    assert recorder.settings[f"{name}_order"] == expected
    assert recorder.settings[f"{name}_method"].endswith("_CS" if expected else "_0")
    assert (recorder.settings["max_iter"], recorder.settings["ms_scaling_factor"]) == (1000, 0.0)


def test_shots_that_a_search_gives_up_on_are_discarded(monkeypatch, surface):
    class GivesUp:
        low_confidence_flag = False

        def make_tesseract_sinter_decoders_dict(self):
            return {"tesseract-short-beam": self}

        def compile_decoder_for_dem(self, *, dem):
            return self

        @property
        def decoder(self):
            return self

        def decode(self, shot):
            self.low_confidence_flag = bool(shot.any())
            return np.array([shot.any()])

    monkeypatch.setattr(tesseract, "load", lambda *_: GivesUp())
    compiled = Tesseract().compile_decoder_for_dem(dem=surface)
    found = compiled.decode_shots_bit_packed(
        bit_packed_detection_event_data=np.array([[0, 0], [4, 0]], np.uint8)
    )
    assert found.tolist() == [[0, 0], [1, 1]]


def test_every_name_makes_a_sinter_decoder():
    for name, info in DECODERS.items():
        if info.module is None or find_spec(info.module):
            decoder = make_decoder(name)
            assert isinstance(decoder, sinter.Decoder)
            assert type(pickle.loads(pickle.dumps(decoder))) is type(decoder)  # noqa: S301  # our own bytes
        assert info.settings


def test_the_best_configuration_is_the_default_one():
    assert make_decoder("bposd") == BpOsd(one_sector=True, iterations=1000, order=7)
    assert make_decoder("bposd-full") == BpOsd(one_sector=False)
    assert make_decoder("relay-bp-1") == RelayBp(1, 100, 60, 0.125, (-0.24, 0.66))


def test_relay_bp_answers_the_same_whatever_it_decoded_before():
    pytest.importorskip("relay_bp")
    circuit = memory_circuit("bb72", p=0.01, rounds=1)
    compiled = RelayBp(solutions=2, sets=10).compile_decoder_for_dem(dem=circuit.detector_error_model())
    shots = circuit.compile_detector_sampler(seed=1).sample(40, bit_packed=True)

    def decode(some):
        return compiled.decode_shots_bit_packed(bit_packed_detection_event_data=some)

    together = decode(shots)
    assert np.array_equal(decode(shots), together)
    assert np.array_equal(np.concatenate([decode(shots[k : k + 1]) for k in range(40)]), together)


def test_unknown_names_get_a_suggestion():
    with pytest.raises(InputError, match="unknown decoder 'bp-osd'; did you mean bposd"):
        decoder_info("bp-osd")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bposd", r"bposd needs the package ldpc: pip install 'symdyn-qec\[baselines\]'"),
        ("fusion_blossom", r"needs the package fusion-blossom: pip install 'symdyn-qec\[baselines\]'"),
        ("hypergraph_union_find", "needs the package mwpf: pip install 'mwpf'"),
    ],
)
def test_a_missing_package_is_named(monkeypatch, name, message):
    monkeypatch.setattr(extra, "find_spec", lambda module: None)
    with pytest.raises(DependencyError, match=message):
        make_decoder(name)
    assert isinstance(make_decoder("vacuous"), sinter.Decoder)


@pytest.mark.parametrize(
    "decoder", [BpOsd(), BpLsd(), RelayBp(), Tesseract(), BeliefMatching(), FusionBlossom()]
)
def test_a_missing_package_is_named_without_the_registry(monkeypatch, surface, decoder):
    monkeypatch.setattr(extra, "find_spec", lambda module: None)
    with pytest.raises(DependencyError, match="pip install 'symdyn-qec"):
        decoder.compile_decoder_for_dem(dem=surface)
