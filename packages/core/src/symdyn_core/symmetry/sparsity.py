r"""Exact L1 and group-lasso penalties for any differentiable loss, by redundant parameters and weight decay.

Write a weight as a product $w = u\odot v$ and decay both factors. Every $w$ has many factorizations; the
cheapest costs $\min_{uv=w}\frac\lambda2(u^2+v^2)=\lambda|w|$, so training the factors minimises
$L(w)+\lambda\|w\|_1$, with no subgradient and no stationary point that is not one of the lasso or a strict
saddle. A scalar factor in front of a group of weights gives the group lasso the same way.

Three things make it fail in silence, and are refused here: decay outside the gradient (AdamW), decay other
than the stated strength, and factors that start equal in magnitude: the updates keep $u=v$, so $w=u^2$ never
becomes negative. Two things remain to the user: zeros are approached, not reached (:func:`merge_spred` rounds
them), and in a network whose next layer is not decayed the penalty can be evaded by rescaling.

Where the loss is one that a dedicated Lasso solver accepts, use that: it is tens to hundreds of times faster.
"""

import functools
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from torch.utils.weak import WeakTensorKeyDictionary

from symdyn_core.errors import InputError
from symdyn_core.random import torch_generator
from symdyn_core.symmetry.decay import has_coupled_decay
from symdyn_core.symmetry.penalty import group_norms, kkt_violation

Mode = Literal["elementwise", "in_features", "out_features"]
Init = Literal["pretrained", "random"]

_UNITS = {"elementwise": "entries", "in_features": "inputs", "out_features": "outputs"}

# Factor -> the weight decay it must get. Weak, so that merged and dropped models leave nothing behind.
_FACTORS = WeakTensorKeyDictionary()
# Optimizer -> the options under which it was found good, so that a training step pays for one comparison.
_CHECKED: weakref.WeakKeyDictionary[Optimizer, list[tuple[Any, ...]]] = weakref.WeakKeyDictionary()


