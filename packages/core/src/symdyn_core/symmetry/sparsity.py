r"""Exact L1 and group-lasso penalties for any differentiable loss, by redundant parameters and weight decay.

Write a weight as a product $w = u\odot v$ and decay both factors. Every $w$ has many factorizations; the
cheapest costs $\min_{uv=w}\frac\lambda2(u^2+v^2)=\lambda|w|$, so training the factors minimises
$L(w)+\lambda\|w\|_1$, with no subgradient and no stationary point that is not one of the lasso or a strict
saddle. A scalar factor in front of a group of weights gives the group lasso the same way.

Three things make it fail in silence, and are refused here: decay outside the gradient (AdamW), decay other
than the stated strength, and factors that start equal in magnitude: the updates keep $u=v$, so $w=u^2$ never
becomes negative. Zeros are approached, not reached; :func:`merge_spred` rounds them.

**Deep networks.** A layer in front of ReLU can shrink by any factor that the next layer takes up, and with it
its penalty, unless the next layer pays too. So an L1 strength means something only where all layers that
share a rescaling are decayed or penalised: factorize the whole model (the default) or give the optimizer a
``weight_decay`` for the rest. A step with neither gives an
:class:`~symdyn_core.symmetry.factors.EvadedPenaltyWarning`.

**When not to use it.** Where the loss is one that a dedicated Lasso solver accepts (squared, logistic, Huber
or Poisson loss of a linear model), use that solver: it is tens to hundreds of times faster and its zeros are
exact. Inside networks, we know of no accuracy that this gains over a subgradient of the L1 norm under Adam
and a decaying learning rate; what it gains is an objective that is smooth and a strength that is exact.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from symdyn_core.errors import InputError
from symdyn_core.symmetry.factors import (
    Factorization,
    Holder,
    Init,
    Weight,
    check_factorizable,
    check_finite,
    check_start,
    check_thresholds,
    factor_groups,
    factorized,
    select,
    weight_gradients,
)
from symdyn_core.symmetry.penalty import group_norms, kkt_violation, spread

Mode = Literal["elementwise", "in_features", "out_features"]

_UNITS = {"elementwise": "entries", "in_features": "inputs", "out_features": "outputs"}
# Layers whose weight has inputs along axis 0 and outputs along axis 1; all others have them the other way.
_INPUTS_FIRST = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Embedding, nn.EmbeddingBag)


def spred(
    module: nn.Module,
    names: Sequence[str] | None = None,
    *,
    alpha: float,
    exclude: Sequence[str] = (),
    mode: Mode = "elementwise",
    block: int = 1,
    init: Init = "pretrained",
    scale: float | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    r"""Factorize weights so that decaying the factors is an exact L1 (or group-lasso) penalty on the weights.

    $$\min_{u\odot v=w} L(w)+\frac{\alpha}{2}\left(\|u\|^2+\|v\|^2\right) = L(w)+\alpha\|w\|_1$$

    ``mode="in_features"`` and ``"out_features"`` put one scalar before all weights of an input or output:
    $\alpha\sum_j\|w_j\|_2$ over the groups $j$, whatever their size. The module is changed in place and keeps
    its interface; ``alpha`` means what it means in scikit-learn's ``Lasso`` if the loss is half the mean
    squared error.

    From now on, every optimizer in this process refuses to step the factors unless their ``weight_decay`` is
    ``alpha`` and coupled (see :func:`~symdyn_core.symmetry.factors.check_factor_decay`).

    Args:
        module: model or layer; submodules are searched.
        names: parameters to factorize, each a local name (``"weight"``: of every submodule that has one), a
            full one (``"encoder.0.weight"``) or a pattern for full ones (``"encoder.*"``). By default all of
            two or more axes: every weight, no bias, no normalisation. A tied parameter is factorized once.
        alpha: strength of the penalty, > 0.
        exclude: names as above that are left alone.
        mode: what vanishes as one: entries, inputs (axis 1 of a linear or convolutional weight) or outputs
            (axis 0); embeddings and transposed convolutions have these axes the other way round, and so has
            this.
        block: number of consecutive inputs or outputs that vanish as one, ``head_dim`` for attention heads.
        init: ``"pretrained"`` keeps the layer's function: $u=\text{scale}$, $v=w/\text{scale}$;
            ``"random"`` draws both factors from $N(0,\text{scale}^2)$.
        scale: magnitude of the start, > 0; by default 1 (pretrained) or 0.3 (random).
        seed: of the random start.

    Returns:
        Parameter groups of the whole module for ``torch.optim``: the factors with ``weight_decay=alpha``, the
        other parameters without, so that these follow the optimizer's own default.

    Raises:
        InputError: a value out of range; no such parameter; a parameter that is frozen, already parametrized,
            of a recurrent layer (``nn.LSTM`` and its like see no parametrization) or without such an axis;
            factors that would start equal (weights of magnitude scale²).

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
    scale = check_start(alpha, init, scale)
    if mode not in get_args(Mode):
        raise InputError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
    chosen = select(module, names, exclude)
    products = []
    for weight in chosen:  # everything that can be refused is, before anything is changed
        check_factorizable(weight)
        axis = _group_axis(weight, mode, block)
        products.append(_Product(weight.name, alpha, mode, axis, block, scale))
        if init == "pretrained":
            products[-1].right_inverse(weight.value.detach())
    for weight, product in zip(chosen, products, strict=True):
        if init == "random":
            with torch.no_grad():
                weight.value.zero_()
        weight.factorize(product)
        if init == "random":
            weight.draw(scale, seed, "spred")
    return factor_groups(module)


