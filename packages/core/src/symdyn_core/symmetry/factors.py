"""Weights written in factors that an optimizer decays: which they are, and what may step them.

Decay of factors is a penalty on the weight they make up (L1, group lasso, an exact penalty of a constraint)
only if it has the stated strength and is part of the gradient. So every optimizer of the process is asked
before it steps a known factor, whoever made it and from whatever list of parameters.
:mod:`symdyn_core.symmetry.sparsity` and :mod:`symdyn_core.symmetry.constraint` write weights in factors.
"""

import fnmatch
import functools
import math
import warnings
import weakref
from collections.abc import Callable, Iterator, MutableMapping, Sequence
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

Init = Literal["pretrained", "random"]

# Parameter of a factorization -> the weight decay it must get, None where any will do. Weak, so that merged
# and dropped models leave nothing behind.
_KNOWN: MutableMapping[Tensor, float | None] = WeakTensorKeyDictionary()
# Optimizer -> the options under which it was found good, so that a training step pays for one comparison.
_CHECKED: weakref.WeakKeyDictionary[Optimizer, list[tuple[Any, ...]]] = weakref.WeakKeyDictionary()


class EvadedPenaltyWarning(UserWarning):
    """A penalised weight stands beside one without decay, into which rescaling can move its norm."""


class Factorization(nn.Module):
    """A parametrization whose last two originals are a mask and a vector, decayed with strength ``alpha``."""

    def __init__(self, name: str, alpha: float, scale: float) -> None:
        super().__init__()
        self.name, self.alpha, self.scale = name, alpha, scale

    def watch(self, *originals: Tensor) -> None:
        """Have every optimizer that steps these checked first; to be called in ``forward``.

        There and not only where the weight is factorized: a copied or unpickled model has new factors.
        """
        if torch.compiler.is_compiling():
            return
        _guard_optimizers()
        for index, original in enumerate(originals):
            if isinstance(original, nn.Parameter) and original not in _KNOWN:
                _KNOWN[original] = self.alpha if index >= len(originals) - 2 else None

    def split(self, mask: Tensor, product: Tensor) -> tuple[Tensor, Tensor]:
        """Return factors that make up ``product``: a mask of the given shape, all ``scale``, and a vector.

        Raises:
            InputError: the factors would be equal in magnitude, a trap that training never leaves.
        """
        mask, vector = torch.full_like(mask, self.scale), product / self.scale
        # A group of several weights can turn instead of passing through zero; a single weight cannot.
        if mask.numel() == vector.numel():
            equal = torch.isclose(mask, vector.abs(), rtol=1e-6, atol=0.0)
            if equal.any():
                raise InputError(
                    f"{int(equal.sum())} of {vector.numel()} products in {self.name} have magnitude "
                    f"scale²={self.scale**2:g}, so their factors would start with |u| = |v|: gradient "
                    "descent keeps them so, they can never change sign, and the result is a "
                    "sign-constrained (for u = v the non-negative) lasso; choose another scale, or "
                    "init='random'"
                )
        return mask, vector


