"""Which eigenvalues count as outliers, on Hessians that are known by construction."""

import math

import pytest
import torch
from torch import nn

from symdyn_core.dynamics.escape_spectrum import escape_exponent
from symdyn_core.errors import InputError

OUTLIERS = [10 + 0.1 * place for place in range(20)]  # more than are asked for at first
FLAT = [0.01] * 20
DATA = torch.zeros(4, 1, dtype=torch.float64)


class Valley(nn.Module):
    """A loss with a diagonal Hessian."""

    def __init__(self, curvatures):
        super().__init__()
        self.curvatures = torch.tensor(curvatures, dtype=torch.float64)
        self.place = nn.Parameter(torch.zeros(len(curvatures), dtype=torch.float64))

    def forward(self, inputs):
        return (self.curvatures * self.place**2).sum() / 2 + 0 * inputs.sum()


def exponents(curvatures, **settings):
    settings = {"learning_rate": 0.1, "batch_size": 1, **settings}
    return escape_exponent(Valley(curvatures), lambda output, target: output, DATA, DATA, **settings)


@pytest.mark.parametrize("negative", [[], [-11.05], [-5.0] * 3, [-200.0] * 9], ids=len)
def test_negative_eigenvalues_hide_no_outlier(negative):
    result = exponents(OUTLIERS + negative + FLAT)
    assert result.outliers == pytest.approx(sorted(OUTLIERS, reverse=True))
    assert result.complete


@pytest.mark.parametrize(("limit", "found"), [(12, 11), (21, 20)])
def test_a_limit_within_the_outliers_is_told(limit, found):
    # The negative eigenvalue is the largest in size, and takes one place.
    result = exponents([*OUTLIERS, -50.0, *FLAT], max_outliers=limit)
    assert (result.dimension, result.complete) == (found, False)


def test_all_eigenvalues_of_a_small_model():
    result = exponents([3.0, 2.0, -1.0])
    assert result.outliers == pytest.approx((3.0, 2.0))
    assert result.complete
    assert result.curvature == pytest.approx(math.sqrt(6))


def test_a_way_out_in_single_precision():
    way = torch.tensor([0.0, 3.0, 0.0])
    assert exponents([3.0, 2.0, 1.0], way_out=way).curvature == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("curvatures", "settings", "message"),
    [
        ([1.0, 2.0], {"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ([1.0, 2.0], {"learning_rate": math.nan}, "learning_rate must be finite and > 0, got nan"),
        ([1.0, 2.0], {"max_outliers": 0}, "max_outliers must be >= 1, got 0"),
        ([1.0, 2.0], {"way_out": torch.zeros(2)}, "way_out must be finite and not zero"),
        ([1.0, 2.0], {"way_out": torch.tensor([1.0, math.nan])}, "way_out must be finite and not zero"),
        ([1.0, -2.0], {"way_out": torch.tensor([0.0, 1.0])}, "upwards along way_out, got the curvature -2"),
        ([-1.0, -2.0], {}, "not a minimum: the largest eigenvalue of the Hessian is -1"),
        (
            [-9.0, -8.0, 1.0],
            {"max_outliers": 2},
            "the 2 eigenvalues of largest size are all negative, up to -8",
        ),
    ],
)
def test_bad_values(curvatures, settings, message):
    with pytest.raises(InputError, match=message):
        exponents(curvatures, **settings)