@dataclass(frozen=True)
class LayerSparsity:
    """What is left of one weight: ``kept`` of ``total`` units: entries, or blocks of inputs or outputs."""

    name: str
    mode: Mode
    kept: int
    total: int
    block: int = 1

    def __str__(self) -> str:
        share = 100 * self.kept / max(self.total, 1)
        unit = _UNITS[self.mode] if self.block == 1 else f"blocks of {self.block} {_UNITS[self.mode]}"
        return f"{self.name}: {self.kept} of {self.total} {unit} ({share:.1f} %)"


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

    A unit (entry, or block of inputs or outputs, by the mode) is kept if its norm exceeds both ``floor`` and
    ``tau`` times the layer's largest. Gradient descent approaches zeros exponentially and never arrives, so
    this is part of the method. The weights are new ``Parameter`` objects, tied where they were: make a new
    optimizer to go on training.

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
    check_thresholds(tau, floor)
    found = list(factorized(module, _Product))
    check_finite(found)
    layers = []
    for weight in found:
        by, value = weight.by, weight.value.detach()
        norms = group_norms(value, by.axis, by.block)
        keep = norms > max(floor, tau * float(norms.max()))
        weight.merge(torch.where(spread(keep, by.axis, by.block), value, torch.zeros_like(value)))
        layers.append(LayerSparsity(weight.name, by.mode, int(keep.sum()), keep.numel(), by.block))
    return SparsityReport(tuple(layers))


def kkt_residual(
    module: nn.Module,
    loss_fn: Callable[[], Tensor],
    alpha: float,
    *,
    names: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    mode: Mode = "elementwise",
    block: int = 1,
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
        exclude: as in :func:`spred`.
        mode: as in :func:`spred`.
        block: as in :func:`spred`.
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
    check_thresholds(tau)
    chosen = select(module, names, exclude)
    return max(
        kkt_violation(weight.value.detach(), gradient, alpha, axis=axis, block=block, tau=tau)
        for weight, gradient, axis in zip(
            chosen,
            weight_gradients(chosen, loss_fn),
            [_group_axis(weight, mode, block) for weight in chosen],
            strict=True,
        )
    )


class _Product(Factorization):
    """The parametrization: forward multiplies the factors, ``right_inverse`` splits a weight into them."""

    def __init__(
        self, name: str, alpha: float, mode: Mode, axis: int | None, block: int, scale: float
    ) -> None:
        super().__init__(name, alpha, scale)
        self.mode, self.axis, self.block = mode, axis, block

    def forward(self, mask: Tensor, vector: Tensor) -> Tensor:
        self.watch(mask, vector)
        return spread(mask, self.axis, self.block) * vector

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return self.split(group_norms(weight, self.axis, self.block), weight)


def _group_axis(weight: Weight, mode: Mode, block: int) -> int | None:
    """Axis along which groups are counted; raises InputError if the holders have no common one."""
    if mode == "elementwise":
        if block != 1:
            raise InputError(f"block={block} needs mode in_features or out_features, got elementwise")
        return None
    axes = {_axis_of(holder, mode) for holder in weight.holders}
    if len(axes) > 1:
        names = " and ".join(holder.name for holder in weight.holders)
        raise InputError(f"{names} are one tied parameter, of which {mode} are different axes")
    (axis,) = axes
    length = weight.value.shape[axis]
    if block < 1 or length % block:
        raise InputError(f"block must divide the {length} {mode} of {weight.name}, got {block}")
    return axis


def _axis_of(holder: Holder, mode: Mode) -> int:
    axis = int((mode == "in_features") != isinstance(holder.owner, _INPUTS_FIRST))
    shape = tuple(holder.value.shape)
    if len(shape) <= axis:
        raise InputError(f"{holder.name} of shape {shape} has no axis of {mode}")
    if axis == 1 and getattr(holder.owner, "groups", 1) != 1:
        raise InputError(f"{holder.name} belongs to a grouped convolution, whose axis 1 is not {mode}")
    return axis
