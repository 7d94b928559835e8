r"""Landscapes on which SGD with a constant learning rate goes where gradient descent does not.

Three losses with bounded gradients, each an expectation over a few samples, one a step:

=================  ===============================================================  ==========================
landscape          loss of a sample                                                 what SGD does
=================  ===============================================================  ==========================
``periodic_max``   :math:`x(1-\cos w)`                                              converges to the maximum
``sharp_vs_flat``  its slope is :math:`\sin w\,[\cos^2\frac w2-b\sin^2\frac w2]`    prefers the sharp minimum
``product_net``    :math:`\tfrac12(w_1w_2-y)^2`                                     collapses into the saddle
=================  ===============================================================  ==========================

At the marked points the slope of every sample vanishes, so that what attracts follows from the curvatures
of the samples there, by the exponent :math:`\mathbb E\log|1-\eta h|` of each direction. The mean curvature,
which is all that gradient descent sees, says nothing about its sign.

Source: arXiv 2107.11774, whose claims these landscapes show; the constructions are ours.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from symdyn_core.dynamics.stability import log_drift
from symdyn_core.dynamics.windows import check_curvatures
from symdyn_core.errors import InputError, unknown

Array = NDArray[np.float64]
OfSample = Callable[[Array, Array], Array]


@dataclass(frozen=True)
class Point:
    """A point at which the slope of every sample vanishes.

    Attributes:
        position: of shape () or (dimension,).
        curvatures: of every sample along each direction, shape (directions, n_samples).
    """

    position: Array
    curvatures: Array


@dataclass(frozen=True)
class Landscape:
    """A loss that is the mean over a few samples, and its points of interest.

    Attributes:
        name: for messages.
        samples: what tells one sample from another, shape (n,).
        probabilities: shape (n,), sum 1.
        sample_loss: parameters and samples, broadcast, to the loss of a sample.
        sample_gradient: the same to its gradient, of the shape of the parameters.
        points: by name.
    """

    name: str
    samples: Array
    probabilities: Array
    sample_loss: OfSample
    sample_gradient: OfSample
    points: Mapping[str, Point]

    def loss(self, params: ArrayLike) -> Array:
        """Return the mean loss."""
        return self._mean(self.sample_loss, params)

    def gradient(self, params: ArrayLike) -> Array:
        """Return the gradient of the mean loss, which gradient descent follows."""
        return self._mean(self.sample_gradient, params)

    def draw(self, size: int | tuple[int, ...], generator: np.random.Generator) -> Array:
        """Draw samples, independently."""
        return generator.choice(self.samples, size, p=self.probabilities)

    def exponents_at(self, point: str, learning_rate: float) -> Array:
        """Return the growth of the logarithm of a small deviation per step of SGD, for each direction.

        Args:
            point: name in :attr:`points`.
            learning_rate: > 0.

        Raises:
            InputError: an unknown point or a learning rate that is not positive.

        >>> round(float(periodic_max().exponents_at("max", 0.9)[0]), 4)  # log(0.1 x 2.8) / 2
        -0.6365
        """
        if point not in self.points:
            raise InputError(unknown("point", point, self.points, where=f" of {self.name}"))
        curvatures = self.points[point].curvatures
        return np.array([log_drift(values, learning_rate, self.probabilities) for values in curvatures])

    def attracts(self, point: str, learning_rate: float) -> bool:
        """Say whether a point attracts SGD, in probability.

        >>> [periodic_max().attracts("max", rate) for rate in (0.3, 0.9)]
        [False, True]
        """
        return bool((self.exponents_at(point, learning_rate) < 0).all())

    def _mean(self, of_sample: OfSample, params: ArrayLike) -> Array:
        at = np.asarray(params, dtype=float)
        pairs = zip(self.samples, self.probabilities, strict=True)
        return np.asarray(sum(chance * of_sample(at, np.asarray(sample)) for sample, chance in pairs))


def periodic_max(
    x_values: Sequence[float] = (1.0, -2.0), probabilities: Sequence[float] | None = None
) -> Landscape:
    r"""Return the landscape :math:`\ell=x(1-\cos w)`: a maximum of the mean loss at 0, a minimum at π.

    With x = 1 or -2, the maximum attracts for :math:`\tfrac12<\eta<(1+\sqrt{17})/4\approx1.281` and the
    minimum repels from :math:`(\sqrt{17}-1)/4\approx0.781` on: in between SGD goes to the maximum from
    everywhere.

    Args:
        x_values: with a negative mean.
        probabilities: > 0 up to a factor; equal if left out.

    Raises:
        InputError: values that do not fit together, or a mean that is not negative.

    >>> landscape = periodic_max()
    >>> landscape.loss([0.0, np.pi]).tolist()
    [0.0, -1.0]
    """
    samples, chances = check_curvatures(x_values, probabilities)
    if not samples @ chances < 0:
        raise InputError(f"x_values must have a negative mean, got {samples @ chances:g}")
    return Landscape(
        "periodic_max",
        samples,
        chances,
        sample_loss=lambda w, x: x * (1 - np.cos(w)),
        sample_gradient=lambda w, x: x * np.sin(w),
        points={
            "max": Point(np.array(0.0), samples[None]),
            "min": Point(np.array(math.pi), -samples[None]),
        },
    )


def sharp_vs_flat(
    b_values: Sequence[float] = (3.3, -2.7), probabilities: Sequence[float] | None = None
) -> Landscape:
    r"""Return a landscape with a sharp minimum at 0, without noise, and a flat but noisy one at π.

    The slope of a sample is :math:`\sin w\,[\cos^2\frac w2-b\sin^2\frac w2]`: curvature 1 at 0 for every
    sample, and b at π, 0.3 in the mean. At learning rate 0.8 only the sharp minimum attracts.

    Args:
        b_values: curvatures of the samples at the flat minimum, with a positive mean.
        probabilities: > 0 up to a factor; equal if left out.

    Raises:
        InputError: values that do not fit together, or a mean that is not positive.

    >>> landscape = sharp_vs_flat()
    >>> landscape.attracts("sharp", 0.8), landscape.attracts("flat", 0.8)
    (True, False)
    """
    samples, chances = check_curvatures(b_values, probabilities)
    if not samples @ chances > 0:
        raise InputError(f"b_values must have a positive mean, got {samples @ chances:g}")

    def loss(w: Array, b: Array) -> Array:
        near, far = (1 - np.cos(w)) / 2, (1 - np.cos(w) ** 2) / 4
        return np.asarray(near + far - b * (near - far))

    return Landscape(
        "sharp_vs_flat",
        samples,
        chances,
        sample_loss=loss,
        sample_gradient=lambda w, b: np.sin(w) * (np.cos(w / 2) ** 2 - b * np.sin(w / 2) ** 2),
        points={
            "sharp": Point(np.array(0.0), np.ones((1, len(samples)))),
            "flat": Point(np.array(math.pi), samples[None]),
        },
    )


def product_net(
    y_values: Sequence[float] = (1.1, -1.0), probabilities: Sequence[float] | None = None
) -> Landscape:
    r"""Return the loss :math:`\tfrac12(w_1w_2-y)^2` of a linear net of two weights, input 1, noisy label.

    The mean loss has a saddle at the origin and minima on :math:`w_1w_2=\mathbb Ey`. A step multiplies
    :math:`w_1\pm w_2` by :math:`1\pm\eta y` near the saddle: if the exponents of both are negative, SGD
    collapses there.

    Args:
        y_values: labels.
        probabilities: > 0 up to a factor; equal if left out.

    Raises:
        InputError: values that do not fit together.

    >>> product_net().attracts("saddle", 0.8), product_net().attracts("saddle", 0.05)
    (True, False)
    """
    samples, chances = check_curvatures(y_values, probabilities)

    def gradient(w: Array, y: Array) -> Array:
        error = w[..., 0] * w[..., 1] - y
        return np.stack([error * w[..., 1], error * w[..., 0]], axis=-1)

    return Landscape(
        "product_net",
        samples,
        chances,
        sample_loss=lambda w, y: (w[..., 0] * w[..., 1] - y) ** 2 / 2,
        sample_gradient=gradient,
        points={"saddle": Point(np.zeros(2), np.stack([-samples, samples]))},
    )
