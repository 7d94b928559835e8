"""From a module to the chain of layers inside it.

The forward pass is traced by ``torch.fx`` and read as one path from input to output. What is accepted between
two linear layers is what is known to act on every unit separately; the properties of an activation decide
which symmetries are proposed, and a numerical check decides whether they hold. What lies before the first and
behind the last linear layer may be anything without parameters.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, fx, nn

from symdyn_core.errors import InputError
from symdyn_core.params import FrozenModel, to_float64

_COVERED = "only fully connected networks are (linear layers in a row, pointwise activations between them)"


@dataclass(frozen=True)
class Activation:
    r"""What is known of a pointwise function :math:`\phi`.

    Args:
        name: as it is called in papers.
        homogeneous: :math:`\phi(sz)=s\,\phi(z)` for :math:`s>0`.
        odd: :math:`\phi(-z)=-\phi(z)`.

    >>> POINTWISE["relu"].then(POINTWISE["dropout"])
    Activation(name='ReLU', homogeneous=True, odd=False)
    """

    name: str
    homogeneous: bool = False
    odd: bool = False

    @property
    def linear(self) -> bool:
        """Whether it is a multiple of the identity: homogeneous for factors of both signs."""
        return self.homogeneous and self.odd

    def then(self, other: "Activation") -> "Activation":
        """Return the composition ``other(self(z))``: it has a property if both functions have it."""
        name = " ".join(part for part in (self.name, other.name) if part != IDENTITY.name) or IDENTITY.name
        return Activation(name, self.homogeneous and other.homogeneous, self.odd and other.odd)


IDENTITY = Activation("identity", homogeneous=True, odd=True)

# By the name of the module's class or of the function, in lower case without underscores. Dropout is the
# identity in evaluation mode. Hardtanh is odd for its default limits only; with others the numerical check
# rejects the flip.
POINTWISE: dict[str, Activation] = {
    **dict.fromkeys(("identity", "dropout", "alphadropout", "featurealphadropout", "contiguous"), IDENTITY),
    "relu": Activation("ReLU", homogeneous=True),
    "leakyrelu": Activation("LeakyReLU", homogeneous=True),
    "rrelu": Activation("RReLU", homogeneous=True),
    "prelu": Activation("PReLU", homogeneous=True),
    "tanh": Activation("tanh", odd=True),
    "hardtanh": Activation("Hardtanh", odd=True),
    "softsign": Activation("Softsign", odd=True),
    "tanhshrink": Activation("Tanhshrink", odd=True),
    "softshrink": Activation("Softshrink", odd=True),
    "hardshrink": Activation("Hardshrink", odd=True),
    "sin": Activation("sin", odd=True),
    "relu6": Activation("ReLU6"),
    "celu": Activation("CELU"),
    "cos": Activation("cos"),
    "elu": Activation("ELU"),
    "gelu": Activation("GELU"),
    "hardsigmoid": Activation("Hardsigmoid"),
    "hardswish": Activation("Hardswish"),
    "logsigmoid": Activation("LogSigmoid"),
    "mish": Activation("Mish"),
    "selu": Activation("SELU"),
    "sigmoid": Activation("sigmoid"),
    "silu": Activation("SiLU"),
    "softplus": Activation("Softplus"),
}

# These rearrange entries without changing them; between two linear layers they are the identity on the units
# as long as the widths still fit.
_RESHAPES = frozenset({"flatten", "view", "reshape", "squeeze", "unsqueeze"})
# These tell a shape and carry no values.
_SHAPE_QUERIES = frozenset({"size", "shape", "dim", "ndim", "len"})


@dataclass(frozen=True)
class Layer:
    """One linear layer and the activation behind it.

    Args:
        name: qualified name of the module, or of the weight where no module has it to itself.
        weight: qualified name of the weight, shape (fan_out, fan_in).
        bias: qualified name of the bias, or None.
        activation: what is applied to its outputs before the next layer reads them; None behind the last
            layer.
    """

    name: str
    weight: str
    bias: str | None
    fan_in: int
    fan_out: int
    activation: Activation | None


class Chain:
    """Linear layers in a row.

    Attributes:
        layers: in the order of the forward pass.
    """

    def __init__(self, layers: tuple[Layer, ...], probe: fx.GraphModule) -> None:
        self.layers = layers
        self._probe = probe

    def units(self, inputs: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return pre-activations and activations of every layer, each of shape (n, fan_out), float64.

        The rows are the samples, times the positions where the layers act on sequences. Behind the last layer
        both are the layer's outputs.
        """
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            recorded = self._probe(to_float64(inputs))
        return [
            (before.reshape(-1, layer.fan_out), after.reshape(-1, layer.fan_out))
            for layer, (before, after) in zip(self.layers, recorded, strict=True)
        ]


