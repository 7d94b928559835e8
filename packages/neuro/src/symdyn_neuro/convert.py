"""Turn an existing model into one that learns heterosynaptically, and back, without touching its weights."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import nn

from symdyn_core.errors import InputError
from symdyn_neuro.layers import HSLinear, check_feedback_scale


@dataclass(frozen=True)
class Conversion:
    """What :func:`heterosynaptic_` did.

    Attributes:
        converted: names of the layers that now have feedback of their own, as in ``model.named_modules()``.
        kept: the other modules that own parameters, by name, each with the reason why it was left as it is;
            errors pass through them by backpropagation.

    >>> print(Conversion(converted=("fc",), kept={"conv": "Conv2d has no heterosynaptic version"}))
    converted: fc
    kept: conv (Conv2d has no heterosynaptic version)
    """

    converted: tuple[str, ...]
    kept: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        kept = (f"{name or '(the model itself)'} ({reason})" for name, reason in self.kept.items())
        converted = (name or "(the model itself)" for name in self.converted)
        return f"converted: {', '.join(converted) or 'none'}\nkept: {', '.join(kept) or 'none'}"


def heterosynaptic_(
    model: nn.Module,
    *,
    skip: Collection[str] = (),
    feedback_scale: float = 1.0,
    generator: torch.Generator | None = None,
) -> Conversion:
    """Make every ``nn.Linear`` of a model an :class:`~symdyn_neuro.layers.HSLinear`, in place.

    The layer objects stay the same, with their weights, hooks and references; each gains a random
    ``feedback``. Convert before building the optimiser, which otherwise does not know the new parameters, and
    put the first layer into ``skip``: its feedback would never be used.

    Left as they are: subclasses of ``nn.Linear`` (such as the output projection inside
    ``nn.MultiheadAttention``, whose ``forward`` is never called), frozen weights (feedback could not align
    with them), and weights shared with another module (their other gradients would keep the feedback from
    following).

    Args:
        model: any module, possibly itself an ``nn.Linear``; changed in place.
        skip: names of layers to leave alone, as in ``model.named_modules()``.
        feedback_scale: as for :class:`~symdyn_neuro.layers.HSLinear`.
        generator: source of the feedback; torch's default generator where omitted.

    Returns:
        The names of the layers converted, and of those kept with the reason.

    Raises:
        InputError: ``skip`` names no layer of the model, or ``feedback_scale`` is out of range; the model is
            then unchanged.

    >>> from symdyn_neuro.training import Rule, perceptron
    >>> model = perceptron([4, 3, 2], rule=Rule.BACKPROP, seed=0)  # plain nn.Linear and nn.ReLU
    >>> print(heterosynaptic_(model, skip={"layer1"}, generator=torch.Generator().manual_seed(0)))
    converted: layer2
    kept: layer1 (skipped)
    >>> model.layer2.feedback.shape
    torch.Size([2, 3])
    """
    check_feedback_scale(feedback_scale)
    modules = dict(model.named_modules())
    if unknown := sorted(set(skip) - modules.keys()):
        raise InputError(
            f"skip must name layers of the model, got {unknown[0]!r}; it has {', '.join(modules)}"
        )
    owners = Counter(id(p) for module in modules.values() for p in module.parameters(recurse=False))
    chosen: dict[str, nn.Linear] = {}
    kept: dict[str, str] = {}
    for name, module in modules.items():
        if isinstance(module, HSLinear) or not list(module.parameters(recurse=False)):
            continue
        reason = "skipped" if name in skip else _obstacle(module, owners)
        if reason:
            kept[name] = reason
        elif isinstance(module, nn.Linear):
            chosen[name] = module
    for layer in chosen.values():
        _give_feedback(layer, feedback_scale, generator)
    return Conversion(tuple(chosen), kept)


def backprop_(model: nn.Module) -> nn.Module:
    """Make every :class:`~symdyn_neuro.layers.HSLinear` of a model a plain ``nn.Linear`` again, in place.

    For comparison with backpropagation at the same weights, or to hand a trained model to code that knows
    only the standard layers.

    Args:
        model: any module; its feedback parameters are dropped.

    Returns:
        The same model.

    >>> layer = backprop_(HSLinear(3, 2, generator=torch.Generator().manual_seed(0)))
    >>> type(layer) is nn.Linear, list(layer.state_dict())
    (True, ['weight', 'bias'])
    """
    for module in model.modules():
        if type(module) is HSLinear:
            del module.feedback, module.feedback_scale
            module.__class__ = nn.Linear  # type: ignore[assignment]
    return model


def _obstacle(module: nn.Module, owners: Counter[int]) -> str:
    """Return why a module cannot be converted, or an empty string."""
    kind = type(module).__name__
    if not isinstance(module, nn.Linear):
        return f"{kind} has no heterosynaptic version"
    if type(module) is not nn.Linear:
        return f"{kind} is a subclass of Linear with a behaviour of its own"
    if not module.weight.is_floating_point():
        return f"its weight is {module.weight.dtype}"
    if not module.weight.requires_grad:
        return "its weight is frozen"
    if owners[id(module.weight)] > 1:
        return "its weight is shared with another module"
    return ""


def _give_feedback(layer: nn.Linear, feedback_scale: float, generator: torch.Generator | None) -> None:
    # Changing the class keeps the object, and with it hooks and every reference that the model holds to it.
    layer.__class__ = HSLinear
    assert isinstance(layer, HSLinear)
    layer.feedback_scale = feedback_scale
    layer.feedback = nn.Parameter(torch.empty_like(layer.weight))
    layer.reset_feedback(generator)