def spred(
    module: nn.Module,
    names: Sequence[str] = ("weight",),
    *,
    alpha: float,
    mode: Mode = "elementwise",
    init: Init = "pretrained",
    scale: float | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    r"""Factorize weights so that decaying the factors is an exact L1 (or group-lasso) penalty on the weights.

    $$\min_{u\odot v=w} L(w)+\frac{\alpha}{2}\left(\|u\|^2+\|v\|^2\right) = L(w)+\alpha\|w\|_1$$

    ``mode="in_features"`` and ``"out_features"`` put one scalar before all weights of an input or output:
    $\alpha\sum_j\|w_j\|_2$ over the groups $j$. The module is changed in place and keeps its interface;
    ``alpha`` means what it means in scikit-learn's ``Lasso`` if the loss is half the mean squared error.

    From now on, every optimizer in this process refuses to step the factors unless their ``weight_decay`` is
    ``alpha`` and coupled (see :func:`check_spred_optimizer`).

    Args:
        module: model or layer; submodules are searched.
        names: parameters to factorize, each a local name (``"weight"``: of every submodule that has one) or a
            full one (``"encoder.0.weight"``: only that).
        alpha: strength of the penalty, > 0.
        mode: what vanishes as one: entries, inputs (axis 1 of a linear or convolutional weight) or outputs
            (axis 0); transposed convolutions have the axes the other way round, and so has this.
        init: ``"pretrained"`` keeps the layer's function: $u=w/\text{scale}$, $v=\text{scale}$;
            ``"random"`` draws both factors from $N(0,\text{scale}^2)$.
        scale: magnitude of the start, > 0; by default 1 (pretrained) or 0.3 (random).
        seed: of the random start.

    Returns:
        Parameter groups of the whole module for ``torch.optim``: the factors with ``weight_decay=alpha``, the
        other parameters without, so that these follow the optimizer's own default.

    Raises:
        InputError: a value out of range; no such parameter; a parameter that is frozen, tied, already
            parametrized or has no such axis; factors that would start equal (weights of magnitude scale²).

    Source:
        arXiv:2210.01212; the constants re-derived in torch's convention.

    Soft thresholding by 0.5, written as training:

    >>> model = torch.nn.utils.skip_init(torch.nn.Linear, 2, 1, bias=False)
    >>> optimizer = torch.optim.SGD(spred(model, alpha=0.5, init="random"), lr=0.1)
    >>> for _ in range(300):
    ...     optimizer.zero_grad()
    ...     (0.5 * (model.weight - torch.tensor([[2.0, -0.3]])).square().sum()).backward()
    ...     optimizer.step()
    >>> print(merge_spred(model))
    weight: 1 of 2 entries (50.0 %)
    >>> [round(value, 4) for value in model.weight[0].tolist()]
    [1.5, 0.0]
    """
    if not (math.isfinite(alpha) and alpha > 0):
        raise InputError(f"alpha must be finite and > 0, got {alpha}")
    for what, value, allowed in (("mode", mode, get_args(Mode)), ("init", init, get_args(Init))):
        if value not in allowed:
            raise InputError(f"{what} must be one of {', '.join(allowed)}, got {value!r}")
    if scale is None:
        scale = 1.0 if init == "pretrained" else 0.3
    if not (math.isfinite(scale) and scale > 0):
        raise InputError(f"scale must be finite and > 0, got {scale}")

    chosen = _select(module, names)
    products = []
    for name, owner, local in chosen:  # everything that can be refused is, before anything is changed
        _check_trainable(module, name, owner, local)
        axis = _group_axis(name, owner, local, mode)
        products.append(_Product(name, alpha, mode, axis, scale))
        if init == "pretrained":
            products[-1].right_inverse(getattr(owner, local).detach())
    for (name, owner, local), product in zip(chosen, products, strict=True):
        if init == "random":
            with torch.no_grad():
                getattr(owner, local).zero_()
        parametrize.register_parametrization(owner, local, product)
        if init == "random":
            generator = torch_generator(seed, "spred", name)
            for factor in _factors(owner, local):
                drawn = torch.randn(factor.shape, generator=generator, dtype=torch.float64)
                with torch.no_grad():
                    factor.copy_(scale * drawn)
    return spred_groups(module)


def spred_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Return the optimizer's parameter groups of a module with factorized weights, as :func:`spred` does.

    For a second call of :func:`spred` on the same model with another strength, or a copy of the model.

    Raises:
        InputError: no weight of the module is factorized.

    >>> model = torch.nn.Sequential(torch.nn.LayerNorm(3), torch.nn.LayerNorm(3))
    >>> _ = spred(model[0], alpha=0.1, init="random")
    >>> _ = spred(model[1], alpha=0.2, init="random")
    >>> [(len(group["params"]), group.get("weight_decay")) for group in spred_groups(model)]
    [(2, 0.1), (2, 0.2), (2, None)]
    """
    by_strength: dict[float, list[nn.Parameter]] = {}
    for _, owner, local, product in _factorized(module):
        by_strength.setdefault(product.alpha, []).extend(_factors(owner, local))
    taken = {id(factor) for factors in by_strength.values() for factor in factors}
    rest = [parameter for parameter in module.parameters() if id(parameter) not in taken]
    groups: list[dict[str, Any]] = [
        {"params": factors, "weight_decay": strength} for strength, factors in by_strength.items()
    ]
    return [*groups, {"params": rest}] if rest else groups


def check_spred_optimizer(optimizer: Optimizer) -> None:
    """Raise unless the optimizer's decay of factorized weights is the stated L1 penalty.

    Runs by itself before the optimizer's first step and whenever its groups have changed; call it to hear of
    a mistake when the optimizer is made.

    Raises:
        InputError: ``weight_decay`` of a factor is not its ``alpha``, or not the gradient of an L2 penalty.

    >>> layer = torch.nn.LayerNorm(3)
    >>> check_spred_optimizer(torch.optim.AdamW(spred(layer, alpha=0.1, init="random")))
    Traceback (most recent call last):
    symdyn_core.errors.InputError: AdamW applies weight_decay outside the gradient ...
    """
    kind = type(optimizer).__name__
    for index, group in enumerate(optimizer.param_groups):
        strengths = sorted({_FACTORS[factor] for factor in group["params"] if factor in _FACTORS})
        if not strengths:
            continue
        decay = group.get("weight_decay")
        if strengths != [decay]:
            raise InputError(
                f"factors of a spred weight must have weight_decay=alpha={', '.join(map(str, strengths))} "
                f"in {kind}, got {decay}; make the optimizer from the groups that spred() or spred_groups() "
                "returns"
            )
        if not has_coupled_decay(optimizer, index):
            raise InputError(
                f"{kind} applies weight_decay outside the gradient (decoupled), so it does not minimise an "
                "L2 penalty on the factors and the result is not the lasso; use SGD or Adam"
            )


@dataclass(frozen=True)
class LayerSparsity:
    """What is left of one weight: ``kept`` of ``total`` units, which are entries, inputs or outputs."""

    name: str
    mode: Mode
    kept: int
    total: int

    def __str__(self) -> str:
        share = 100 * self.kept / max(self.total, 1)
        return f"{self.name}: {self.kept} of {self.total} {_UNITS[self.mode]} ({share:.1f} %)"


@dataclass(frozen=True)
class SparsityReport:
    """What :func:`merge_spred` kept, layer by layer."""

    layers: tuple[LayerSparsity, ...]

    @property
    def kept(self) -> int:
        """Units kept in all layers."""
        return sum(layer.kept for layer in self.layers)

    @property
    def total(self) -> int:
        """Units in all layers."""
        return sum(layer.total for layer in self.layers)

    def __str__(self) -> str:
        return "\n".join(map(str, self.layers))


def merge_spred(module: nn.Module, tau: float = 1e-3, *, floor: float = 1e-8) -> SparsityReport:
    """Turn factorized weights back into plain parameters, with small ones set to exact zero.

    A unit (entry, input or output, by the mode) is kept if its norm exceeds both ``floor`` and ``tau`` times
    the layer's largest. Gradient descent approaches zeros exponentially and never arrives, so this is part of
    the method. The weights are new ``Parameter`` objects: make a new optimizer to go on training.

    Args:
        module: a module that :func:`spred` has changed; changed back in place.
        tau: relative threshold, in [0, 1).
        floor: absolute threshold >= 0, for a layer that has vanished as a whole.

    Raises:
        InputError: a threshold out of range, a weight that is not finite, nothing to merge.

    >>> layer = torch.nn.utils.skip_init(torch.nn.Linear, 2, 1, bias=False)
    >>> layer.weight.data = torch.tensor([[2.0, 1e-6]])
    >>> _ = spred(layer, alpha=0.1)
    >>> merge_spred(layer).kept
    1
    >>> layer.weight.tolist()
    [[2.0, 0.0]]
    """
    if not 0 <= tau < 1:
        raise InputError(f"tau must be in [0, 1), got {tau}")
    if not floor >= 0:
        raise InputError(f"floor must be >= 0, got {floor}")
    found = list(_factorized(module))
    for name, owner, local, _ in found:
        if not torch.isfinite(getattr(owner, local)).all():
            raise InputError(f"{name} has entries that are not finite; has the training diverged?")
    layers = []
    for name, owner, local, product in found:
        trainable = all(factor.requires_grad for factor in _factors(owner, local))
        weight = getattr(owner, local).detach()
        norms = group_norms(weight, product.axis)
        keep = norms > max(floor, tau * float(norms.max()))
        parametrize.remove_parametrizations(owner, local)
        # torch leaves a buffer where a factor was frozen; what was a parameter shall be one again.
        delattr(owner, local)
        merged = torch.where(keep, weight, torch.zeros_like(weight))
        owner.register_parameter(local, nn.Parameter(merged, requires_grad=trainable))
        layers.append(LayerSparsity(name, product.mode, int(keep.sum()), keep.numel()))
    return SparsityReport(tuple(layers))


def kkt_residual(
    module: nn.Module,
    loss_fn: Callable[[], Tensor],
    alpha: float,
    *,
    names: Sequence[str] = ("weight",),
    mode: Mode = "elementwise",
    tau: float = 1e-3,
) -> float:
    r"""Return by how much weights miss the optimality conditions of the L1-penalised loss; 0 at a minimum.

    $$w_j\ne 0:\ \left\|g_j+\alpha\tfrac{w_j}{\|w_j\|}\right\|,\qquad
      w_j=0:\ \max(\|g_j\|-\alpha,\,0),\qquad g=\partial L/\partial w$$

    The largest over the units $j$ (entries or groups). It does not depend on how the weights came about: it
    serves factorized, merged and ordinary ones alike.

    Args:
        module: the model.
        loss_fn: evaluates the loss without penalty, on the module as it is.
        alpha: strength of the penalty, > 0.
        names: as in :func:`spred`.
        mode: as in :func:`spred`.
        tau: units whose norm is at most ``tau`` times the layer's largest count as zero.

    Raises:
        InputError: a value out of range, no such weight, or a weight that is frozen.

    Source:
        The subdifferential of a sum of norms; arXiv:2210.01212 for its meaning as stability of $u=v=0$.

    >>> layer = torch.nn.utils.skip_init(torch.nn.Linear, 2, 1, bias=False)
    >>> layer.weight.data = torch.tensor([[1.5, 0.0]])
    >>> target = torch.tensor([[2.0, -0.75]])  # the second entry should have become -0.25
    >>> kkt_residual(layer, lambda: 0.5 * (layer.weight - target).square().sum(), alpha=0.5)
    0.25
    """
    if not (math.isfinite(alpha) and alpha > 0):
        raise InputError(f"alpha must be finite and > 0, got {alpha}")
    if not 0 <= tau < 1:
        raise InputError(f"tau must be in [0, 1), got {tau}")
    chosen = _select(module, names)
    with torch.enable_grad(), parametrize.cached():
        weights = [getattr(owner, local) for _, owner, local in chosen]
        for (name, _, _), weight in zip(chosen, weights, strict=True):
            if not weight.requires_grad:
                raise InputError(f"{name} is frozen (requires_grad=False), so it has no gradient")
        gradients = torch.autograd.grad(loss_fn(), weights, allow_unused=True, materialize_grads=True)
    return max(
        kkt_violation(weight.detach(), gradient, alpha, axis=_group_axis(name, owner, local, mode), tau=tau)
        for (name, owner, local), weight, gradient in zip(chosen, weights, gradients, strict=True)
    )


class _Product(nn.Module):
    """The parametrization: forward multiplies the factors, ``right_inverse`` splits a weight into them."""

    def __init__(self, name: str, alpha: float, mode: Mode, axis: int | None, scale: float) -> None:
        super().__init__()
        self.name, self.alpha, self.mode, self.axis, self.scale = name, alpha, mode, axis, scale

    def forward(self, mask: Tensor, vector: Tensor) -> Tensor:
        # Here and not only in spred(): a copied or unpickled model has new factors.
        if not torch.compiler.is_compiling():
            _watch(self.alpha, mask, vector)
        return mask * vector

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        mask = torch.full_like(group_norms(weight, self.axis), self.scale)
        vector = weight / self.scale
        # A group of several weights can turn instead of passing through zero; a single weight cannot.
        if mask.numel() == weight.numel():
            equal = torch.isclose(mask, vector.abs(), rtol=1e-6, atol=0.0)
            if equal.any():
                raise InputError(
                    f"{int(equal.sum())} of {weight.numel()} weights of {self.name} have magnitude "
                    f"scale²={self.scale**2:g}, so their factors would start with |u| = |v|: gradient "
                    "descent keeps them so, the weights can never change sign, and the result is a "
                    "sign-constrained (for u = v the non-negative) lasso; choose another scale, or "
                    "init='random'"
                )
        return mask, vector


def _watch(alpha: float, *factors: Tensor) -> None:
    """Have every optimizer that steps these factors checked first."""
    _guard_optimizers()
    for factor in factors:
        if isinstance(factor, nn.Parameter) and factor not in _FACTORS:
            _FACTORS[factor] = alpha


@functools.cache
def _guard_optimizers() -> None:
    # Only a step brings an optimizer and a factor together, so only there is a mismatch sure to be seen.
    register_optimizer_step_pre_hook(_before_step)


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    options: list[tuple[Any, ...]] = [
        (group.get("weight_decay"), group.get("decoupled_weight_decay"), len(group["params"]))
        for group in optimizer.param_groups
    ]
    options.append((len(_FACTORS),))  # a parameter it has long held may have become known as a factor
    if _CHECKED.get(optimizer) != options:
        check_spred_optimizer(optimizer)
        _CHECKED[optimizer] = options


def _group_axis(name: str, owner: nn.Module, local: str, mode: Mode) -> int | None:
    """Axis along which groups are counted."""
    if mode == "elementwise":
        return None
    weight = getattr(owner, local)
    transposed = isinstance(owner, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    axis = int((mode == "in_features") != transposed)
    if weight.ndim <= axis:
        raise InputError(f"{name} of shape {tuple(weight.shape)} has no axis of {mode}")
    if axis == 1 and getattr(owner, "groups", 1) != 1:
        raise InputError(f"{name} belongs to a grouped convolution, whose axis 1 is not {mode}")
    return axis


def _factors(owner: nn.Module, local: str) -> list[nn.Parameter]:
    originals: list[nn.Parameter] = list(_parametrization(owner, local).parameters())
    return originals


def _parametrization(owner: nn.Module, local: str) -> parametrize.ParametrizationList:
    found = owner.get_submodule(f"parametrizations.{local}")
    assert isinstance(found, parametrize.ParametrizationList)
    return found


def _tensors(module: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Full name, owner and local name of every parameter, factorized or not."""
    for prefix, owner in module.named_modules():
        if isinstance(owner, parametrize.ParametrizationList):
            continue
        parametrized = getattr(owner, "parametrizations", {}) if parametrize.is_parametrized(owner) else {}
        plain = [local for local, parameter in owner._parameters.items() if parameter is not None]
        for local in [*plain, *parametrized]:
            yield (f"{prefix}.{local}" if prefix else local), owner, local


def _select(module: nn.Module, names: Sequence[str]) -> list[tuple[str, nn.Module, str]]:
    if isinstance(names, str):
        raise InputError(f"names must be a list of names, got the single text {names!r}")
    available = list(_tensors(module))
    for name in names:
        if not any(name in (full, local) for full, _, local in available):
            known = ", ".join(full for full, _, _ in available) or "none"
            raise InputError(f"{type(module).__name__} has no parameter {name!r}; it has: {known}")
    return [entry for entry in available if entry[0] in names or entry[2] in names]


def _check_trainable(module: nn.Module, name: str, owner: nn.Module, local: str) -> None:
    if parametrize.is_parametrized(owner, local):
        raise InputError(f"{name} is already parametrized")
    weight = getattr(owner, local)
    if not weight.is_floating_point():
        raise InputError(f"{name} must be real floating point, got {weight.dtype}")
    if not weight.requires_grad:
        raise InputError(f"{name} is frozen (requires_grad=False), so a penalty on it has no effect")
    holders = [full for full, other, key in _tensors(module) if other._parameters.get(key) is weight]
    if len(holders) > 1:
        raise InputError(f"{' and '.join(holders)} are one tied parameter; untie them to factorize one")


def _factorized(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, _Product]]:
    """Every factorized weight of the module; raises InputError if there is none."""
    found = 0
    for name, owner, local in _tensors(module):
        if not parametrize.is_parametrized(owner, local):
            continue
        chain = list(_parametrization(owner, local))
        if not isinstance(chain[0], _Product):
            continue
        if len(chain) > 1:
            raise InputError(f"{name} has another parametrization on top of spred's; remove that one first")
        found += 1
        yield name, owner, local, chain[0]
    if not found:
        raise InputError(f"{type(module).__name__} has no weight factorized by spred()")