def trace_chain(model: FrozenModel) -> Chain:
    """Return the chain of linear layers that the model consists of.

    Raises:
        InputError: the model is something else; the message names the first thing that is not covered.

    >>> with torch.random.fork_rng():
    ...     model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    >>> chain = trace_chain(FrozenModel(model))
    >>> [(layer.name, layer.fan_in, layer.fan_out) for layer in chain.layers]
    [('0', 6, 8), ('2', 8, 4)]
    >>> chain.layers[0].activation
    Activation(name='ReLU', homogeneous=True, odd=False)
    """
    trace = _Trace(model.module)
    path = list(trace.path())
    for node in path:
        trace.refuse_parameters(node)
    places = [place for place, node in enumerate(path) if trace.is_linear(node)]
    if not places:
        raise _not_covered("a model without a linear layer on the way from input to output")
    layers, nodes = [], []
    for here, there in pairwise(places):
        between = path[here + 1 : there]
        activation = IDENTITY
        for node in between:
            activation = activation.then(trace.pointwise(node))
        layer, reader = trace.layer(path[here], activation), trace.layer(path[there], None)
        if layer.fan_out != reader.fan_in:
            widths = f"{layer.fan_out} units of {layer.name!r} are read as {reader.fan_in} by {reader.name!r}"
            raise _not_covered(f"a change of shape between layers ({widths})")
        layers.append(layer)
        nodes.append((path[here], path[there - 1]))
    layers.append(trace.layer(path[places[-1]], None))
    nodes.append((path[places[-1]], path[places[-1]]))
    _check_parameters(model, layers, [trace.module(node) for node in path])
    return Chain(tuple(layers), trace.probe(nodes))


class _OneInput(nn.Module):
    # Makes a bare nn.Linear a leaf like any other, and hides optional arguments of forward from the tracer.
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.model(inputs)
        return outputs


