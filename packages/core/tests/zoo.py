"""Ground truth: small networks whose parameter symmetries are known exactly, written as practitioners do.

Every dimension counts the directions of parameter space along which no output changes, at generic parameters
and inputs. They were derived by hand and agree with the null space of the output Jacobian (the certificate's
tests count them again). Normalisations have eps = 0 where the count needs it: with the usual eps the scale of
what they read is a symmetry only approximately.

Load this file by path (`importlib.util.spec_from_file_location`): tests run with ``--import-mode=importlib``.
A model is a function of its seed alone and never touches the global random state.
"""

import copy
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

Output = Callable[[Tensor], Tensor]
Built = tuple[nn.Module, Tensor]

# nn.BatchNorm refuses zero; beside variances of order one this is zero in float32 and float64.
NO_EPS = 1e-30
# A ReLU unit that is always on or always off adds flat directions that belong to the data, not to the net.
LEAST_ACTIVE, MOST_ACTIVE = 0.08, 0.92


@dataclass(frozen=True)
class Case:
    """One network and what is known of its symmetries."""

    name: str
    build: Callable[[], Built]
    """Returns (model, inputs) in float64; the model's training mode is part of the case."""
    dimension: int
    """All continuous symmetries together."""
    kinds: Mapping[str, int] = field(default_factory=dict)
    """The dimension taken apart; the values add up to `dimension`."""
    output: Output | None = None
    """The map under which invariance is asked; None: the model's own outputs."""
    permutations: tuple[int, ...] = ()
    """Sizes of the symmetric groups, in the order of the forward pass; those of one element are left out."""
    sign_flips: tuple[int, ...] = ()
    """Numbers of units whose signs flip, one entry per layer."""

    def __post_init__(self) -> None:
        if sum(self.kinds.values()) != self.dimension:
            raise ValueError(f"{self.name}: {dict(self.kinds)} must add up to {self.dimension}")


def log_probabilities(logits: Tensor) -> Tensor:
    """Return log-probabilities over the last axis."""
    return functional.log_softmax(logits, dim=-1)


def cosine_gram(features: Tensor) -> Tensor:
    """Return the cosine similarities between all samples, shape (samples, samples)."""
    unit = functional.normalize(features, dim=-1, eps=0.0)
    return unit @ unit.T


# ------------------------------------------------------------------------------------------------ networks


def multilayer(*widths: int, activation: type[nn.Module]) -> nn.Sequential:
    """Return a fully connected network."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1])


class LowRankAdapter(nn.Module):
    """A frozen linear map plus a trained product of two thin matrices (LoRA)."""

    base: Tensor

    def __init__(self, fan_in: int, fan_out: int, rank: int) -> None:
        super().__init__()
        self.register_buffer("base", torch.randn(fan_out, fan_in))
        self.A = nn.Parameter(torch.randn(rank, fan_in))
        self.B = nn.Parameter(torch.randn(fan_out, rank))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.base) + functional.linear(functional.linear(x, self.A), self.B)


class ConvNet(nn.Module):
    """Two blocks of convolution, BatchNorm and ReLU, global average pooling, a linear head."""

    def __init__(self, channels: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        first, second, third = channels
        self.conv1 = nn.Conv2d(first, second, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(second, eps=NO_EPS)
        self.conv2 = nn.Conv2d(second, third, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(third, eps=NO_EPS)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(third, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.fc(torch.flatten(self.pool(x), 1))


class BasicBlock(nn.Module):
    """The residual block of a ResNet-18."""

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(fan_out, eps=NO_EPS)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(fan_out, eps=NO_EPS)
        self.downsample: nn.Module | None = None
        if stride != 1 or fan_in != fan_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(fan_in, fan_out, 1, stride=stride, bias=False),
                nn.BatchNorm2d(fan_out, eps=NO_EPS),
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """A stem and two stages of one block each, the second with a projection."""

    def __init__(self, fan_in: int, widths: tuple[int, int], classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0], eps=NO_EPS)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = BasicBlock(widths[0], widths[0], stride=1)
        self.layer2 = BasicBlock(widths[0], widths[1], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(widths[1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class Recurrent(nn.Module):
    """A recurrent layer of torch, read out at the last step."""

    def __init__(self, layer: type[nn.LSTM] | type[nn.GRU], fan_in: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.rnn = layer(fan_in, hidden, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(x)
        return self.head(states[:, -1])


class TorchAttention(nn.Module):
    """Self-attention by torch's own module, which keeps queries, keys and values in one matrix."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.attn(x, x, x, need_weights=False)
        return out