def factor_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Return the optimizer's parameter groups of a module with factorized weights.

    As :func:`~symdyn_core.symmetry.sparsity.spred` and :func:`~symdyn_core.symmetry.constraint.dcs` return
    them: for a second call on the same model with another strength, or for a copy of the model.

    Returns:
        One group of factors for each strength, with ``weight_decay`` of that strength; then the other
        parameters without, so that these follow the optimizer's own default.

    Raises:
        InputError: no weight of the module is factorized.

    >>> from symdyn_core.symmetry.sparsity import spred
    >>> model = nn.Sequential(*(nn.utils.skip_init(nn.Linear, 3, 3) for _ in range(2)))
    >>> _ = spred(model[0], alpha=0.1, init="random")
    >>> _ = spred(model[1], alpha=0.2, init="random")
    >>> [(len(group["params"]), group.get("weight_decay")) for group in factor_groups(model)]
    [(2, 0.1), (2, 0.2), (2, None)]
    """
    by_strength: dict[float, list[nn.Parameter]] = {}
    for found in factorized(module, Factorization):
        by_strength.setdefault(found.by.alpha, []).extend(found.originals[-2:])
    taken = {id(factor) for factors in by_strength.values() for factor in factors}
    rest = [parameter for parameter in module.parameters() if id(parameter) not in taken]
    groups: list[dict[str, Any]] = [
        {"params": factors, "weight_decay": strength} for strength, factors in by_strength.items()
    ]
    return [*groups, {"params": rest}] if rest else groups


def check_factor_decay(optimizer: Optimizer) -> None:
    """Raise unless the optimizer's decay of factors is the penalty that was asked for.

    Runs by itself before the optimizer's first step and whenever its groups have changed; call it to hear of
    a mistake when the optimizer is made.

    Raises:
        InputError: ``weight_decay`` of a factor is not its ``alpha``, or not the gradient of an L2 penalty.

    Warns:
        EvadedPenaltyWarning: the optimizer also steps weights that are neither factorized nor decayed.

    >>> from symdyn_core.symmetry.sparsity import spred
    >>> layer = nn.utils.skip_init(nn.Linear, 3, 1)
    >>> check_factor_decay(torch.optim.AdamW(spred(layer, alpha=0.1, init="random")))
    Traceback (most recent call last):
    symdyn_core.errors.InputError: AdamW applies weight_decay outside the gradient ...
    """
    kind = type(optimizer).__name__
    penalised, free = 0, []
    for index, group in enumerate(optimizer.param_groups):
        decay = group.get("weight_decay")
        known = {_KNOWN.get(p) for p in group["params"]}
        strengths = sorted(strength for strength in known if strength is not None)
        penalised += len(strengths)
        if not decay:
            free += [p for p in group["params"] if p.ndim > 1 and p.requires_grad and p not in _KNOWN]
        if not strengths:
            continue
        if strengths != [decay]:
            raise InputError(
                f"factors must have weight_decay=alpha={', '.join(map(str, strengths))} in {kind}, got "
                f"{decay}; make the optimizer from the groups that spred(), dcs() or factor_groups() returns"
            )
        if not has_coupled_decay(optimizer, index):
            raise InputError(
                f"{kind} applies weight_decay outside the gradient (decoupled), so it does not minimise an "
                "L2 penalty on the factors and the result is not the lasso; use SGD or Adam"
            )
    if penalised and free:
        shapes = ", ".join(str(tuple(p.shape)) for p in free[:3]) + (", ..." if len(free) > 3 else "")
        warnings.warn(
            f"{len(free)} weight(s) of shape {shapes} are neither factorized nor decayed; where one shares a "
            "rescaling with a penalised weight (the next layer behind ReLU), training moves the norm there "
            "and alpha means nothing: give the optimizer a weight_decay of its own, or factorize them too",
            EvadedPenaltyWarning,
            stacklevel=2,
        )


@functools.cache
def _guard_optimizers() -> None:
    # Only a step brings an optimizer and a factor together, so only there is a mismatch sure to be seen.
    register_optimizer_step_pre_hook(_before_step)


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    options: list[tuple[Any, ...]] = [
        (group.get("weight_decay"), group.get("decoupled_weight_decay"), len(group["params"]))
        for group in optimizer.param_groups
    ]
    options.append((len(_KNOWN),))  # a parameter it has long held may have become known as a factor
    if _CHECKED.get(optimizer) != options:
        check_factor_decay(optimizer)
        _CHECKED[optimizer] = options


@dataclass(frozen=True)
class Holder:
    """A module that has a parameter, and the names of it: in the whole model and in that module."""

    name: str
    owner: nn.Module
    local: str

    @property
    def value(self) -> Tensor:
        """The parameter, or the tensor that a parametrization makes of its factors."""
        tensor: Tensor = getattr(self.owner, self.local)
        return tensor

    @property
    def parametrizations(self) -> "parametrize.ParametrizationList | None":
        """What makes the tensor, or None for a plain parameter."""
        if not parametrize.is_parametrized(self.owner, self.local):
            return None
        found = self.owner.get_submodule(f"parametrizations.{self.local}")
        assert isinstance(found, parametrize.ParametrizationList)
        return found


@dataclass(frozen=True)
class Weight:
    """One parameter and all modules that hold it; mostly a single one."""

    holders: tuple[Holder, ...]

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.holders[0].name

    @property
    def value(self) -> Tensor:
        """The tensor."""
        return self.holders[0].value

    @property
    def by(self) -> Any:
        """What makes the tensor of a factorized parameter."""
        parametrizations = self.holders[0].parametrizations
        assert parametrizations is not None
        return parametrizations[0]

    @property
    def originals(self) -> list[nn.Parameter]:
        """The factors of a factorized parameter."""
        parametrizations = self.holders[0].parametrizations
        assert parametrizations is not None
        # As attributes: of a frozen weight torch keeps them as buffers.
        return [getattr(parametrizations, f"original{k}") for k in range(parametrizations.ntensors)]

    def factorize(self, by: Factorization) -> None:
        """Let the parametrization make the tensor, for all holders from the same factors."""
        first, *others = self.holders
        parametrize.register_parametrization(first.owner, first.local, by)
        for other in others:
            parametrize.register_parametrization(other.owner, other.local, by)
            other.owner.get_submodule("parametrizations")[other.local] = first.parametrizations  # type: ignore[operator]

    def draw(self, scale: float, seed: int, *names: str) -> None:
        """Draw mask and vector from N(0, scale²), in the CPU's float64 and apart from each other."""
        generator = torch_generator(seed, *names, self.name)
        for factor in self.originals[-2:]:
            drawn = torch.randn(factor.shape, generator=generator, dtype=torch.float64)
            with torch.no_grad():
                factor.copy_(scale * drawn)

    def merge(self, value: Tensor) -> None:
        """Make it a plain parameter of this value again."""
        trainable = all(original.requires_grad for original in self.originals)
        parameter = nn.Parameter(value.detach().clone(), requires_grad=trainable)
        for holder in self.holders:
            _give_own_class(holder.owner)
            parametrize.remove_parametrizations(holder.owner, holder.local)
            # torch leaves a buffer where a factor was frozen; what was a parameter shall be one again.
            delattr(holder.owner, holder.local)
            holder.owner.register_parameter(holder.local, parameter)