class _Trace:
    """The graph of a forward pass, and what its nodes mean."""

    def __init__(self, model: nn.Module) -> None:
        self.root = _OneInput(model)
        try:
            with torch.random.fork_rng(devices=[]):
                self.graph = fx.Tracer().trace(self.root)
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise _not_covered(f"a forward pass that torch.fx cannot trace ({reason})") from error
        self.graph.eliminate_dead_code(is_impure_node=_is_boundary)

    def path(self) -> Iterator[fx.Node]:
        """Yield the operations from input to output; refuse branches."""
        node = next(node for node in self.graph.nodes if node.op == "placeholder")
        while True:
            readers = [user for user in node.users if self.name(user) not in _SHAPE_QUERIES]
            if not readers:
                raise _not_covered("an output that does not depend on the input along one path")
            if len(readers) > 1:
                where = "at the input" if node.op == "placeholder" else f"behind {self.describe(node)}"
                raise _not_covered(f"a branch {where}, as in a residual connection")
            if readers[0].op == "output":
                if readers[0].args[0] is not node:
                    raise _not_covered("a model that returns something else than one tensor")
                return
            node = readers[0]
            yield node

    def refuse_parameters(self, node: fx.Node) -> None:
        """Refuse a module with parameters that are not those of a linear layer or of an activation."""
        module = self.module(node)
        if module is not None and not isinstance(module, nn.Linear | nn.PReLU) and [*module.parameters()]:
            raise _not_covered(self.describe(node))

    def is_linear(self, node: fx.Node) -> bool:
        """Whether a node applies a linear layer."""
        return isinstance(self.module(node), nn.Linear) or node.target is nn.functional.linear

    def layer(self, node: fx.Node, activation: Activation | None) -> Layer:
        """Return the linear layer that a node applies."""
        parameters = dict(self.root.named_parameters(remove_duplicate=False))
        # A parameter that two layers share is known by its first name, as in named_parameters().
        first = {id(parameter): name for name, parameter in self.root.named_parameters()}
        sources = self._weight_and_bias(node)
        if any(name is not None and name not in parameters for name in sources):
            raise _not_covered(f"{self.describe(node)} with a weight that is not a parameter")
        weight, bias = (None if name is None else _plain(first[id(parameters[name])]) for name in sources)
        assert weight is not None
        fan_out, fan_in = parameters[str(sources[0])].shape
        name = _plain(str(sources[0])).removesuffix("weight").removesuffix(".") or "model"
        if fan_in == 0 or fan_out == 0:
            raise InputError(f"layer {name!r} must have units, got a weight of shape ({fan_out}, {fan_in})")
        return Layer(name, weight, bias, fan_in, fan_out, activation)

    def _weight_and_bias(self, node: fx.Node) -> list[str | None]:
        module = self.module(node)
        if isinstance(module, nn.Linear):
            if {name for name, _ in module.named_parameters()} - {"weight", "bias"}:
                raise _not_covered(f"{self.describe(node)} with a computed weight")
            return [f"{node.target}.weight", None if module.bias is None else f"{node.target}.bias"]
        arguments = dict(zip(("input", "weight", "bias"), node.args, strict=False)) | dict(node.kwargs)
        names: list[str | None] = []
        for source in (arguments["weight"], arguments.get("bias")):
            if isinstance(source, fx.Node) and source.op != "get_attr":
                raise _not_covered(f"{self.describe(node)} with a computed weight")
            names.append(str(source.target) if isinstance(source, fx.Node) else None)
        return names

    def pointwise(self, node: fx.Node) -> Activation:
        """Return what is known of an operation between two linear layers; refuse what mixes units."""
        name = self.name(node)
        if name in _RESHAPES:
            return IDENTITY
        if name not in POINTWISE or len(node.all_input_nodes) > 1:
            raise _not_covered(f"{self.describe(node)} between two linear layers")
        module = self.module(node)
        if isinstance(module, nn.PReLU) and module.num_parameters > 1:
            raise _not_covered(f"{self.describe(node)} with a slope for each unit")
        return POINTWISE[name]

    def probe(self, nodes: list[tuple[fx.Node, fx.Node]]) -> fx.GraphModule:
        """Return the traced module with other outputs: the values of these nodes. Ends the trace's use."""
        next(node for node in self.graph.nodes if node.op == "output").args = (tuple(nodes),)
        self.graph.eliminate_dead_code(is_impure_node=_is_boundary)
        return fx.GraphModule(self.root, self.graph)

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a node calls, or None."""
        return self.root.get_submodule(str(node.target)) if node.op == "call_module" else None

    def name(self, node: fx.Node) -> str:
        """Return the name of a node's operation as :data:`POINTWISE` spells it."""
        module = self.module(node)
        if module is not None:
            name = type(module).__name__
        elif node.target is getattr:
            name = str(node.args[1])
        else:
            name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        return name.lower().replace("_", "")

    def describe(self, node: fx.Node) -> str:
        """Return how an error message calls a node."""
        module = self.module(node)
        if module is not None:
            return f"{type(module).__name__} {_plain(str(node.target))!r}"
        return f"operation {self.name(node)!r}"


def _check_parameters(model: FrozenModel, layers: list[Layer], modules: list[nn.Module | None]) -> None:
    """Refuse parameters that belong to no layer of the chain: their symmetries would silently be missed."""
    known = {name for layer in layers for name in (layer.weight, layer.bias)}
    slopes = {id(p) for module in modules if isinstance(module, nn.PReLU) for p in module.parameters()}
    for name, parameter in model.params.items():
        if name not in known and id(parameter) not in slopes:
            owner = model.module.get_submodule(name.rpartition(".")[0])
            raise _not_covered(f"parameter {name!r} of {type(owner).__name__}")


def _is_boundary(node: fx.Node) -> bool:
    """Whether a node stays in the graph although nothing reads it; assertions and unused branches do not."""
    return node.op in ("placeholder", "output")


def _plain(name: str) -> str:
    """Return a name below :class:`_OneInput` as the caller knows it; the model itself is called ``model``."""
    return name.removeprefix("model").removeprefix(".") or "model"


def _not_covered(what: str) -> InputError:
    return InputError(f"not covered yet: {what}; {_COVERED}")