class Attention(nn.Module):
    """Self-attention written out: four projections and an explicit softmax."""

    def __init__(self, width: int, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        q, k, v = (
            proj(x).view(B, T, self.heads, D // self.heads).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = q @ k.transpose(-2, -1) / (D // self.heads) ** 0.5
        if self.causal:
            future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(future, float("-inf"))
        out = scores.softmax(dim=-1) @ v
        return self.out_proj(out.transpose(1, 2).reshape(B, T, D))


class FusedAttention(nn.Module):
    """Causal self-attention in nanoGPT's way: one projection, split in three; torch's fused kernel."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.size()
        q, k, v = self.c_attn(x).split(self.width, dim=2)
        q = q.view(B, T, self.heads, D // self.heads).transpose(1, 2)
        k = k.view(B, T, self.heads, D // self.heads).transpose(1, 2)
        v = v.view(B, T, self.heads, D // self.heads).transpose(1, 2)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, D))


class GPTBlock(nn.Module):
    """Attention and a GELU network, each behind a LayerNorm and beside a residual stream."""

    def __init__(self, width: int, heads: int, hidden: int, *, fused: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=0.0)
        self.attn = FusedAttention(width, heads) if fused else Attention(width, heads, causal=True)
        self.ln_2 = nn.LayerNorm(width, eps=0.0)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """A decoder with learned positions, pre-LN blocks, a final LayerNorm and a head of its own."""

    def __init__(
        self,
        *,
        vocabulary: int,
        context: int,
        width: int,
        heads: int,
        hidden: int,
        classes: int,
        layers: int,
        fused: bool,
    ) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Embedding(context, width)
        self.h = nn.ModuleList(GPTBlock(width, heads, hidden, fused=fused) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width, eps=0.0)
        self.lm_head = nn.Linear(width, classes)

    def forward(self, idx: Tensor) -> Tensor:
        pos = torch.arange(idx.shape[1], device=idx.device)
        x = self.wte(idx) + self.wpe(pos)
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a gain."""

    def __init__(self, width: int, eps: float = 0.0) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def rotary(x: Tensor) -> Tensor:
    """Rotate the pairs (i, i + d/2) of each head by angles that grow with the position (RoPE)."""
    T, d = x.shape[-2], x.shape[-1]
    frequencies = 100.0 ** (-torch.arange(0, d, 2, dtype=x.dtype, device=x.device) / d)
    angles = torch.outer(torch.arange(T, dtype=x.dtype, device=x.device), frequencies)
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class GroupedQueryAttention(nn.Module):
    """Causal attention with rotary positions; several query heads share a key and a value head."""

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, width // heads
        self.q_proj = nn.Linear(width, heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(heads * self.head_dim, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, self.heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(B, T, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(B, T, self.kv_heads, self.head_dim).transpose(1, 2)
        q, k = rotary(q), rotary(k)
        k = k.repeat_interleave(self.heads // self.kv_heads, dim=1)
        v = v.repeat_interleave(self.heads // self.kv_heads, dim=1)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))


class SwiGLU(nn.Module):
    """A gated network: down(silu(gate x) * up x)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class LlamaBlock(nn.Module):
    """Attention and SwiGLU, each behind an RMSNorm and beside a residual stream."""

    def __init__(self, width: int, heads: int, kv_heads: int, hidden: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(width)
        self.self_attn = GroupedQueryAttention(width, heads, kv_heads)
        self.post_attention_layernorm = RMSNorm(width)
        self.mlp = SwiGLU(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """A LLaMA decoder; the head may be the embedding itself."""

    def __init__(
        self,
        *,
        vocabulary: int,
        width: int,
        heads: int,
        kv_heads: int,
        hidden: int,
        layers: int,
        tied: bool = False,
    ) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(LlamaBlock(width, heads, kv_heads, hidden) for _ in range(layers))
        self.norm = RMSNorm(width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))


# ------------------------------------------------------------------------------- generic points, real inputs


def make_generic(model: nn.Module) -> None:
    """Move every parameter and running statistic away from the special values of initialisation."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean.normal_(0.0, 0.3)
                module.running_var.uniform_(0.5, 1.5)
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.ndim == 1 and name == "weight":  # a gain
                    parameter.add_(0.4 * torch.randn_like(parameter))
                elif parameter.ndim == 1:  # a bias
                    parameter.normal_(0.0, 0.4)
                elif isinstance(module, nn.Linear | nn.Conv2d | nn.MultiheadAttention):
                    # Torch's initial weights have variance 1/(3 fan_in); this keeps activations of order one.
                    parameter.normal_(0.0, parameter[0].numel() ** -0.5)


def busy(model: nn.Module, inputs: Tensor) -> bool:
    """Whether each ReLU unit is on for 8 to 92 % of samples and places."""
    shares: list[Tensor] = []

    def record(module: nn.Module, arguments: object, after: Tensor) -> None:
        shares.append((after > 0).double().transpose(0, 1).flatten(1).mean(dim=1))

    handles = [m.register_forward_hook(record) for m in model.modules() if isinstance(m, nn.ReLU)]
    state = {name: value.clone() for name, value in model.named_buffers()}
    with torch.no_grad():
        model(inputs)
        for name, value in model.named_buffers():  # BatchNorm counts what it has seen
            value.copy_(state[name])
    for handle in handles:
        handle.remove()
    return all(bool(((share > LEAST_ACTIVE) & (share < MOST_ACTIVE)).all()) for share in shares)


def build(
    make: Callable[[], nn.Module], inputs: Callable[[], Tensor], *, training: bool = False, seed: int = 0
) -> Built:
    """Return a model at generic parameters and its inputs; the first draw whose ReLU units are all busy."""
    for attempt in range(200):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1000 * seed + attempt)
            model = make()
            make_generic(model)
            model.double().train(training)
            data = inputs()
        if busy(model, data):
            return model, data
    raise AssertionError("no draw gives ReLU units that are all on for 8 to 92 % of the inputs")


def normal(*shape: int) -> Callable[[], Tensor]:
    """Return a draw of normal inputs."""
    return lambda: torch.randn(shape, dtype=torch.float64)


def tokens(samples: int, length: int, vocabulary: int) -> Callable[[], Tensor]:
    """Return a draw of token ids."""
    return lambda: torch.randint(vocabulary, (samples, length))


def gpt(layers: int, heads: int, *, fused: bool, seed: int = 0) -> Built:
    """Return a GPT of width 8."""
    sizes = {"vocabulary": 11, "context": 6, "width": 8, "hidden": 10, "classes": 5}
    make = lambda: GPT(**sizes, heads=heads, layers=layers, fused=fused)  # noqa: E731
    return build(make, tokens(30 + 20 * layers, 6, 11), seed=seed)


def llama(layers: int, heads: int, kv_heads: int, *, tied: bool = False, seed: int = 0) -> Built:
    """Return a LLaMA of width 8."""
    sizes = {"vocabulary": 11, "width": 8, "hidden": 10}
    make = lambda: Llama(**sizes, heads=heads, kv_heads=kv_heads, layers=layers, tied=tied)  # noqa: E731
    return build(make, tokens(10 + 10 * layers, 6, 11), seed=seed)


# --------------------------------------------------------------------------------------------------- the zoo

_CONVNET_KINDS = {"conv scale": 9, "conv bias": 9, "rescaling through ReLU": 9}
_MHA_KINDS = {"query-key": 32, "value-output": 32, "key bias": 8, "value bias": 8}


def _gpt_kinds(layers: int, heads: int) -> dict[str, int]:
    D, F, V, T, C = 8, 10, 11, 6, 5
    return {
        "norm gain": 2 * D * layers + D,
        "norm shift": 2 * D * layers + D,
        "mean-free readers": (3 * D + F) * layers + C,
        "query-key": D * D // heads * layers,
        "value-output": D * D // heads * layers,
        "key bias": D * layers,
        "value bias": D * layers,
        "mean of writers": (D + 1 + F + 1) * layers,
        "mean of embeddings": V + T,
        "tokens against positions": D - 1,
        "stream scale": 1,
        "stream rotation": (D - 1) * (D - 2) // 2,
    }


def _llama_kinds(layers: int, heads: int, kv_heads: int, *, tied: bool = False) -> dict[str, int]:
    D, F, d = 8, 10, 8 // heads
    return {
        "norm gain": 2 * D * layers + (0 if tied else D),
        "query-key": kv_heads * d * layers,  # a complex factor for each frequency, as RoPE rotates planes
        "value-output": kv_heads * d * d * layers,
        "up-down": F * layers,
        "stream scale": 1,
        "stream rotation": 0 if tied else D * (D - 1) // 2,
    }


CASES = (
    Case(
        "softmax_regression",
        lambda: build(lambda: nn.Linear(6, 4), normal(40, 6)),
        dimension=7,
        kinds={"shift of the logits": 7},
        output=log_probabilities,
    ),
    Case(
        "softmax_regression_logits",
        lambda: build(lambda: nn.Linear(6, 4), normal(40, 6)),
        dimension=0,
    ),
    Case(
        "mlp_relu",
        lambda: build(lambda: multilayer(6, 8, 7, 4, activation=nn.ReLU), normal(400, 6)),
        dimension=15,
        kinds={"rescaling through ReLU": 15},
        permutations=(8, 7),
    ),
    Case(
        "mlp_relu_log_probabilities",
        lambda: build(lambda: multilayer(6, 8, 7, 4, activation=nn.ReLU), normal(400, 6)),
        dimension=23,
        kinds={"rescaling through ReLU": 15, "shift of the logits": 8},
        output=log_probabilities,
        permutations=(8, 7),
    ),
    Case(
        "mlp_tanh",
        lambda: build(lambda: multilayer(6, 8, 7, 4, activation=nn.Tanh), normal(150, 6)),
        dimension=0,
        permutations=(8, 7),
        sign_flips=(8, 7),
    ),
    Case(
        "mlp_gelu",
        lambda: build(lambda: multilayer(6, 8, 7, 4, activation=nn.GELU), normal(150, 6)),
        dimension=0,
        permutations=(8, 7),
    ),
    Case(
        "linear_net",
        lambda: build(lambda: multilayer(5, 4, 6, activation=nn.Identity), normal(60, 5)),
        dimension=20,
        kinds={"general linear": 16, "translation": 4},
    ),
    Case(
        "lora",
        lambda: build(lambda: LowRankAdapter(5, 6, 3), normal(30, 5)),
        dimension=9,
        kinds={"general linear": 9},
    ),
    Case(
        "convnet_train",
        lambda: build(lambda: ConvNet((2, 4, 5), 3), normal(130, 2, 6, 6), training=True),
        dimension=27,
        kinds=_CONVNET_KINDS,
        permutations=(4, 5),
        sign_flips=(4, 5),
    ),
    Case(
        "convnet_eval",
        lambda: build(lambda: ConvNet((2, 4, 5), 3), normal(130, 2, 6, 6)),
        dimension=27,
        kinds=_CONVNET_KINDS,
        permutations=(4, 5),
        # An affine flip: as the running mean m is no parameter, the conv bias b becomes 2m - b.
        sign_flips=(4, 5),
    ),
    Case(
        "resnet",
        lambda: build(lambda: ResNet(2, (4, 6), 3), normal(400, 2, 4, 4), training=True),
        dimension=56,
        kinds={
            "conv scale": 30,
            "rescaling through ReLU inside a block": 10,
            "rescaling of a stage": 10,
            "beta against beta of the projection": 6,
        },
        permutations=(4, 4, 6, 6),  # stage 1, inside block 1, inside block 2, stage 2
        sign_flips=(4, 4, 4, 6, 6, 6),  # each convolution with the gain behind it
    ),
    Case(
        "lstm",
        lambda: build(lambda: Recurrent(nn.LSTM, 3, 5, 2), normal(150, 5, 3)),
        dimension=20,
        kinds={"two biases": 20},
        permutations=(5,),
        sign_flips=(5,),
    ),
    Case(
        "gru",
        lambda: build(lambda: Recurrent(nn.GRU, 3, 5, 2), normal(150, 5, 3)),
        dimension=10,
        kinds={"two biases": 10},
        permutations=(5,),
        sign_flips=(5,),
    ),
    Case(
        "attention",
        lambda: build(lambda: Attention(8, 2), normal(12, 5, 8)),
        dimension=80,
        kinds=_MHA_KINDS,
        permutations=(2,),
    ),
    Case(
        "torch_attention",
        lambda: build(lambda: TorchAttention(8, 2), normal(12, 5, 8)),
        dimension=80,
        kinds=_MHA_KINDS,
        permutations=(2,),
    ),
    Case(
        "gpt",
        lambda: gpt(1, 2, fused=False),
        dimension=233,
        kinds=_gpt_kinds(1, 2),
        permutations=(2, 10),
    ),
    Case(
        "gpt_fused",
        lambda: gpt(1, 2, fused=True),
        dimension=233,
        kinds=_gpt_kinds(1, 2),
        permutations=(2, 10),
    ),
    Case(
        "gpt_two_blocks",
        lambda: gpt(2, 4, fused=True),
        dimension=335,
        kinds=_gpt_kinds(2, 4),
        permutations=(4, 10, 4, 10),
    ),
    Case(
        "llama",
        lambda: llama(1, 2, 1),
        dimension=83,
        kinds=_llama_kinds(1, 2, 1),
        permutations=(2, 10),  # the heads of a group, hidden units; there is one group
        sign_flips=(10,),
    ),
    Case(
        "llama_tied",
        lambda: llama(1, 2, 1, tied=True),
        dimension=47,
        kinds=_llama_kinds(1, 2, 1, tied=True),
        permutations=(2, 10),
        sign_flips=(10,),
    ),
    Case(
        "llama_two_blocks",
        lambda: llama(2, 4, 2),
        dimension=113,
        kinds=_llama_kinds(2, 4, 2),
        permutations=(2, 2, 2, 10, 2, 2, 2, 10),  # a block: the groups, heads in each of them, hidden units
        sign_flips=(10, 10),
    ),
    Case(
        "layer_norm",
        lambda: build(
            lambda: nn.Sequential(
                nn.Linear(6, 8), nn.LayerNorm(8, eps=0.0), nn.ReLU(), nn.Linear(8, 4)
            ),
            normal(60, 6),
        ),
        dimension=16,
        kinds={"mean of writers": 7, "scale": 1, "rescaling through ReLU": 8},
        permutations=(8,),
    ),
    Case(
        "ssl_encoder",
        lambda: build(lambda: multilayer(6, 8, 3, activation=nn.ReLU), normal(70, 6)),
        dimension=12,
        kinds={"rescaling through ReLU": 8, "rotation": 3, "scale": 1},
        output=cosine_gram,
        permutations=(8,),
    ),
)  # fmt: skip


def case(name: str) -> Case:
    """Return the case of that name."""
    return next(entry for entry in CASES if entry.name == name)


def as_function(
    model: nn.Module,
) -> tuple[Callable[[Mapping[str, Tensor], Tensor], Tensor], dict[str, Tensor]]:
    """Return a model as a function of its parameters, and the parameters.

    In training mode BatchNorm takes the statistics of the batch and keeps no record of them.
    """
    model = copy.deepcopy(model).requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.training:
            module.running_mean = module.running_var = module.num_batches_tracked = None
    call = lambda params, inputs: torch.func.functional_call(model, dict(params), (inputs,))  # noqa: E731
    return call, dict(model.named_parameters())