def _give_own_class(owner: nn.Module) -> None:
    # torch makes a class for each parametrized module but copies of the module share it, and removing the
    # parametrization of one takes the tensor's property away from all.
    shared = type(owner)
    body = {key: value for key, value in vars(shared).items() if key not in ("__dict__", "__weakref__")}
    owner.__class__ = type(shared.__name__, shared.__bases__, body)


def parameters(module: nn.Module) -> list[Weight]:
    """Return every parameter of a module, factorized or not, tied ones once."""
    found: dict[int, list[Holder]] = {}
    for prefix, owner in module.named_modules():
        if isinstance(owner, parametrize.ParametrizationList):
            continue
        parametrized = owner.get_submodule("parametrizations") if parametrize.is_parametrized(owner) else ()
        plain = [local for local, parameter in owner._parameters.items() if parameter is not None]
        for local in [*plain, *parametrized]:
            holder = Holder(f"{prefix}.{local}" if prefix else local, owner, local)
            found.setdefault(id(holder.parametrizations or owner._parameters[local]), []).append(holder)
    return [Weight(tuple(holders)) for holders in found.values()]


def factorized(module: nn.Module, kind: type[Factorization]) -> Iterator[Weight]:
    """Yield every parameter that is factorized in this way; raise InputError if there is none."""
    count = 0
    for weight in parameters(module):
        parametrizations = weight.holders[0].parametrizations
        if parametrizations is None or not isinstance(parametrizations[0], kind):
            continue
        if len(parametrizations) > 1:
            raise InputError(f"{weight.name} has another parametrization on top; remove that one first")
        count += 1
        yield weight
    if not count:
        raise InputError(f"{type(module).__name__} has no weight in factors of this kind")


