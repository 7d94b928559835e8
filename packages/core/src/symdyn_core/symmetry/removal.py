r"""Syre: remove every countable reflection symmetry of a training run by two lines of code.

A reflection symmetry of the loss makes states of lower capacity (dead units, equal units) stationary:
gradient descent that falls into one stays there. Training with a frozen random offset and weight decay,

$$\ell_r(\theta)=\ell(\theta+\theta_0)+\gamma\|\theta\|_D^2,\qquad \theta_0\sim N(0,\sigma_0^2),$$

has no such state left, without knowing the symmetries (arXiv:2408.15495). In the coordinates
$\theta'=\theta+\theta_0$ it is the ordinary model with ordinary weights, whose decay pulls toward $\theta_0$
instead of zero:

$$\ell_r=\ell(\theta')+\gamma\|\theta'-\theta_0\|_D^2 .$$

This "folded" form is what :class:`Syre` adds to an existing optimizer. Where the decay enters the gradient,
one vector operation a step adds what is missing, $2\gamma\theta_0$ with torch's ``weight_decay``
$=2\gamma$; where it shrinks the weights, one moves them toward $\theta_0$ instead. Both forms take the same
steps if a step depends on the weights through gradient and decay alone; where it does not (LARS, LAMB,
Adafactor) the optimizer is refused (:mod:`symdyn_core.symmetry.folding`).
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from symdyn_core.errors import InputError
from symdyn_core.params import Params
from symdyn_core.random import torch_generator
from symdyn_core.symmetry.folding import bypasses_gradient

_STATE_VERSION = 1
_NORMALISATIONS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
_SHARDED = ("DTensor", "FlatParameter")


class SyreWarning(UserWarning):
    """Syre will run, but with these settings it may change nothing."""


class Syre:
    r"""Make an optimizer's weight decay pull toward a frozen random offset, and start the weights from there.

    $$\theta'\leftarrow\theta'+\theta_0\ \text{once;}\qquad
      \text{decay}\ \lambda\theta'\ \to\ \lambda D(\theta'-\theta_0)\ \text{at every step}$$

    Wraps any torch optimizer through its step hooks: training loop, model, ``torch.compile``, gradient
    clipping (clip as usual, before the step: the pull is added after it), ``GradScaler`` and DDP stay as they
    are, and the trained model is an ordinary one. Learning rate and weight decay are read from the parameter
    groups at every step, so schedules act on the pull as well; parameters without gradient stay in place.
    (A decoupled decay reads zero while the optimizer steps: Syre does its work.) Costs one more copy of the
    parameters (two with ``sigma_d``). Where the decay enters the gradient
    (``SGD``, ``Adam``), so does the pull, and ``.grad`` contains it after the step.

    What to expect. The states removed are traps, which the loss wants to leave. A state of low capacity that
    the loss with its decay prefers is preferred still; only its zeros become numbers of order $\sigma_0$. On
    the 8x8 digits (64-96-96-10 ReLU, SGD, weight decay .03) the published ``scale=0.01`` changed nothing of
    use: accuracy .941 and .941, cross-entropy .348 and .348, feature rank 66 and 67. With ``scale=1``, an
    offset as large as the usual initial weights, they were .965, .188 and 87. Runs that share the seed share
    the anchor, which also makes their minima linearly connected.

    Args:
        optimizer: any torch optimizer with ``weight_decay``, coupled or decoupled; asked by stepping a small
            copy of it. Half-precision parameters lose the pull to rounding (a warning): keep float32 masters.
        sigma0: standard deviation of the offset, or ``"fan_in"`` for ``scale / sqrt(fan_in)``. The fan-in of
            a parameter is the product of its dimensions but the first; one with fewer than two dimensions
            takes that of the nearest other before it (else after it) in the model, or in its parameter group
            if no model is given.
        scale: the offset relative to usual initial weights; ignored if ``sigma0`` is a number.
        sigma_d: standard deviation of the entries of $D$, uniform around 1, in [0, 1/sqrt(3)). Above zero it
            also breaks continuous families of reflections (rotations); the theory wants it well below sigma0.
        seed: of offset and $D$. The same on all ranks of a distributed run, whatever the device.
        params: the parameters to treat. By default all that are trainable and whose group decays, without
            those of normalisation layers; if no model is given, a normalisation scale is a vector of ones.
        fold: whether to add the offset to the weights now. False for weights that have it already (a resumed
            run) or must not move (a trained model): the same minima, another trajectory.
        model: gives names and fan-ins, and tells which parameters belong to normalisation layers.
        decoupled: whether the decay bypasses the gradient, for an optimizer that cannot be asked.

    Raises:
        InputError: no parameter with weight decay (without decay an offset has no effect); an optimizer whose
            step depends on the size of the weights; a value out of range; and at a step, a decayed parameter
            that has no offset yet (see :meth:`cover`) or a sparse gradient.

    Source:
        arXiv:2408.15495, equation 6 and section 5.4; the folded form and the refusals are derived.

    >>> weight = nn.Parameter(torch.zeros(1, 4))
    >>> optimizer = torch.optim.SGD([weight], lr=0.5, weight_decay=0.2)
    >>> syre = Syre(optimizer, scale=1.0)
    >>> theta0 = weight.detach().clone()           # the start 0, shifted
    >>> weight.data.zero_(); weight.grad = torch.zeros(1, 4); optimizer.step()
    tensor([[0., 0., 0., 0.]])
    >>> torch.allclose(weight, 0.5 * 0.2 * theta0)  # learning rate * weight decay * offset
    True
    """

    def __init__(
        self,
        optimizer: Optimizer,
        sigma0: float | Literal["fan_in"] = "fan_in",
        scale: float = 0.01,
        sigma_d: float = 0.0,
        seed: int = 0,
        params: Iterable[Tensor] | None = None,
        fold: bool = True,
        *,
        model: nn.Module | None = None,
        decoupled: bool | None = None,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise InputError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        _check_positive("sigma0", 1.0 if sigma0 == "fan_in" else sigma0, or_text=" or 'fan_in'")
        _check_positive("scale", scale)
        if not 0 <= sigma_d < 1 / math.sqrt(3):
            raise InputError(f"sigma_d must be in [0, 0.577), so that D stays positive, got {sigma_d}")
        self.optimizer, self.seed, self.sigma_d, self.fold = optimizer, seed, float(sigma_d), fold
        self._sigma0, self._scale, self._given = sigma0, scale, decoupled
        self._chosen = None if params is None else list(params)
        self._names, self._fan_ins, self._normalisation = _read(model)
        self._pulls: dict[Tensor, _Pull] = {}
        self._decoupled: dict[int, bool] = {}  # by group
        self._shifted: dict[Tensor, int] = {}  # version of each parameter right after it got its offset
        self._step: list[_GroupStep] = []
        self._taken: list[tuple[dict[str, Any], Any]] = []  # groups whose decay is ours during a step
        _check_chosen(self._chosen, optimizer)
        _check_decays(optimizer, self._treats)
        self.cover()
        if sigma0 == "fan_in" and scale <= 0.01:
            warnings.warn(
                f"scale={scale:g}: the published default 0.01 is often too small to change what a network "
                'learns; sigma0="fan_in", scale=1 makes the offset as large as usual initial weights',
                SyreWarning,
                stacklevel=2,
            )
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    def cover(self) -> int:
        """Give an offset to each parameter that decays and has none yet; return how many got one.

        Needed after ``add_param_group``, after unfreezing, or when the decay of a group was raised from zero;
        a step before that is refused. Between steps only: the weights move if ``fold``.
        """
        entries = [
            entry
            for entry in _entries(self.optimizer)
            if entry.weight not in self._pulls and self._treats(entry)
        ]
        self._ask(entries)
        sigmas = {entry.index: self._sigma(entry) for entry in entries}
        for entry in entries:
            self._pulls[entry.weight] = pull = self._draw(entry.index, entry.weight, sigmas[entry.index])
            if self.fold and pull.offset is not None:
                with torch.no_grad():
                    entry.weight.add_(pull.offset)
                self._shifted[entry.weight] = entry.weight._version
        covered = [entry.weight for entry in entries if sigmas[entry.index] > 0]
        if any(weight.dtype in (torch.float16, torch.bfloat16) for weight in covered):
            warnings.warn(
                "half-precision parameters: rounding swallows nearly all of the pull (learning rate * weight "
                "decay * offset); keep float32 master weights",
                SyreWarning,
                stacklevel=3,
            )
        return len(covered)

    def detach(self) -> None:
        """Remove the hooks: the optimizer is an ordinary one again, its decay pulling toward zero.

        The weights stay where they are.
        """
        self._give_back()
        for handle in self._handles:
            handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return what re-creates the offsets: numbers only, no tensors.

        One entry of ``sigma0`` and ``shapes`` for each parameter in the optimizer's order; a ``sigma0`` of
        zero is a parameter left alone on purpose, None one not covered.
        """
        weights = [entry.weight for entry in _entries(self.optimizer)]
        return {
            "version": _STATE_VERSION,
            "seed": self.seed,
            "sigma_d": self.sigma_d,
            "sigma0": [pull.sigma if (pull := self._pulls.get(weight)) else None for weight in weights],
            "shapes": [list(weight.shape) for weight in weights],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Re-create the offsets of a saved run; the weights of its checkpoint have theirs and are not moved.

        Construct with ``fold=False`` to resume; model, optimizer and this may then be loaded in any order.

        Raises:
            InputError: not such a state, other shapes, or weights that were shifted at construction and not
                loaded since, so that they would count the offset twice.
        """
        _check_state(state)
        if any(weight._version == version for weight, version in self._shifted.items()):
            raise InputError(
                "the weights were shifted when Syre was constructed and not loaded since; "
                "to resume a run construct it with fold=False"
            )
        entries = _entries(self.optimizer)
        here = [list(entry.weight.shape) for entry in entries]
        if here != state["shapes"]:
            raise InputError(
                f"shapes of the state must be those of the optimizer, {here}, got {state['shapes']}"
            )
        covered = [
            (entry, sigma) for entry, sigma in zip(entries, state["sigma0"], strict=True) if sigma is not None
        ]
        self._ask(entry for entry, _ in covered)
        self.seed, self.sigma_d = state["seed"], state["sigma_d"]
        self._pulls = {entry.weight: self._draw(entry.index, entry.weight, sigma) for entry, sigma in covered}

    def named_offsets(self) -> dict[str, Tensor]:
        """Return the offset of every parameter of the optimizer, zero where there is none.

        Names are the model's, or those the optimizer was given, or the position in the optimizer.
        """
        return {
            self._name(entry): torch.zeros_like(entry.weight, requires_grad=False)
            if offset is None
            else offset.clone()
            for entry in _entries(self.optimizer)
            for offset in [self._pulls.get(entry.weight, _ALONE).offset]
        }

    def named_stretches(self) -> dict[str, Tensor]:
        """Return the diagonal of $D$ by parameter, ones where ``sigma_d`` is zero or there is no offset."""
        return {
            self._name(entry): torch.ones_like(entry.weight, requires_grad=False)
            + (0 if spread is None else spread)
            for entry in _entries(self.optimizer)
            for spread in [self._pulls.get(entry.weight, _ALONE).spread]
        }

    def _ask(self, entries: Iterable["_Entry"]) -> None:
        """Find out how each group of these parameters decays, once."""
        for index in sorted({entry.group for entry in entries} - self._decoupled.keys()):
            self._decoupled[index] = (
                bypasses_gradient(self.optimizer, index) if self._given is None else self._given
            )

    def _name(self, entry: "_Entry") -> str:
        return self._names.get(entry.weight, entry.name)

    def _treats(self, entry: "_Entry") -> bool:
        """Whether a parameter not seen so far is to be treated: chosen, or trainable and decayed."""
        if self._chosen is not None:
            return any(entry.weight is weight for weight in self._chosen)
        return entry.weight.requires_grad and entry.decay != 0

    def _sigma(self, entry: "_Entry") -> float:
        _check_usable(self._name(entry), entry.weight)
        if self._chosen is None and self._is_normalisation(entry.weight):
            return 0.0
        if self._sigma0 != "fan_in":
            return float(self._sigma0)
        fan_in = self._fan_ins.get(entry.weight) or _fan_in(entry.siblings, entry.weight)
        if fan_in is None:
            raise InputError(
                f"cannot tell the fan-in of parameter {self._name(entry)!r} of shape "
                f"{list(entry.weight.shape)}: give model=, or sigma0 as a number"
            )
        return self._scale / math.sqrt(fan_in)

    def _is_normalisation(self, weight: Tensor) -> bool:
        if weight in self._names:
            return weight in self._normalisation
        return weight.ndim == 1 and bool((weight == 1).all())

    def _draw(self, index: int, weight: Tensor, sigma: float) -> "_Pull":
        """Draw in float64 on the CPU, so that neither device nor precision changes the stream."""
        if sigma == 0:
            return _ALONE
        generator = torch_generator(self.seed, "syre offset", index)
        normal = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        offset = torch.empty_like(weight, requires_grad=False).copy_(sigma * normal)  # with weight's strides
        if self.sigma_d == 0:
            return _Pull(sigma, offset)
        generator = torch_generator(self.seed, "syre decay", index)
        uniform = 2 * torch.rand(weight.shape, generator=generator, dtype=torch.float64) - 1
        return _Pull(sigma, offset, torch.empty_like(offset).copy_(math.sqrt(3) * self.sigma_d * uniform))

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._pull_before()
            return None

        def evaluate() -> Any:
            loss = closure()
            self._pull_before()  # the gradient is complete only now
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": evaluate}
        return (args[0], evaluate, *args[2:]), kwargs

    @torch.no_grad()
    def _pull_before(self) -> None:
        """What has to happen once gradients are there: the pull of coupled decay, and that of D - 1."""
        self._give_back()
        self._step = list(self._group_steps())
        self._shifted.clear()
        for step in self._step:
            if step.decoupled:
                share = step.skip_on_overflow(step.learning_rate * step.decay)
                if not step.foreign:
                    # In place of the optimizer's own pass over the weights, which would cost as much again.
                    _move(step, share)
                    self._taken.append((step.group, step.decay))
                    step.group["weight_decay"] = 0.0
                elif step.spreads:
                    # The optimizer's own decay follows and shrinks this too, hence the division.
                    _add(step.weights, step.stretched(), -share / (1 - share))
            else:
                gradients = [weight.grad for weight in step.weights if weight.grad is not None]
                strength = step.scaled(-step.decay if step.maximize else step.decay)
                if step.spreads:
                    _add(gradients, step.stretched(), strength)
                _add(gradients, step.offsets, -strength)

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """The pull of decoupled decay where the optimizer did its own."""
        self._give_back()
        for step in self._step:
            if step.decoupled and step.foreign:
                _add(step.weights, step.offsets, step.skip_on_overflow(step.learning_rate * step.decay))
        self._step = []

    def _give_back(self) -> None:
        """Put back the decay of the groups; late if the step between the hooks raised."""
        for group, decay in self._taken:
            group["weight_decay"] = decay
        self._taken = []

    def _group_steps(self) -> Iterator["_GroupStep"]:
        optimizer: Any = self.optimizer
        for index, group in enumerate(optimizer.param_groups):
            if group.get("weight_decay", 0) == 0:
                continue
            step = _GroupStep(
                group,
                decay=group["weight_decay"],
                learning_rate=group["lr"],
                maximize=group.get("maximize", False),
                decoupled=self._decoupled.get(index, False),
                # Fused optimizers unscale the gradient, and skip a step that overflowed, by themselves.
                grad_scale=getattr(optimizer, "grad_scale", None),
                found_inf=getattr(optimizer, "found_inf", None),
            )
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                pull = self._pulls.get(weight)
                step.foreign |= pull is None
                if pull is None and self._chosen is None:
                    raise InputError(
                        f"a parameter of shape {list(weight.shape)} in group {index} decays and has no "
                        "offset (added, unfrozen, or without decay before); call cover() of Syre first"
                    )
                if pull is None or pull.offset is None:
                    step.others.append(weight)
                    continue
                if weight.grad.layout is not torch.strided:
                    raise InputError("Syre needs dense gradients, got a sparse one; use sparse=False")
                step.weights.append(weight)
                step.offsets.append(pull.offset)
                if pull.spread is not None:
                    step.spreads.append(pull.spread)
            if step.weights:
                yield step


class Mirror(Protocol):
    """A reflection of parameter space, as far as :func:`escape_force` needs it."""

    def project(self, params: Params) -> dict[str, Tensor]:
        """Return the parameters projected onto the states that the reflection leaves in place."""
        ...


def escape_force(syre: Syre, mirror: Mirror) -> dict[str, Tensor]:
    r"""Return the force that drives training off the symmetric states of a mirror, by parameter.

    $$-P\nabla\ell_r=2\gamma P\theta_0\qquad\text{wherever } P\theta'=0$$

    There the loss itself exerts no force across the mirror, so this is all; without Syre it is zero.

    Args:
        syre: attached to the optimizer whose current ``weight_decay`` $=2\gamma$ counts.
        mirror: with ``project``, linear: $(I-P)\theta$. It gets the names of ``syre.named_offsets()``; give
            ``model=`` to Syre if it knows parameters by the model's names.

    Returns:
        Tensors in float64 with the shapes of the parameters. Exact where the parameters that the mirror
        touches share one decay and ``sigma_d`` is zero: any other decay is itself no longer symmetric.

    Source:
        arXiv:2408.15495, $\Omega(\gamma\sigma_0)$; the exact form is derived.

    >>> class Sign:  # of the only parameter: P = 1
    ...     def project(self, params):
    ...         return {name: torch.zeros_like(tensor) for name, tensor in params.items()}
    >>> weight = nn.Parameter(torch.zeros(1, 4))
    >>> syre = Syre(torch.optim.SGD([weight], lr=0.5, weight_decay=0.2), scale=1.0)
    >>> force = escape_force(syre, Sign())["0"]
    >>> torch.allclose(force, 0.2 * weight.double())
    True
    """
    decays = {syre._name(entry): float(entry.decay) for entry in _entries(syre.optimizer)}
    pull = {name: decays[name] * offset.double().cpu() for name, offset in syre.named_offsets().items()}
    symmetric = mirror.project(pull)
    return {name: pull[name] - symmetric[name] for name in pull}


@dataclass(frozen=True)
class _Pull:
    sigma: float
    offset: Tensor | None = None
    """None: left alone on purpose."""
    spread: Tensor | None = None
    """D - 1. Kept apart from the 1: in single precision 1 + 1e-8 is 1."""


_ALONE = _Pull(0.0)


@dataclass(frozen=True)
class _Entry:
    """One parameter of an optimizer."""

    index: int
    group: int
    weight: Tensor
    name: str
    decay: Any
    siblings: Sequence[Tensor]


def _entries(optimizer: Optimizer) -> list[_Entry]:
    entries: list[_Entry] = []
    for number, group in enumerate(optimizer.param_groups):
        for position, weight in enumerate(group["params"]):
            index = len(entries)
            name = group["param_names"][position] if "param_names" in group else str(index)
            decay = group.get("weight_decay", 0)
            entries.append(_Entry(index, number, weight, name, decay, group["params"]))
    return entries


@dataclass
class _GroupStep:
    """What one step needs to know of one parameter group."""

    group: dict[str, Any]
    decay: Any
    learning_rate: Any
    maximize: bool
    decoupled: bool
    grad_scale: Tensor | None
    found_inf: Tensor | None
    weights: list[Tensor] = field(default_factory=list)
    offsets: list[Tensor] = field(default_factory=list)
    spreads: list[Tensor] = field(default_factory=list)
    others: list[Tensor] = field(default_factory=list)
    """Without offset: their decay pulls toward zero."""
    foreign: bool = False
    """Whether some of those were not left to us; another Syre may care for them."""

    def scaled(self, value: Any) -> Any:
        """In the units of the gradient as it lies in ``.grad``."""
        return value if self.grad_scale is None else value * self.grad_scale

    def skip_on_overflow(self, value: Any) -> Any:
        """Zero in a step that the optimizer skips."""
        return value if self.found_inf is None else value * (1 - self.found_inf.clamp(max=1))

    def stretched(self) -> tuple[Tensor, ...]:
        """(D - 1)(weights - offsets)."""
        distance = torch._foreach_sub(self.weights, self.offsets)
        torch._foreach_mul_(distance, self.spreads)
        return distance


def _move(step: _GroupStep, share: Any) -> None:
    """Decay the weights of a group by ``share`` of their distance from where they are pulled to."""
    stretched = step.stretched() if step.spreads else ()
    if isinstance(share, Tensor):
        _add(step.weights, torch._foreach_sub(step.offsets, step.weights), share)
    else:
        torch._foreach_lerp_(step.weights, step.offsets, share)
    if stretched:
        _add(step.weights, stretched, -share)
    if step.others:
        torch._foreach_mul_(step.others, 1 - share)


def _add(targets: list[Tensor], terms: list[Tensor] | tuple[Tensor, ...], factor: Any) -> None:
    if isinstance(factor, Tensor):
        terms, factor = torch._foreach_mul(terms, factor), 1.0  # stays on the device, unlike .item()
    torch._foreach_add_(targets, terms, alpha=factor)


def _read(model: nn.Module | None) -> tuple[dict[Tensor, str], dict[Tensor, int], set[Tensor]]:
    """Return names, fan-ins, and the parameters of normalisation layers of a model."""
    if model is None:
        return {}, {}, set()
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    names: dict[Tensor, str] = {weight: name for name, weight in model.named_parameters()}
    weights = list(names)
    fan_ins: dict[Tensor, int] = {
        weight: fan_in for weight in weights if (fan_in := _fan_in(weights, weight))
    }
    normalisation: set[Tensor] = {
        weight
        for module in model.modules()
        if isinstance(module, _NORMALISATIONS) or type(module).__name__.endswith("Norm")
        for weight in module.parameters(recurse=False)
    }
    return names, fan_ins, normalisation


def _fan_in(ordered: Sequence[Tensor], weight: Tensor) -> int | None:
    """Return the fan-in of the parameter or, for a vector, of the nearest matrix before it, else after it."""
    position = next(k for k, other in enumerate(ordered) if other is weight)
    for other in [*ordered[position::-1], *ordered[position:]]:
        if other.ndim >= 2:
            return math.prod(other.shape[1:])
    return None


def _check_positive(what: str, value: Any, or_text: str = "") -> None:
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 < float(value) < math.inf:
        raise InputError(f"{what} must be a positive number{or_text}, got {value!r}")


def _check_decays(optimizer: Optimizer, treats: Callable[[_Entry], bool]) -> None:
    if not any("weight_decay" in group for group in optimizer.param_groups):
        raise InputError(f"{type(optimizer).__name__} has no weight decay that could pull toward an offset")
    if not any(entry.decay != 0 and treats(entry) for entry in _entries(optimizer)):
        raise InputError(
            "no parameter with weight_decay > 0: an offset without decay removes no symmetry; "
            "set weight_decay of the optimizer"
        )


def _check_chosen(chosen: Sequence[Tensor] | None, optimizer: Optimizer) -> None:
    known = {entry.weight for entry in _entries(optimizer)}
    for position, weight in enumerate(chosen or ()):
        if not isinstance(weight, Tensor) or weight not in known:
            raise InputError(f"params must be parameters of the optimizer; entry {position} is not")


def _check_usable(name: str, weight: Tensor) -> None:
    if isinstance(weight, UninitializedParameter):
        raise InputError(f"parameter {name!r} is not initialised yet; run the lazy model once first")
    if not weight.is_floating_point():
        raise InputError(f"parameter {name!r} must be real floating point, got {weight.dtype}")
    if type(weight).__name__ in _SHARDED:
        raise InputError(
            f"parameter {name!r} is sharded ({type(weight).__name__}); each rank needs whole tensors"
        )


def _check_state(state: Mapping[str, Any]) -> None:
    missing = {"version", "seed", "sigma_d", "sigma0", "shapes"} - set(state)
    if missing:
        raise InputError(f"not a state of Syre: {', '.join(sorted(missing))} missing")
    if state["version"] != _STATE_VERSION:
        raise InputError(f"version of the state must be {_STATE_VERSION}, got {state['version']}")
