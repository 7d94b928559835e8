r"""A product of two weights fitted to noisy data: its gradient noise, and when SGD forgets the signal.

The model is $f=uwx$ with loss $\ell=(vx-y)^2$, $v=uw$, without a factor 1/2; weight decay adds
$\gamma(u^2+w^2)$, so that $\gamma$ is half of what ``torch.optim`` calls ``weight_decay``. The data enter
the law of motion of SGD through five moments,

$$\beta_1=\mathbb E[x^2],\quad \beta_2=\mathbb E[xy],\quad \alpha_1=\mathrm{Var}[x^2],\quad
\alpha_2=\mathrm{Cov}[x^2,xy],\quad \alpha_3=\mathrm{Var}[xy],$$

and the hyperparameters through the temperature $T=\eta/S$, learning rate over batch size. Near $v=0$ the
noise is multiplicative: $\ln|v|$ drifts at the rate $4(\beta_2-\gamma-\alpha_3T)$, and above
$T_c=(\beta_2-\gamma)/\alpha_3$ SGD collapses to zero although zero is a saddle of the loss.

This holds for small steps. At any step the origin attracts exactly where
$\mathbb E\ln|1+2\eta(\overline{xy}-\gamma)|<0$, the bar being the mean over a batch. For a weak signal
that begins close to $T_c$. For a stronger one there is a finite window of such learning rates, with a
repelling origin on *both* sides, or none at all: large steps throw the product out of the neighbourhood of
zero.

Source: arXiv 2308.06671, stationary law and phase transition of the diagonal linear network; the
discrete-time criterion's integral for Gaussian data is derived here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import integrate, optimize

from symdyn_core.errors import InputError
from symdyn_core.random import numpy_generator

Array = NDArray[np.float64]
LogFactor = Callable[[float, float], float]
r"""$(\eta,\gamma)\mapsto\mathbb E\ln|1+2\eta(\overline{xy}-\gamma)|$ at a given batch size."""

# The window of collapse is searched from this fraction of the second-order estimate of its beginning to where
# a step multiplies the weights by about this number, at so many learning rates per factor of e. For smooth
# data the expectation of the logarithm varies on no shorter scale.
_SCAN_FROM, _SCAN_TO, _SCAN_DENSITY = 0.05, 40.0, 8

# Sampled data have no closed form for the mean of a batch: this many batches are drawn, always the same ones.
_RESAMPLED_BATCHES = 100_000


class ProductLaw(Protocol):
    """The distribution of xy, signed so that its mean is not negative, as the exact criterion needs it."""

    def log_factor(self, batch_size: int) -> LogFactor:
        """Return the mean logarithm of the factor of one step, as a function of learning rate and decay."""
        ...


@dataclass(frozen=True)
class LandscapeNoise:
    r"""The moments of the data that decide how noisy the gradient is, with what follows from them near zero.

    Attributes:
        beta1: $\mathbb E[x^2]$.
        beta2: $\mathbb E[xy]$; its sign is a convention and nothing depends on it but the sign of $v$.
        alpha1: $\mathrm{Var}[x^2]$.
        alpha2: $\mathrm{Cov}[x^2,xy]$.
        alpha3: $\mathrm{Var}[xy]$.
        products: law of $xy$; needed by the discrete-time criteria only, provided by the two constructors.

    Raises:
        InputError: moments that no data can have.

    >>> LandscapeNoise.gaussian(k=1.0, sigma=0.5)
    LandscapeNoise(beta1=1.0, beta2=1.0, alpha1=2.0, alpha2=2.0, alpha3=2.25)
    """

    beta1: float
    beta2: float
    alpha1: float
    alpha2: float
    alpha3: float
    products: ProductLaw | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        moments = (self.beta1, self.beta2, self.alpha1, self.alpha2, self.alpha3)
        if not all(math.isfinite(moment) for moment in moments):
            raise InputError(f"the moments must be finite, got {moments}")
        if self.beta1 <= 0 or self.alpha1 < 0 or self.alpha3 < 0:
            raise InputError(
                f"beta1 must be > 0 and alpha1, alpha3 >= 0, got {self.beta1}, {self.alpha1}, {self.alpha3}"
            )
        # Rounding of sampled moments may break the inequality in the last digits when y = k x exactly.
        if self.alpha2**2 > self.alpha1 * self.alpha3 * (1 + 1e-9) + 1e-300:
            raise InputError(
                f"alpha2^2 must be <= alpha1 alpha3 = {self.alpha1 * self.alpha3:g}, got {self.alpha2**2:g}"
            )

    @classmethod
    def from_data(cls, x: ArrayLike, y: ArrayLike) -> "LandscapeNoise":
        r"""Estimate from data; averages are plain means, so the samples are the population.

        Args:
            x: inputs, shape (n_samples,).
            y: labels, shape (n_samples,).

        Raises:
            InputError: fewer than two samples, shapes that differ, values that are not finite, or x all zero.

        >>> LandscapeNoise.from_data([1.0, 1.0, -1.0], [2.0, 0.0, -1.0])
        LandscapeNoise(beta1=1.0, beta2=1.0, alpha1=0.0, alpha2=0.0, alpha3=0.666...)
        """
        x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
        if x.ndim != 1 or x.shape != y.shape or x.size < 2:
            raise InputError(
                f"x and y must be two vectors of one length >= 2, got shapes {x.shape} and {y.shape}"
            )
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise InputError("x and y must be finite, got NaN or infinite entries")
        squares, products = x * x, x * y
        return cls(
            beta1=float(squares.mean()),
            beta2=float(products.mean()),
            alpha1=float(squares.var()),
            alpha2=float(((squares - squares.mean()) * (products - products.mean())).mean()),
            alpha3=float(products.var()),
            products=_SampledProducts(products if products.mean() >= 0 else -products),
        )

    @classmethod
    def gaussian(cls, k: float, sigma: float) -> "LandscapeNoise":
        r"""Return the exact moments of $x\sim N(0,1)$, $y=kx+\sigma\epsilon$, $\epsilon\sim N(0,1)$.

        Args:
            k: signal, any number.
            sigma: standard deviation of the label noise, >= 0.

        Raises:
            InputError: not finite, or sigma negative.
        """
        if not (math.isfinite(k) and math.isfinite(sigma) and sigma >= 0):
            raise InputError(f"k must be finite and sigma finite and >= 0, got {k} and {sigma}")
        law = _GaussianProducts(abs(k), sigma)
        return cls(beta1=1.0, beta2=k, alpha1=2.0, alpha2=2 * k, alpha3=2 * k**2 + sigma**2, products=law)

    def gradient_variance(self, v: float) -> float:
        r"""Return $\mathrm{Var}[\partial\ell/\partial v]=4(\alpha_1v^2-2\alpha_2v+\alpha_3)$ of one sample.

        At Gaussian data's minimum $v=k$ only the label noise is left:

        >>> LandscapeNoise.gaussian(k=1.0, sigma=0.5).gradient_variance(1.0)
        1.0
        """
        return 4 * (self.alpha1 * v**2 - 2 * self.alpha2 * v + self.alpha3)

    def critical_temperature(self, weight_decay: float = 0.0) -> float:
        r"""Return $T_c=(|\beta_2|-\gamma)/\alpha_3$, learning rate over batch size that erases the signal.

        A statement for weak signals and small steps; :meth:`discrete_critical_learning_rate` is exact and may
        disagree.

        Args:
            weight_decay: $\gamma\ge0$ of $\gamma(u^2+w^2)$, half of torch's.

        Returns:
            The temperature; 0 if the decay alone erases the signal, infinite without noise.

        Raises:
            InputError: negative weight decay.

        >>> LandscapeNoise.gaussian(k=1.0, sigma=0.5).critical_temperature(weight_decay=0.1)
        0.4
        """
        margin = abs(self.beta2) - _check_decay(weight_decay)
        if margin <= 0:
            return 0.0
        return margin / self.alpha3 if self.alpha3 > 0 else math.inf

    def growth_rate(self, learning_rate: float, batch_size: int = 1, weight_decay: float = 0.0) -> float:
        r"""Return the rate $4(|\beta_2|-\gamma-\alpha_3T)$ of $\ln|uw|$ near zero, for small steps.

        Time counts $\eta$ per step.

        Args:
            learning_rate: $\eta>0$.
            batch_size: $S\ge1$.
            weight_decay: $\gamma\ge0$ of $\gamma(u^2+w^2)$, half of torch's.

        Raises:
            InputError: a value out of range.

        >>> LandscapeNoise.gaussian(k=0.5, sigma=1.0).growth_rate(0.5, batch_size=3)
        1.0
        """
        _check_step(learning_rate, batch_size)
        temperature = learning_rate / batch_size
        return 4 * (abs(self.beta2) - _check_decay(weight_decay) - self.alpha3 * temperature)

    def discrete_growth_rate(
        self, learning_rate: float, batch_size: int = 1, weight_decay: float = 0.0
    ) -> float:
        r"""Return the rate at which $\ln|uw|$ grows near zero, at any step.

        It is $\frac2\eta\,\mathbb E\ln|1+2\eta(\overline{xy}-\gamma)|$, the bar being the mean over a batch.
        Holds for balanced weights, $|u|=|w|$, which is where they end. Time counts $\eta$ per step.

        Args:
            learning_rate: $\eta>0$.
            batch_size: $S\ge1$ samples, drawn afresh or with replacement.
            weight_decay: $\gamma\ge0$ of $\gamma(u^2+w^2)$, half of torch's.

        Returns:
            The rate; minus infinity if a step can land on zero.

        Raises:
            InputError: a value out of range, or moments given without the law of xy.

        Without noise each step multiplies $uw$ by $(1+2\eta k)^2$ if $x^2=1$; here $2\ln2/\frac12$:

        >>> round(LandscapeNoise.from_data([1.0, -1.0], [1.0, -1.0]).discrete_growth_rate(0.5), 6)
        2.772589
        """
        _check_step(learning_rate, batch_size)
        log_factor = self._law.log_factor(batch_size)
        return 2 / learning_rate * log_factor(learning_rate, _check_decay(weight_decay))

    def collapse_window(self, batch_size: int = 1, weight_decay: float = 0.0) -> tuple[float, float] | None:
        r"""Return the learning rates between which SGD collapses to zero.

        They are those with a negative :meth:`discrete_growth_rate`. Above the window the origin repels again.
        A signal that is strong against its noise never collapses. For a few hundred samples the growth rate
        is a rough function of the learning rate, and the ends of the window are no better known than that.

        Args:
            batch_size: $S\ge1$ samples, drawn afresh or with replacement.
            weight_decay: $\gamma\ge0$ of $\gamma(u^2+w^2)$, half of torch's.

        Returns:
            Lower and upper learning rate, the lower one 0 if the decay alone erases the signal; or None.

        Raises:
            InputError: a value out of range, or moments given without the law of xy.

        >>> low, high = LandscapeNoise.gaussian(k=0.2, sigma=1.0).collapse_window()
        >>> round(low, 2), round(high, 2)
        (0.21, 0.45)
        >>> LandscapeNoise.gaussian(k=0.3, sigma=1.0).collapse_window() is None
        True
        """
        _check_step(1.0, batch_size)
        decay = _check_decay(weight_decay)
        log_factor = self._law.log_factor(batch_size)
        drift = abs(self.beta2) - decay

        def growth(log_rate: float) -> float:
            return log_factor(math.exp(log_rate), decay)

        size = math.sqrt(self.alpha3 / batch_size + drift**2)  # of (mean xy - decay)
        if size == 0:
            return None
        first = math.log(_SCAN_FROM * max(drift, 1e-4 * size) / size**2)
        last = math.log(_SCAN_TO / (2 * size))
        grid = np.linspace(first, last, math.ceil((last - first) * _SCAN_DENSITY))
        values = np.array([growth(point) for point in grid])
        dip = int(values.argmin())
        if values[dip] >= 0 and 0 < dip < len(grid) - 1:  # a window may hide between two points of the grid
            found = optimize.minimize_scalar(growth, bounds=(grid[dip - 1], grid[dip + 1]), method="bounded")
            grid[dip], values[dip] = found.x, found.fun
        collapsing = np.flatnonzero(values < 0)
        if not collapsing.size:
            return None
        start, end = collapsing[0], collapsing[-1]
        low = math.exp(optimize.brentq(growth, grid[start - 1], grid[start])) if start > 0 else 0.0
        high = (
            math.exp(optimize.brentq(growth, grid[end], grid[end + 1])) if end + 1 < len(grid) else math.inf
        )
        return low, high

    def discrete_critical_learning_rate(self, batch_size: int = 1, weight_decay: float = 0.0) -> float | None:
        r"""Return the smallest learning rate above which SGD collapses to zero, from the exact criterion.

        Args:
            batch_size: $S\ge1$ samples, drawn afresh or with replacement.
            weight_decay: $\gamma\ge0$ of $\gamma(u^2+w^2)$, half of torch's.

        Returns:
            The lower end of :meth:`collapse_window`, or None if no learning rate erases the signal.

        Raises:
            InputError: a value out of range, or moments given without the law of xy.

        >>> round(LandscapeNoise.gaussian(k=0.1, sigma=1.0).discrete_critical_learning_rate(), 4)
        0.0917
        """
        window = self.collapse_window(batch_size, weight_decay)
        return None if window is None else window[0]

    @property
    def _law(self) -> ProductLaw:
        if self.products is None:
            raise InputError("moments alone do not fix the discrete criterion; use from_data or gaussian")
        return self.products


@dataclass(frozen=True)
class _GaussianProducts:
    r"""$xy=kx^2+\sigma x\epsilon$ with standard normal $x,\epsilon$; $k\ge0$."""

    k: float
    sigma: float

    def log_factor(self, batch_size: int) -> LogFactor:
        r"""Integrate $\mathbb E\ln|Y|=\mathrm{Re}\int_0^\infty(e^{-t}-\mathbb E\,e^{itY})\,dt/t$.

        The characteristic function of $xy$ is $(1-2iks+\sigma^2s^2)^{-1/2}$. It is analytic between the
        real axis and the diagonal, so the path is turned by 45 degrees, where the integrand decays instead
        of oscillating.
        """
        turn = complex(math.sqrt(0.5), math.sqrt(0.5))

        def log_factor(learning_rate: float, weight_decay: float) -> float:
            offset = 1 - 2 * learning_rate * weight_decay
            # Y and -Y have the same modulus: with a positive offset exp(i t offset) decays on the path.
            k = math.copysign(self.k, offset)

            def integrand(r: float) -> float:
                t = turn * r
                s = 2 * learning_rate / batch_size * t
                batch = (1 - 2j * k * s + (self.sigma * s) ** 2) ** (-batch_size / 2)
                return float(((np.exp(-t) - np.exp(1j * abs(offset) * t) * batch) / r).real)

            # Beyond 80 the integrand is below exp(-80 / sqrt(2)) = 3e-25, unless the offset itself is small.
            reach = 80 / min(1.0, max(abs(offset), 1e-3))
            return float(integrate.quad(integrand, 0, reach, limit=500, epsabs=1e-13, epsrel=1e-10)[0])

        return log_factor


@dataclass(frozen=True, eq=False)
class _SampledProducts:
    """xy of a data set, batches drawn with replacement."""

    values: Array

    def log_factor(self, batch_size: int) -> LogFactor:
        r"""Average $\ln|1+2\eta(\overline{xy}-\gamma)|$ over samples, or over random batches of them."""
        means = self.values if batch_size == 1 else self._batch_means(batch_size)

        def log_factor(learning_rate: float, weight_decay: float) -> float:
            with np.errstate(divide="ignore"):  # a step that lands on zero exactly: the answer is -inf
                return float(np.log(np.abs(1 + 2 * learning_rate * (means - weight_decay))).mean())

        return log_factor

    def _batch_means(self, batch_size: int) -> Array:
        """Draw the means of random batches, shifted and scaled to their exact mean and variance.

        Near the transition the logarithm is nearly quadratic: what is left to chance is of third order.
        """
        generator = numpy_generator(0, "batches", batch_size)
        total = np.zeros(_RESAMPLED_BATCHES)
        for _ in range(batch_size):  # one sample of every batch at a time keeps the memory flat
            total += generator.choice(self.values, size=_RESAMPLED_BATCHES)
        spread = float(total.std())
        scale = float(self.values.std()) / math.sqrt(batch_size) / spread if spread > 0 else 0.0
        means: Array = self.values.mean() + scale * (total - total.mean())
        return means


def _check_step(learning_rate: float, batch_size: int) -> None:
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise InputError(f"learning_rate must be finite and > 0, got {learning_rate}")
    if batch_size < 1 or batch_size != int(batch_size):
        raise InputError(f"batch_size must be a whole number >= 1, got {batch_size}")


def _check_decay(weight_decay: float) -> float:
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise InputError(f"weight_decay must be finite and >= 0, got {weight_decay}")
    return weight_decay
