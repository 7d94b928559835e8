r"""How much weight decay a deep network can bear before it gives up, and how it does.

A network of $D$ hidden layers, all of one width and one weight decay $\gamma$, trained on
$E(f-y)^2+\gamma\sum_i\|W_i\|^2$ (no factor 1/2, see :func:`torch_weight_decay`), is in the *learning* phase
at small $\gamma$ and in the *trivial* phase, all weights zero, at large $\gamma$. Order parameter is the
common magnitude $b \ge 0$ of the hidden weights. Depth decides how one phase gives way to the other:

=====  ==========================================================================================
$D=0$  never: ridge regression shrinks smoothly and vanishes nowhere
$D=1$  continuously (second order), at $\gamma_c=\|E[xy]\|$ for any inputs, width and noise
$D>1$  by a jump (first order) with hysteresis: between $\gamma_c$ and the spinodal the network that has
       learned survives although zero is better, and below $\gamma_c$ zero survives although it is worse
=====  ==========================================================================================

For isotropic inputs everything is in closed form; for others one maximum over one number remains, see
:mod:`symdyn_core.landscape.effective`. With a weight decay per layer, read $\gamma$ as their geometric mean.

Source: arXiv 2205.12510. Order and place of the transition at $D=1$ are the paper's; the closed forms for
$D \ge 2$, the spinodal and the anisotropic thresholds were derived here.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar

from symdyn_core.errors import InputError
from symdyn_core.landscape.effective import (
    SCAN_STEP,
    EffectiveProblem,
    FloatArray,
    Signal,
    signal_retention,
)


def transition_order(depth: int) -> Literal[1, 2] | None:
    """Return the order of the transition: None without hidden layer, 2 with one, 1 with two or more.

    Args:
        depth: number of hidden layers.

    Raises:
        InputError: negative depth.

    Example:
        >>> [transition_order(depth) for depth in (0, 1, 2, 3)]
        [None, 2, 1, 1]
    """
    _check_depth(depth)
    if depth == 0:
        return None
    return 2 if depth == 1 else 1


def torch_weight_decay(weight_decay: float, *, half_loss: bool) -> float:
    r"""Return the ``weight_decay`` of a torch optimizer that means $\gamma$ in $E(f-y)^2+\gamma\|W\|^2$.

    Torch adds $\tfrac12\lambda\|W\|^2$ to the loss it is given, so $\lambda=2\gamma$ beside $(f-y)^2$
    (``torch.nn.MSELoss`` with one output) and $\lambda=\gamma$ beside $\tfrac12(f-y)^2$. For the optimizers
    whose weight decay is a gradient of a penalty (SGD, Adam), not for the decoupled decay of AdamW.

    Args:
        weight_decay: $\gamma$ as in this package, >= 0.
        half_loss: whether the training loss carries the factor 1/2.

    Raises:
        InputError: negative or not finite.

    Example:
        >>> torch_weight_decay(0.1, half_loss=False)
        0.2
        >>> torch_weight_decay(0.1, half_loss=True)
        0.1
    """
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise InputError(f"weight_decay must be finite and >= 0, got {weight_decay}")
    return weight_decay if half_loss else 2 * weight_decay


def effective_loss(
    magnitude: ArrayLike,
    second_moment: ArrayLike,
    cross_moment: ArrayLike,
    label_moment: float = 0.0,
    *,
    depth: int,
    weight_decay: float,
    width: int = 1,
    noise_variance: float = 0.0,
) -> FloatArray:
    r"""Return the least loss with hidden weights of magnitude $b$, the network's Landau free energy.

    $$L(b) = E[y^2] - \sum_k\frac{d^{2D}b^{2D}m_k^2}{d^D(d+\sigma^2)^D a_k b^{2D}+\gamma} + \gamma D d^2b^2,$$

    exact, with $a_k$ the eigenvalues of $E[xx^T]$ and $m_k$ the components of $E[xy]$ along the eigenvectors.
    Its global minimum over $b\ge0$ is the global minimum of the network's loss.

    Args:
        magnitude: $b \ge 0$, any shape.
        second_moment: $E[xx^T]$, shape (n_features, n_features), or a number $a$ for $aI$.
        cross_moment: $E[xy]$, shape (n_features,), or a number for one feature.
        label_moment: $E[y^2]$, the loss of the zero network; by default the loss is counted from there.
        depth: number $D \ge 1$ of hidden layers.
        weight_decay: $\gamma > 0$.
        width: $d$ of every hidden layer.
        noise_variance: $\sigma^2 \ge 0$ of the factor on every hidden neuron.

    Returns:
        The shape of `magnitude`.

    Raises:
        InputError: moments that do not fit, or a number out of range.

    Source: arXiv 2205.12510, effective loss; re-derived.

    Example:
        $D=d=a=m=b=1$ and $\gamma=1/2$: $-1/(1+1/2)+1/2$.

        >>> float(effective_loss(1.0, 1.0, 1.0, depth=1, weight_decay=0.5).round(12))
        -0.166666666667
    """
    b = np.asarray(magnitude, dtype=float)
    if not (b >= 0).all():
        raise InputError("magnitude must be >= 0")
    if depth == 0:
        raise InputError("depth must be at least 1: without hidden layer there is no hidden weight")
    problem = _problem(second_moment, cross_moment, depth, weight_decay, width, noise_variance)
    penalty = weight_decay * width**2 * b**2
    explained = problem.retention * problem.signal.explained(problem.scale(penalty))
    return np.asarray(label_moment - explained + depth * penalty)


def critical_weight_decay(
    second_moment: ArrayLike,
    cross_moment: ArrayLike,
    *,
    depth: int,
    width: int = 1,
    noise_variance: float = 0.0,
) -> float:
    r"""Return $\gamma_c$: the best network learns below it and is zero above.

    With $\rho=(d/(d+\sigma^2))^D$,
    $\gamma_c^{(D+1)/D} = \max_s \tfrac1D\,\rho^{1-1/D}\,s^{-1/D}\,m^T(A+I/s)^{-1}m$.
    $D=1$: $\gamma_c=\|m\|$. Isotropic, $A=aI$:
    $\gamma_c^{D+1} = (\|m\|/D)^{2D}\,((D-1)\rho/a)^{D-1}$. $D=0$: infinity, there is no transition.

    Args:
        second_moment: $A=E[xx^T]$, shape (n_features, n_features), or a number $a$ for $aI$.
        cross_moment: $m=E[xy]$, shape (n_features,), or a number for one feature.
        depth: number $D$ of hidden layers.
        width: $d$ of every hidden layer; without noise it does not matter.
        noise_variance: $\sigma^2 \ge 0$ of the factor on every hidden neuron.

    Returns:
        $\gamma_c$ of the loss without factor 1/2; pass it through :func:`torch_weight_decay` for an
        optimizer.

    Raises:
        InputError: moments that do not fit, or a number out of range.

    Source: arXiv 2205.12510 for $D=1$; derived here for $D\ge2$.

    Example:
        >>> critical_weight_decay(1.0, [3.0, 4.0], depth=1)
        5.0
        >>> round(critical_weight_decay(1.0, 2.0, depth=2), 12)
        1.0
    """
    signal, retention = _signal(second_moment, cross_moment, depth, width, noise_variance)

    def log_gain(log_scale: FloatArray) -> FloatArray:
        return np.asarray(np.log(signal.explained(np.exp(log_scale)) / depth) - log_scale / depth)

    return _threshold(signal, retention, depth, log_gain, peak=depth - 1)


def spinodal_weight_decay(
    second_moment: ArrayLike,
    cross_moment: ArrayLike,
    *,
    depth: int,
    width: int = 1,
    noise_variance: float = 0.0,
) -> float:
    r"""Return $\gamma_{sp}\ge\gamma_c$, up to which a network that has learned is still a local minimum.

    $\gamma_{sp}^{(D+1)/D} = \max_s \rho^{1-1/D}\,s^{1-1/D}\sum_k m_k^2/(1+s a_k)^2$. A trained network whose
    weight decay is raised slowly keeps what it knows up to here, loses it at once, and does not recover when
    weight decay is lowered again, as zero is a local minimum at any $\gamma>0$ for $D\ge2$. Isotropic,
    $A=aI$: $\gamma_{sp}^{D+1} = \big(\|m\|\tfrac{D+1}{2D}\big)^{2D}\big(\tfrac{D-1}{D+1}\tfrac\rho
    a\big)^{D-1}$. $D=1$: $\gamma_{sp}=\gamma_c$, no hysteresis. $D=0$: infinity.

    Args:
        second_moment: $A=E[xx^T]$, shape (n_features, n_features), or a number $a$ for $aI$.
        cross_moment: $m=E[xy]$, shape (n_features,), or a number for one feature.
        depth: number $D$ of hidden layers.
        width: $d$ of every hidden layer; without noise it does not matter.
        noise_variance: $\sigma^2 \ge 0$ of the factor on every hidden neuron.

    Raises:
        InputError: moments that do not fit, or a number out of range.

    Source: derived here from the effective loss of arXiv 2205.12510.

    Example:
        $D=2$, $m=2$, $a=1$: $\gamma_{sp}^3=(2\cdot\tfrac34)^4/3=27/16$.

        >>> round(spinodal_weight_decay(1.0, 2.0, depth=2) ** 3, 12)
        1.6875
    """
    signal, retention = _signal(second_moment, cross_moment, depth, width, noise_variance)

    def log_gain(log_scale: FloatArray) -> FloatArray:
        return np.asarray(np.log(signal.marginal(np.exp(log_scale))) + (1 - 1 / depth) * log_scale)

    return _threshold(signal, retention, depth, log_gain, peak=(depth - 1) / (depth + 1))


class OrderParameter(NamedTuple):
    r"""State of the best network at one weight decay.

    Attributes:
        magnitude: $b$, the common magnitude of the hidden weights (NaN without hidden layer).
        slope: norm of the mean prediction's coefficients; $E f(x)=$ slope $\hat m^T x$ for isotropic inputs.
        phase: "learning" or "trivial".
    """

    magnitude: float
    slope: float
    phase: Literal["learning", "trivial"]


def order_parameter(
    weight_decay: float,
    second_moment: ArrayLike,
    cross_moment: ArrayLike,
    *,
    depth: int,
    width: int = 1,
    noise_variance: float = 0.0,
    branch: Literal["global", "learning"] = "global",
) -> OrderParameter:
    r"""Return what is left of the network at a weight decay: magnitude of its weights, slope, phase.

    For isotropic inputs the slope at the transition is universal: just below $\gamma_c$ it is the fraction
    $(D-1)/D$ of the most that noise allows, $\rho\|m\|/a$, and just below the spinodal $(D-1)/(2D)$ of it.

    Args:
        weight_decay: $\gamma > 0$.
        second_moment: $E[xx^T]$, shape (n_features, n_features), or a number $a$ for $aI$.
        cross_moment: $E[xy]$, shape (n_features,), or a number for one feature.
        depth: number $D$ of hidden layers.
        width: $d$ of every hidden layer.
        noise_variance: $\sigma^2 \ge 0$ of the factor on every hidden neuron.
        branch: "global", the best network; or "learning", the best of the networks other than zero as long as
            one is a local minimum, which is where a trained network stays when weight decay is raised.

    Raises:
        InputError: moments that do not fit, or a number out of range.

    Source: arXiv 2205.12510; the universal fractions were derived here.

    Example:
        One hidden layer, $a=1$, $m=2$, $\gamma=1$: the slope is $(m-\gamma)/a$.

        >>> state = order_parameter(1.0, 1.0, 2.0, depth=1)
        >>> round(state.magnitude, 12), round(state.slope, 12), state.phase
        (1.0, 1.0, 'learning')
        >>> order_parameter(3.0, 1.0, 2.0, depth=1)
        OrderParameter(magnitude=0.0, slope=0.0, phase='trivial')
    """
    if branch not in ("global", "learning"):
        raise InputError(f"branch must be 'global' or 'learning', got {branch!r}")
    problem = _problem(second_moment, cross_moment, depth, weight_decay, width, noise_variance)
    scale, _ = problem.best(zero=branch == "global")
    if scale == 0 or problem.signal.strength == 0:
        return OrderParameter(0.0 if depth else math.nan, 0.0, "trivial")
    slope = problem.retention * float(np.linalg.norm(problem.signal.ridge_coefficients(scale)))
    if depth == 0:
        return OrderParameter(math.nan, slope, "learning")
    magnitude = math.sqrt(float(problem.layer_penalty(scale)) / weight_decay) / width
    return OrderParameter(magnitude, slope, "learning")


def _threshold(
    signal: Signal,
    retention: float,
    depth: int,
    log_gain: Callable[[FloatArray], FloatArray],
    peak: float,
) -> float:
    r"""Return $\big(\rho^{1-1/D}\max_s e^{\mathrm{log\_gain}}\big)^{D/(D+1)}$.

    The gain is a sum over eigenvalues whose terms peak at $s a_k$ = `peak`, so its maximum lies between the
    largest and the smallest of these $s$: they coincide for isotropic data.
    """
    if depth == 0:
        return math.inf
    if depth == 1 or signal.strength == 0:
        return signal.strength
    first, last = (math.log(peak / a) for a in (signal.eigenvalues[-1], signal.eigenvalues[0]))
    grid = np.linspace(first, last, 2 + int((last - first) / SCAN_STEP))
    gains = log_gain(grid)
    best = int(gains.argmax())
    highest = float(gains[best])
    left, right = grid[max(best - 1, 0)], grid[min(best + 1, grid.size - 1)]
    if right > left:
        found = minimize_scalar(
            lambda x: -float(log_gain(x)), bounds=(left, right), method="bounded", options={"xatol": 1e-9}
        )
        highest = max(highest, -float(found.fun))
    return math.exp((highest + (1 - 1 / depth) * math.log(retention)) * depth / (depth + 1))


def _problem(
    second_moment: ArrayLike,
    cross_moment: ArrayLike,
    depth: int,
    weight_decay: float,
    width: int,
    noise_variance: float,
) -> EffectiveProblem:
    signal, retention = _signal(second_moment, cross_moment, depth, width, noise_variance)
    if not (math.isfinite(weight_decay) and weight_decay > 0):
        raise InputError(f"weight_decay must be finite and > 0, got {weight_decay}")
    return EffectiveProblem(signal, depth, retention, (depth + 1) * math.log(weight_decay))


def _signal(
    second_moment: ArrayLike, cross_moment: ArrayLike, depth: int, width: int, noise_variance: float
) -> tuple[Signal, float]:
    _check_depth(depth)
    return Signal.of(second_moment, cross_moment), signal_retention([width] * depth, noise_variance)


def _check_depth(depth: int) -> None:
    if not (float(depth).is_integer() and depth >= 0):
        raise InputError(f"depth must be a whole number >= 0, got {depth}")
