"""The networks' fast path on a CPU: the same numbers as the modules, whatever the shape."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from symdyn_core.errors import InputError
from symdyn_core.random import numpy_generator
from symdyn_qec.codes import bivariate_bicycle
from symdyn_qec.networks import gather_product as fast
from symdyn_qec.networks.fused import FusedSector, FusedTorus, fused
from symdyn_qec.networks.sector import SectorNetwork
from symdyn_qec.networks.torus import TorusNetwork

KINDS = {"torus": (TorusNetwork, FusedTorus), "sector": (SectorNetwork, FusedSector)}


def numbers(*shape, seed=0):
    return numpy_generator(seed, "numbers", str(shape)).normal(size=shape).astype(np.float32)


def checks(code, shots, cycles, seed=0):
    shape = (shots, 2, cycles, code.l, code.m)
    return numpy_generator(seed, "checks").integers(0, 3, shape, dtype=np.uint8)


@settings(deadline=None, max_examples=30)
@given(
    rows=st.integers(24, 100),
    terms=st.integers(1, 9),
    width=st.sampled_from([4, 8, 20, 32]),
    out=st.sampled_from([16, 48]),
)
def test_products_and_gradients_are_those_of_gathered_rows(rows, terms, width, out):
    x, matrix, gradient = numbers(30, width), numbers(terms * width, out), numbers(rows, out)
    index = numpy_generator(1, "index").integers(0, 30, (rows, terms), dtype=np.int32)
    gathered = x[index].reshape(rows, -1)
    # Sums of up to 180 terms of order one, in another order.
    np.testing.assert_allclose(fast.gather_product(x, index, matrix), gathered @ matrix, atol=1e-4)
    np.testing.assert_allclose(fast.matrix_gradient(x, index, gradient), gathered.T @ gradient, atol=1e-4)


@pytest.mark.parametrize(("rows", "out"), [(23, 16), (24, 8), (24, 40)])
def test_a_product_of_another_size_is_refused(rows, out):
    with pytest.raises(InputError, match=f"multiple of 16 columns, got {rows} rows and {out} columns"):
        fast.gather_product(numbers(5, 4), np.zeros((rows, 2), dtype=np.int32), numbers(8, out))


def test_an_update_is_a_product_normalised_bent_and_added():
    width, rows = 16, 30
    nodes, matrix, scale, shift = (
        numbers(2 * rows, width),
        numbers(32, width),
        numbers(width),
        numbers(width, seed=1),
    )
    index = numpy_generator(2, "index").integers(0, rows, (rows, 2), dtype=np.int32)
    # Far out too, where the rational form of erf has to be cut off.
    before, shift = nodes.copy(), shift * 5
    fast.Updates([fast.Update(index, matrix, scale, shift, 0, rows)])(nodes)
    heard = torch.from_numpy(before[index].reshape(rows, -1) @ matrix)
    normal = torch.nn.functional.layer_norm(heard, (width,), torch.from_numpy(scale), torch.from_numpy(shift))
    expected = before[:rows] + torch.nn.functional.gelu(normal).numpy()
    np.testing.assert_allclose(nodes[rows:], expected, atol=2e-5)
    np.testing.assert_array_equal(nodes[:rows], before[:rows])


@pytest.mark.parametrize("basis", ["Z", "X"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("code", "layers", "cycles"), [("bb72", 1, 3), ("bb72", 2, 7), ("bb90", 3, 2)])
def test_a_fused_network_is_the_network(kind, basis, code, layers, cycles):
    made, form = KINDS[kind]
    network = made(bivariate_bicycle(code), width=16, layers=layers, seed=3)
    for parameter in network.parameters():  # the last layers of heads start at zero
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(4))
    quick = fused(network, basis, cycles)
    assert isinstance(quick, form)
    shots = checks(network.code, 5, cycles)
    _, net = quick(shots)
    with torch.inference_mode():
        expected = network.readout(torch.from_numpy(shots), basis).numpy()
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(net, expected, atol=1e-4)
    np.testing.assert_allclose(quick(shots[2:3])[1][0], net[2], atol=1e-5)


def test_other_widths_are_left_to_torch():
    assert fused(TorusNetwork(bivariate_bicycle("bb72"), width=24, layers=1), "Z", 7) is None