def select(module: nn.Module, names: Sequence[str] | None, exclude: Sequence[str] = ()) -> list[Weight]:
    """Return the parameters of which one name fits: full, local or a pattern with ``*`` for full ones.

    Without names those of two or more axes: all weights of linear, convolutional, attention and embedding
    layers, no bias and no normalisation.

    Raises:
        InputError: a text instead of a list, or a name that fits no parameter.
    """
    available = parameters(module)
    for what, given in (("names", names or ()), ("exclude", exclude)):
        if isinstance(given, str):
            raise InputError(f"{what} must be a list of names, got the single text {given!r}")
        for name in given:
            if not any(_fits(each, [name]) for each in available):
                known = ", ".join(holder.name for each in available for holder in each.holders) or "none"
                raise InputError(f"{type(module).__name__} has no parameter {name!r}; it has: {known}")
    wanted = [each for each in available if (each.value.ndim > 1 if names is None else _fits(each, names))]
    chosen = [each for each in wanted if not _fits(each, exclude)]
    if not chosen:
        what = "no weight (parameter of two or more axes)" if names is None else "nothing among the names"
        raise InputError(f"{type(module).__name__} has {what} that is not excluded")
    return chosen


def _fits(weight: Weight, names: Sequence[str]) -> bool:
    return any(
        name == holder.local or fnmatch.fnmatchcase(holder.name, name)
        for holder in weight.holders
        for name in names
    )


def check_factorizable(weight: Weight) -> None:
    """Raise InputError if the parameter is already parametrized, not real, frozen or of a recurrent layer."""
    if weight.holders[0].parametrizations is not None:
        raise InputError(f"{weight.name} is already parametrized")
    if any(isinstance(holder.owner, nn.RNNBase) for holder in weight.holders):
        raise InputError(
            f"{weight.name} belongs to a recurrent layer, which keeps references to its weights and would go "
            "on with what they were: exclude it, or build the layer of cells"
        )
    value = weight.value
    if not value.is_floating_point():
        raise InputError(f"{weight.name} must be real floating point, got {value.dtype}")
    if not value.requires_grad:
        raise InputError(f"{weight.name} is frozen (requires_grad=False), so a penalty on it has no effect")


def check_start(alpha: float, init: Init, scale: float | None) -> float:
    """Return the scale of a start, by default 1 (pretrained) or 0.3 (random); raise if a value is unfit."""
    if not (math.isfinite(alpha) and alpha > 0):
        raise InputError(f"alpha must be finite and > 0, got {alpha}")
    if init not in get_args(Init):
        raise InputError(f"init must be one of {', '.join(get_args(Init))}, got {init!r}")
    if scale is None:
        return 1.0 if init == "pretrained" else 0.3
    if not (math.isfinite(scale) and scale > 0):
        raise InputError(f"scale must be finite and > 0, got {scale}")
    return scale


def check_thresholds(tau: float, floor: float = 0.0) -> None:
    """Raise InputError unless the thresholds below which something counts as zero make sense."""
    if not 0 <= tau < 1:
        raise InputError(f"tau must be in [0, 1), got {tau}")
    if not floor >= 0:
        raise InputError(f"floor must be >= 0, got {floor}")


def check_finite(weights: Sequence[Weight]) -> None:
    """Raise InputError, with the name, if a weight is not finite."""
    for weight in weights:
        if not torch.isfinite(weight.value).all():
            raise InputError(f"{weight.name} has entries that are not finite; has the training diverged?")


def weight_gradients(weights: Sequence[Weight], loss_fn: Callable[[], Tensor]) -> list[Tensor]:
    """Return the gradient of a loss in each weight, as one tensor, however it is parametrized or tied.

    Raises:
        InputError: a weight is frozen.
    """
    with torch.enable_grad(), parametrize.cached():
        values = [[holder.value for holder in weight.holders] for weight in weights]
        for weight, (first, *_) in zip(weights, values, strict=True):
            if not first.requires_grad:
                raise InputError(f"{weight.name} is frozen (requires_grad=False), so it has no gradient")
        # The tensors that the holders of a tied, factorized weight see are different objects.
        different = [list({id(value): value for value in seen}.values()) for seen in values]
        flat = [value for seen in different for value in seen]
        found = iter(torch.autograd.grad(loss_fn(), flat, allow_unused=True, materialize_grads=True))
        return [torch.stack([next(found) for _ in seen]).sum(0) for seen in different]
