import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from symdyn_core.errors import InputError
from symdyn_qec import gf2

matrices = st.tuples(st.integers(1, 6), st.integers(1, 8)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 1))
)
exactly = settings(derandomize=True, deadline=None, max_examples=60)


def span(matrix):
    """All sums of rows, the slow way."""
    sums = {bytes(matrix.shape[1])}
    for choice in itertools.product((0, 1), repeat=len(matrix)):
        sums.add((np.array(choice) @ matrix % 2).astype(np.uint8).tobytes())
    return sums


@exactly
@given(matrices)
def test_the_span_has_two_to_the_rank_elements(matrix):
    assert len(span(matrix)) == 2 ** gf2.rank(matrix)


@exactly
@given(matrices)
def test_row_reduction_keeps_the_span_and_is_the_identity_on_the_pivots(matrix):
    reduced, pivots = gf2.row_reduce(matrix)
    assert span(reduced) == span(matrix)
    assert (reduced[:, pivots] == np.eye(len(pivots))).all()
    assert (np.diff(pivots) > 0).all()


@exactly
@given(matrices)
def test_the_nullspace_is_all_that_the_matrix_kills(matrix):
    killed = {
        np.array(vector, dtype=np.uint8).tobytes()
        for vector in itertools.product((0, 1), repeat=matrix.shape[1])
        if not (matrix @ np.array(vector) % 2).any()
    }
    assert span(gf2.nullspace(matrix)) == killed


@exactly
@given(matrices, st.data())
def test_express_finds_coefficients_of_everything_in_the_span(matrix, data):
    chosen = data.draw(arrays(np.uint8, (3, len(matrix)), elements=st.integers(0, 1)))
    vectors = chosen.astype(int) @ matrix % 2
    assert (gf2.express(vectors, matrix).astype(int) @ matrix % 2 == vectors).all()


def test_express_refuses_a_vector_outside_the_span():
    with pytest.raises(InputError, match="vector 1 is not a sum of the 2 rows"):
        gf2.express([[1, 1, 0], [1, 0, 0]], rows=[[1, 1, 0], [0, 1, 1]])


@exactly
@given(matrices, st.data())
def test_independent_rows_are_the_first_to_raise_the_rank(matrix, data):
    known = data.draw(arrays(np.uint8, (2, matrix.shape[1]), elements=st.integers(0, 1)))
    expected, rank = [], gf2.rank(known)
    for index in range(len(matrix)):
        grown = gf2.rank(np.vstack([known, matrix[: index + 1]]))
        expected += [index] * (grown - rank)
        rank = grown
    assert gf2.independent_rows(matrix, modulo=known).tolist() == expected


def test_input_is_left_as_it_was():
    matrix = np.array([[1, 1], [1, 0]], dtype=np.uint8)
    gf2.row_reduce(matrix)
    assert matrix.tolist() == [[1, 1], [1, 0]]


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([1, 0], "matrix must have 2 dimensions, got shape \\(2,\\)"),
        ([[0, 2]], "matrix must hold only 0 and 1, got 2"),
        ([[0.5, 0]], "matrix must hold only 0 and 1, got 0.5"),
    ],
)
def test_what_is_not_a_matrix_of_bits_is_refused(matrix, message):
    with pytest.raises(InputError, match=message):
        gf2.rank(matrix)
