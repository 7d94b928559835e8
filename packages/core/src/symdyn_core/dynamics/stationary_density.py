r"""The stationary law of SGD on a diagonal linear network, in full.

The model is $f(x)=vx$, $v=\sum_{i=1}^d\prod_{k=0}^{D}u_i^{(k)}$, with loss $(vx-y)^2$: $D=0$ is linear
regression, $D=1$ the two-layer network. Noise balances the factors of each product, and the products of one
sign come to be equal; from there on $v$ alone moves. With $T$ the learning rate over the batch size and
$g(v)=\alpha_1v^2-2\alpha_2v+\alpha_3$, a quarter of the variance of $\partial\ell/\partial v$, it obeys

$$dv=-2b(\beta_1v-\beta_2)\,dt+2TD(D+1)\,d\,(v/d)^{2a-1}g(v)\,dt+2b\sqrt{Tg(v)}\,dB,
  \qquad a=\tfrac{2D}{D+1},\quad b=(D+1)\,d\,(v/d)^a,$$

in Itô's sense. The middle term is the trace that the noise of the single factors leaves in their product;
without it the power of $v$ in the density would be $-2a$ instead of

$$p(v)\propto v^{-3D/(D+1)}\,g(v)^{-1}
  \exp\Big[-\frac1T\int\frac{d^{\,a-1}(\beta_1v-\beta_2)v^{-a}+\gamma d^{\,2a-2}v^{1-2a}}
  {(D+1)\,g(v)}\,dv\Big].$$

What follows from it: with depth a wrong sign is never learnt, the tail is a power that the data do not
change, and for $D=1$ the law exists below the temperature $T_c=(\beta_2-\gamma)/\alpha_3$ only. Above, SGD
collapses to zero. With $D\ge2$ there is no such temperature without weight decay, as the walk towards zero
slows down on the way; with any weight decay at all zero attracts, and there is no law to state.

The law is that of small steps. At finite ones it is approached in proportion to the learning rate.

Source: arXiv 2308.06671, stationary distributions of the diagonal linear net; the decay term at general
depth and the conditions for a law to exist are derived here.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize

from symdyn_core.dynamics.diagonal_net import LandscapeNoise
from symdyn_core.dynamics.tabulated_law import Antiderivative, TabulatedLaw
from symdyn_core.errors import InputError

Array = NDArray[np.float64]
Value = TypeVar("Value", float, NDArray[np.float64])

# The table covers ln v over so many units beyond the scales of the data. To the left what is missing is
# replaced by its power law, off by exp(-35) of itself; to the right the slowest integrand, v^2 p at D = 1,
# has left exp(-75 / 2) of its integral there.
_LEFT, _RIGHT = 35.0, 75.0

# For D >= 2 the log density falls as a power of 1/v towards zero: after a fall by this much nothing is left.
_VANISHED = 1500.0

_SHARP = 1e-10  # relative determinant of the noise below which y = k x counts as exact


@dataclass(frozen=True)
class DiagonalNetStationary:
    r"""The law of the product $v$ when SGD has forgotten how it began.

    For $D\ge1$ it is the law of networks that began with factors whose products have the sign of $\beta_2$;
    others stay at zero. Densities are with respect to $v$. A label $y\to-y$ mirrors everything.

    Args:
        stats: moments of the data.
        temperature: $T=\eta/S>0$, learning rate over batch size.
        depth: $D\ge0$, one less than the number of factors.
        width: $d\ge1$, number of products, all of one sign; matters for $D\ne1$ only.
        weight_decay: $\gamma\ge0$ of $\gamma\|\theta\|^2$, half of torch's.

    Raises:
        InputError: a value out of range; data without label noise, where SGD comes to rest; or no stationary
            law, with the temperature up to which there is one.

    With one input value, $x^2=1$, the law of a two-layer network is a Gamma law of shape
    $T_c/(2T)-1/2$ and scale $2\alpha_3T/\beta_1$; here $\alpha_3=1$, $\beta_1=1$, $T_c=3/10$:

    >>> law = DiagonalNetStationary(LandscapeNoise(1.0, 0.3, 0.0, 0.0, 1.0), temperature=0.05)
    >>> round(law.mean(), 9), round(law.var(), 9), round(law.mode(), 9)
    (0.25, 0.025, 0.15)
    """

    stats: LandscapeNoise
    temperature: float
    depth: int = 1
    width: int = 1
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise InputError(f"temperature must be finite and > 0, got {self.temperature}")
        if self.depth < 0 or self.depth != int(self.depth):
            raise InputError(f"depth must be a whole number >= 0, got {self.depth}")
        if self.width < 1 or self.width != int(self.width):
            raise InputError(f"width must be a whole number >= 1, got {self.width}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise InputError(f"weight_decay must be finite and >= 0, got {self.weight_decay}")
        self._check_noise()
        if self.depth > 0:
            self._check_existence()

    def pdf(self, v: ArrayLike) -> Array:
        """Return the density at each v, shape of v; zero outside the support."""
        return np.exp(self.logpdf(v))

    def logpdf(self, v: ArrayLike) -> Array:
        """Return the log density at each v, shape of v; minus infinity outside the support and at zero."""
        v = self._mirror * np.asarray(v, dtype=float)
        if self.depth == 0:
            return self._log_density(v) - self._table.log_normaliser
        inside = v > 0
        values = self._log_density(np.where(inside, v, 1.0)) - self._table.log_normaliser
        return np.where(inside, values, -np.inf)

    def cdf(self, v: ArrayLike) -> Array:
        r"""Return the probability of a value $\le v$, shape of v.

        >>> law = DiagonalNetStationary(LandscapeNoise.gaussian(k=1.0, sigma=0.5), 0.1)
        >>> float(law.cdf(0.0)), round(float(law.cdf(law.quantile(0.3))), 9)
        (0.0, 0.3)
        """
        v = self._mirror * np.asarray(v, dtype=float)
        if self.depth == 0:
            below = self._table.cdf(np.arcsinh((v - self._centre) / self._spread))
        else:
            inside = v > 0
            below = np.where(inside, self._table.cdf(np.log(np.where(inside, v, 1.0))), 0.0)
        return below if self._mirror > 0 else 1 - below

    def quantile(self, probability: ArrayLike) -> Array:
        """Return the value below which each probability lies, shape of the argument.

        Close above zero the law may have so heavy a tail that a small quantile underflows to zero.

        Args:
            probability: in (0, 1).

        Raises:
            InputError: a probability outside (0, 1).
        """
        p = np.asarray(probability, dtype=float)
        if not ((p > 0) & (p < 1)).all():
            raise InputError(f"probability must be in (0, 1), got {p}")
        s = self._table.quantile(p if self._mirror > 0 else 1 - p)
        return self._mirror * (self._centre + self._spread * np.sinh(s) if self.depth == 0 else np.exp(s))

    def mean(self) -> float:
        r"""Return $\mathbb E[v]$.

        Linear regression learns without bias at any temperature:

        >>> round(DiagonalNetStationary(LandscapeNoise.gaussian(k=0.7, sigma=1.0), 0.2, depth=0).mean(), 12)
        0.7
        """
        if self.depth == 0:
            return self._mirror * self._moments.beta2 / self._stiffness
        return self._mirror * self._table.expectation(np.exp)

    def var(self) -> float:
        r"""Return $\mathrm{Var}[v]$: infinite for $D=0$ from the temperature $T=\beta_1/(d\,\alpha_1)$ on.

        For $D=1$ it first rises with the temperature and then falls to zero at $T_c$.
        """
        if self.depth > 0:
            mean = abs(self.mean())
            # Close to the transition much of the probability lies left of the table, where v is 0 in effect.
            left = self._table.beyond * mean**2
            return self._table.expectation(lambda s: (np.exp(s) - mean) ** 2) + left
        m, heat = self._moments, self.temperature * self.width
        if heat * m.alpha1 >= self._stiffness:
            return math.inf
        mean = m.beta2 / self._stiffness
        # The mean of v dv + dv^2 / 2 vanishes: 2 T g = v L'. The rest is algebra, free of cancellation.
        return (
            heat * (m.alpha1 * mean**2 - 2 * m.alpha2 * mean + m.alpha3) / (self._stiffness - heat * m.alpha1)
        )

    def mode(self) -> float:
        r"""Return the most likely $v$; zero where the density diverges there, for $D=1$ from $T_c/3$ on.

        For $D=1$ it is the positive root of
        $7\alpha_1Tv^2+(\beta_1-10\alpha_2T)v-(\beta_2-\gamma-3\alpha_3T)=0$.

        >>> stats = LandscapeNoise.gaussian(k=1.0, sigma=0.5)
        >>> round(DiagonalNetStationary(stats, 0.05).mode(), 6)  # sqrt(28 * 2 * 0.05 * 0.6625) / 1.4
        0.972846
        """
        m, heat = self._moments, self.temperature
        if self.depth == 0:
            heat *= self.width
            return self._mirror * (m.beta2 + 2 * m.alpha2 * heat) / (self._stiffness + 2 * m.alpha1 * heat)
        if self.depth == 1:
            signal = m.beta2 - self.weight_decay - 3 * m.alpha3 * heat
            if signal <= 0:
                return 0.0
            slope = m.beta1 - 10 * m.alpha2 * heat
            root = math.sqrt(slope**2 + 28 * m.alpha1 * heat * signal)
            # The two forms of one root; each loses digits where the other is good.
            value = 2 * signal / (root + slope) if slope > 0 else (root - slope) / (14 * m.alpha1 * heat)
            return self._mirror * value
        s = np.linspace(*self._range, 20_001)
        best = float(s[np.argmax(self._log_density(np.exp(s)))])
        width = float(s[1] - s[0])
        root = optimize.brentq(lambda s: self._log_slope(math.exp(s)), best - width, best + width, xtol=1e-13)
        return self._mirror * math.exp(root)

    def tail_exponent(self) -> float:
        r"""Return $\kappa$ of $p(v)\sim|v|^{-\kappa}$: $5-\frac3{D+1}$ with depth, whatever the data.

        For $D=0$ it is $2+\beta_1/(dT\alpha_1)$. Infinite where $x^2$ does not vary: no power.

        >>> stats = LandscapeNoise.gaussian(k=1.0, sigma=0.5)
        >>> [DiagonalNetStationary(stats, 0.1, depth=depth).tail_exponent() for depth in (0, 1, 2)]
        [7.0, 3.5, 4.0]
        """
        if self.stats.alpha1 == 0:
            return math.inf
        if self.depth == 0:
            return 2 + self._stiffness / (self.width * self.temperature * self.stats.alpha1)
        return 5 - 3 / (self.depth + 1)

    @property
    def _mirror(self) -> float:
        return -1.0 if self.stats.beta2 < 0 else 1.0

    @cached_property
    def _moments(self) -> LandscapeNoise:
        """The moments of the data with the labels' sign turned so that the signal is positive."""
        m = self.stats
        return LandscapeNoise(m.beta1, abs(m.beta2), m.alpha1, self._mirror * m.alpha2, m.alpha3)

    @property
    def _stiffness(self) -> float:
        """Linear regression: curvature and decay together; each of d weights holds only v / d."""
        return self.stats.beta1 + self.weight_decay / self.width

    @property
    def _power(self) -> float:
        return 2 * self.depth / (self.depth + 1)  # a

    @property
    def _centre(self) -> float:
        """Where the noise of linear regression is least, or its mean if the noise is the same everywhere."""
        m = self._moments
        return m.alpha2 / m.alpha1 if m.alpha1 > 0 else m.beta2 / self._stiffness

    @property
    def _spread(self) -> float:
        m = self._moments
        if m.alpha1 > 0:
            return self._root / m.alpha1
        return math.sqrt(m.alpha3 * self.temperature * self.width / self._stiffness)

    @property
    def _root(self) -> float:
        """Square root of the determinant of the noise, alpha1 alpha3 - alpha2^2."""
        m = self.stats
        return math.sqrt(max(m.alpha1 * m.alpha3 - m.alpha2**2, 0.0))

    def _g(self, v: Value) -> Value:
        m = self._moments
        return m.alpha1 * v**2 - 2 * m.alpha2 * v + m.alpha3

    def _check_noise(self) -> None:
        m = self.stats
        determinant = m.alpha1 * m.alpha3 - m.alpha2**2
        if m.alpha3 <= 0 or (m.alpha1 > 0 and determinant <= _SHARP * m.alpha1 * m.alpha3):
            raise InputError(
                "the gradient noise must vanish nowhere: alpha1 alpha3 - alpha2^2 must be > 0, got "
                f"{determinant:g} with alpha1={m.alpha1:g}, alpha3={m.alpha3:g}; without label noise SGD "
                "comes to rest and has no stationary density"
            )

    def _check_existence(self) -> None:
        if self.depth == 1:
            critical = self.stats.critical_temperature(self.weight_decay)
            if self.temperature >= critical:
                raise InputError(
                    f"temperature must be < (|beta2| - weight_decay) / alpha3 = {critical:g}, got "
                    f"{self.temperature:g}: SGD collapses to zero and has no stationary density"
                )
        elif self.weight_decay > 0:
            raise InputError(
                f"weight_decay must be 0 at depth {self.depth} >= 2, got {self.weight_decay:g}: zero then "
                "attracts at every temperature, and SGD has no stationary density"
            )
        elif self.stats.beta2 == 0:
            raise InputError(f"beta2 must not be 0 at depth {self.depth} >= 2: without a signal SGD dies out")

    @cached_property
    def _range(self) -> tuple[float, float]:
        """Range of the table: of ln v, or for linear regression of asinh of the scaled distance."""
        if self.depth == 0:
            return -40.0, 40.0
        m = self._moments
        scales = [m.beta2 / m.beta1, m.alpha3 * self.temperature / m.beta1]
        if m.alpha1 > 0:
            scales.append(math.sqrt(m.alpha3 / m.alpha1))
        low, high = math.log(min(scales)) - _LEFT, math.log(max(scales)) + _RIGHT
        if self.depth > 1:
            # From half the minimum down to v the exponent falls by steepness (v^(1-a) - half^(1-a)) or more.
            half, a = m.beta2 / m.beta1 / 2, self._power
            noisiest = max(m.alpha3, self._g(2 * half))
            steepness = self.width ** (a - 1) * m.beta2 / 2
            steepness /= self.temperature * (self.depth + 1) * (a - 1) * noisiest
            low = max(low, math.log(half ** (1 - a) + _VANISHED / steepness) / (1 - a))
        return low, high

    @cached_property
    def _table(self) -> TabulatedLaw:
        low, high = self._range
        if self.depth == 0:
            centre, spread = self._centre, self._spread
            return TabulatedLaw(
                lambda s: self._log_density(centre + spread * np.sinh(s)) + np.log(spread * np.cosh(s)),
                low,
                high,
            )
        rate = math.inf
        if self.depth == 1:
            m = self._moments
            rate = ((m.beta2 - self.weight_decay) / (m.alpha3 * self.temperature) - 1) / 2
        return TabulatedLaw(lambda s: self._log_density(np.exp(s)) + s, low, high, rate)

    def _log_density(self, v: Array) -> Array:
        """Return the log density without its constant; v > 0 unless depth is 0."""
        if self.depth == 0:
            return -np.log(self._g(v)) - self._regression_integral(v)
        if self.depth == 1:
            return -1.5 * np.log(v) - np.log(self._g(v)) - self._two_layer_integral(v)
        s = np.log(v)
        values = -1.5 * self._power * s - np.log(self._g(v)) - self._deep_integral(s)
        return np.where(s < self._range[0], -np.inf, values)

    def _regression_integral(self, v: Array) -> Array:
        m, heat = self._moments, self.temperature * self.width
        if m.alpha1 == 0:
            return (self._stiffness * v**2 / 2 - m.beta2 * v) / (heat * m.alpha3)
        turn = (m.alpha2 * self._stiffness - m.alpha1 * m.beta2) / (m.alpha1 * self._root)
        angle = np.arctan((m.alpha1 * v - m.alpha2) / self._root)
        return (self._stiffness / (2 * m.alpha1) * np.log(self._g(v)) + turn * angle) / heat

    def _two_layer_integral(self, v: Array) -> Array:
        m, heat = self._moments, 2 * self.temperature
        signal = m.beta2 - self.weight_decay
        if m.alpha1 == 0:
            return (m.beta1 * v - signal * np.log(v)) / (heat * m.alpha3)
        logs = signal * (np.log(self._g(v)) / 2 - np.log(v))
        angle = np.arctan((m.alpha1 * v - m.alpha2) / self._root)
        return (logs + (m.alpha3 * m.beta1 - m.alpha2 * signal) / self._root * angle) / (heat * m.alpha3)

    @cached_property
    def _deep_integral(self) -> Antiderivative:
        low, high = self._range
        zero = math.log(self._moments.beta2 / self._moments.beta1)
        return Antiderivative(
            lambda s: self._force(np.exp(s)) * np.exp(s), low, high, min(max(zero, low), high)
        )

    def _force(self, v: Value) -> Value:
        """The integrand of the exponent, without weight decay."""
        m, a = self._moments, self._power
        scale = self.width ** (a - 1) / ((self.depth + 1) * self.temperature)
        steepness: Value = scale * (m.beta1 * v - m.beta2) * v**-a / self._g(v)
        return steepness

    def _log_slope(self, v: float) -> float:
        m = self._moments
        noise = 2 * (m.alpha1 * v - m.alpha2) / self._g(v)
        return float(-1.5 * self._power / v - noise - self._force(v))
