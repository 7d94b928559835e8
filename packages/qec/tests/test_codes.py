import numpy as np
import pytest

from symdyn_core.errors import InputError
from symdyn_qec import gf2
from symdyn_qec.codes import NAMED, BivariateBicycleCode, CSSCode, bivariate_bicycle, toric

# [[n, k, d]] as published (arXiv 2308.07915).
PUBLISHED = {
    "bb72": (72, 12, 6),
    "bb90": (90, 8, 10),
    "bb108": (108, 8, 10),
    "bb144": (144, 12, 12),
    "bb288": (288, 12, 18),
}


@pytest.fixture(scope="module")
def bb72():
    return bivariate_bicycle("bb72")


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_named_codes_have_their_published_parameters(name):
    code = bivariate_bicycle(name)
    n, k, distance = PUBLISHED[name]
    assert (code.n, code.k) == (n, k)
    # The search bounds the distance from above; a lighter operator would refute the published one.
    assert code.logicals("Z").sum(axis=1).min() == distance


def test_the_check_matrices_are_the_formula():
    """The matrices as written in the source, from Kronecker products of cyclic shifts."""
    one = np.eye(6, dtype=int)
    step = np.roll(one, 1, axis=1)
    x, y = np.kron(step, one), np.kron(one, step)
    power = np.linalg.matrix_power
    a = power(x, 3) + y + power(y, 2)
    b = power(y, 3) + x + power(x, 2)
    code = bivariate_bicycle("bb72")
    assert (code.hx == np.hstack([a, b])).all()
    assert (code.hz == np.hstack([b.T, a.T])).all()


@pytest.mark.parametrize("basis", ["X", "Z"])
@pytest.mark.parametrize("name", ["bb72", "bb90"])
def test_logicals_commute_with_the_checks_and_are_independent_of_them(name, basis):
    code = bivariate_bicycle(name)
    logicals = code.logicals(basis).astype(int)
    opposite = "Z" if basis == "X" else "X"
    assert logicals.shape == (code.k, code.n)
    assert not (logicals @ code.checks(opposite).T % 2).any()
    assert gf2.rank(np.vstack([code.checks(basis), logicals])) == gf2.rank(code.checks(basis)) + code.k


def test_x_and_z_logicals_pair_up(bb72):
    """Independent logical operators of k qubits: their commutation matrix is invertible."""
    assert gf2.rank(bb72.logicals("X").astype(int) @ bb72.logicals("Z").T % 2) == bb72.k


def test_logicals_are_the_same_every_time():
    first, second = (BivariateBicycleCode(*NAMED["bb72"]) for _ in range(2))
    assert (first.logicals("X") == second.logicals("X")).all()


def test_translations_permute_the_checks(bb72):
    for shift in bb72.shifts():
        cells = bb72.shifted_cells(shift)
        for checks in (bb72.hx, bb72.hz):
            assert (bb72.translate(checks, shift) == checks[cells]).all()


def test_translations_form_a_group(bb72):
    vector = bb72.logicals("Z")
    there_and_back = bb72.translate(bb72.translate(vector, (2, 5)), (-2, -5))
    assert (there_and_back == vector).all()
    assert (bb72.translate(vector, (2, 5)) == bb72.translate(bb72.translate(vector, (1, 0)), (1, 5))).all()
    assert (bb72.translates(vector[0])[0] == vector[0]).all()


@pytest.mark.parametrize(("name", "seeds", "weight"), [("bb72", 3, 6), ("bb144", 2, 12)])
def test_translates_of_the_seeds_generate_all_logicals(name, seeds, weight):
    code = bivariate_bicycle(name)
    found = code.seed_logicals("Z")
    assert found.shape == (seeds, code.n)
    assert (found.sum(axis=1) == weight).all()
    frame = np.vstack([code.translates(seed) for seed in found])
    assert gf2.rank(np.vstack([code.hz, frame])) == gf2.rank(code.hz) + code.k


def test_seeds_are_light_logical_operators_kept_for_the_next_call(bb72):
    seeds = bb72.seed_logicals("X")
    assert seeds is bb72.seed_logicals("X")
    assert not (seeds.astype(int) @ bb72.hz.T % 2).any()
    with pytest.raises(ValueError, match="read-only"):
        seeds[0, 0] = 1


def test_translates_are_the_translations_of_one_support(bb72):
    seed = bb72.seed_logicals("Z")[0]
    expected = np.vstack([bb72.translate([seed], shift) for shift in bb72.shifts()])
    assert (bb72.translates(seed) == expected).all()


def test_the_toric_code_has_its_published_parameters():
    for distance in (2, 3, 5):
        code = toric(distance)
        assert (code.n, code.k) == (2 * distance**2, 2)
        assert code.logicals("X").sum(axis=1).min() == distance
        assert (code.hx.sum(axis=1) == 4).all()


def test_translates_of_one_seed_are_not_enough(bb72):
    frame = bb72.translates(bb72.seed_logicals("Z")[0])
    assert gf2.rank(np.vstack([bb72.hz, frame])) - gf2.rank(bb72.hz) <= 6


def test_any_css_code():
    hamming = [[1, 0, 1, 0, 1, 0, 1], [0, 1, 1, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1, 1]]
    steane = CSSCode(hamming, hamming)
    assert (steane.n, steane.k) == (7, 1)
    assert steane.logicals("X").sum() == 3


def test_a_code_without_logical_qubits_has_no_logicals():
    code = CSSCode(hx=[[1, 1]], hz=[[1, 1]])
    assert code.k == 0
    assert code.logicals("Z").shape == (0, 2)


def test_matrices_cannot_be_changed_behind_the_codes_back(bb72):
    with pytest.raises(ValueError, match="read-only"):
        bb72.hx[0, 0] = 1


def test_repr_makes_the_code_again():
    for name in NAMED:
        code = bivariate_bicycle(name)
        again = eval(repr(code))
        assert (again.hx == code.hx).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CSSCode([[1, 1]], [[1, 0]]), "X 0 and Z 0 do not"),
        (lambda: CSSCode([[1, 1]], [[1, 1, 0]]), "equally wide, got 2 and 3"),
        (lambda: BivariateBicycleCode(0, 6, "1", "1"), "at least 1, got 0 and 6"),
        (lambda: BivariateBicycleCode(6, 6, "x^3 + z", "1"), "must look like x\\^3 \\+ y \\+ y\\^2"),
        (lambda: BivariateBicycleCode(6, 6, "x + ", "1"), "must look like"),
        (lambda: BivariateBicycleCode(6, 6, "x + x^7", "1"), "must differ on a torus of 6 x 6 cells"),
        (lambda: bivariate_bicycle("bb71"), "unknown code 'bb71'; did you mean bb72"),
        (lambda: bivariate_bicycle("bb72").logicals("Y"), "basis must be X or Z, got 'Y'"),
        (lambda: bivariate_bicycle("bb72").translate([[1, 0]], (1, 0)), "length n=72, got 2"),
        (lambda: bivariate_bicycle("bb72").translates([1, 0]), r"length n=72, got shape \(2,\)"),
        (lambda: bivariate_bicycle("bb72").seed_logicals("Y"), "basis must be X or Z, got 'Y'"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(InputError, match=message):
        make()
