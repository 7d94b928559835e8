r"""A network on the graph of detectors of any circuit.

Every detector has features. A layer lets each detector hear those that errors flip together with it, every
feature with its own weight for every pair, and then updates the features of each by the same small
perceptron:

.. math:: x_v \leftarrow x_v + W_2\, \mathrm{GELU}\big(W_1 [\hat x_v, \textstyle\sum_u a_{vu} \odot \hat x_u]
    + b\big), \qquad \hat x = \mathrm{RMSNorm}(x) .

Weights a of pairs that look alike start as equals, and each may deviate. Features come first in memory, so
that hearing is one product of matrices for every feature.
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from symdyn_core.random import torch_generator
from symdyn_qec.graph_layout import GraphLayout

# Per shot: by how much the better class is lighter, by free energies and by lightest explanations, in nats,
# and the logarithm of the noise; and what makes of each a number of order one.
SHOT_FEATURES = 3
SCALES = (0.25, 0.25, 1.0)

POOLED, MIXED = 96, 64  # widths of what is summed over detectors, and of the last layer


class Normal(Protocol):
    """Draws initial weights."""

    def __call__(self, *shape: int, scale: float = 1.0) -> nn.Parameter:
        """Return normal weights of a standard deviation."""


class DetectorGraphNetwork(nn.Module):
    r"""Log odds for each observable that it is not what matching or belief propagation says.

    Args:
        layout: of the circuit.
        width: features per detector, at least 1.
        layers: likewise.
        seed: of the initial weights.

    >>> import stim
    >>> from symdyn_qec.split_model import SplitModel
    >>> dem = stim.DetectorErrorModel("error(0.1) D0 D1\nerror(0.1) D1 D2 D3 L0")
    >>> network = DetectorGraphNetwork(GraphLayout.of(dem, SplitModel.of(dem)), width=4, layers=1)
    >>> network(torch.tensor([[0.0, 1.0, 1.0, 1.0]]), torch.zeros(1, 2, 2), torch.zeros(1, 3)).shape
    torch.Size([1, 1])
    """

    def __init__(self, layout: GraphLayout, width: int = 48, layers: int = 6, seed: int = 0) -> None:
        super().__init__()
        self.width, self.num_detectors = width, layout.num_detectors
        random, n = torch_generator(seed, "detector graph"), layout.num_detectors

        def normal(*shape: int, scale: float = 1.0) -> nn.Parameter:
            return nn.Parameter(scale * torch.randn(*shape, generator=random))

        self.register_buffer("scales", torch.tensor(SCALES), persistent=False)
        self.place = normal(n, width, scale=0.3)
        self.fired = nn.Parameter(normal(1, width).data + normal(n, width, scale=0.1).data)
        self.hints = Hints(layout, width, normal)
        self.shot = normal(SHOT_FEATURES, width, scale=SHOT_FEATURES**-0.5)
        self.layers = nn.ModuleList(Layer(layout, width, normal) for _ in range(layers))
        self.norm = FeatureNorm(width)
        self.pool = normal(POOLED, width, scale=width**-0.5)
        self.pool_offset = nn.Parameter(torch.zeros(POOLED, 1))
        self.mix = normal(MIXED, POOLED + SHOT_FEATURES, scale=(POOLED + SHOT_FEATURES) ** -0.5)
        self.mix_offset = nn.Parameter(torch.zeros(MIXED))
        self.out = nn.Parameter(torch.zeros(layout.num_observables, MIXED))
        self.offset = nn.Parameter(torch.zeros(layout.num_observables))

    def forward(self, fired: Tensor, edges: Tensor, shot: Tensor) -> Tensor:
        """Return log odds.

        Args:
            fired: detectors, zeros and ones, shape ``(shots, detectors)``.
            edges: probabilities of edges in the better and in the other class, or what stands for them, shape
                ``(shots, 2, edges)``.
            shot: features of each shot as a whole, shape ``(shots, 3)``; the first is the preference for the
                better class, in nats, which the log odds start from.

        Returns:
            Shape ``(shots, observables)``.
        """
        device = fired.device.type
        half = torch.is_autocast_enabled(device)
        kind = torch.get_autocast_dtype(device) if half else fired.dtype
        scales: Tensor = self.scales  # type: ignore[assignment]  # a buffer
        scaled = shot * scales
        features = fired[..., None] * self.fired + self.place + (scaled @ self.shot)[:, None]
        features = features.to(kind).permute(2, 0, 1).contiguous()
        features = features + self.hints(edges.to(kind))
        for layer in self.layers:
            features = layer(features)
        seen = self.norm(features)
        pooled = (self.pool.to(kind) @ seen.flatten(1) + self.pool_offset.to(kind)).unflatten(1, fired.shape)
        summed = F.gelu(pooled).float().sum(dim=2).T / self.num_detectors**0.5
        mixed = F.gelu(F.linear(torch.cat([summed, scaled], dim=1), self.mix, self.mix_offset))
        return F.linear(mixed, self.out, self.offset) - shot[:, :1]


class Hints(nn.Module):
    """Shows every detector which of the edges at it the candidates of both classes use."""

    def __init__(self, layout: GraphLayout, width: int, normal: "Normal") -> None:
        super().__init__()
        most = layout.incident.shape[1]
        groups = torch.from_numpy(layout.incident_groups)
        self.register_buffer("incident", torch.from_numpy(layout.incident), persistent=False)
        # Slots without an edge belong to a group of their own, and see a zero.
        self.register_buffer("groups", torch.where(groups < 0, groups.max() + 1, groups), persistent=False)
        self.alike = normal(int(groups.max()) + 2, 2, width, scale=0.7)
        self.each = nn.Parameter(torch.zeros(layout.num_detectors, most, 2, width))

    def forward(self, edges: Tensor) -> Tensor:
        """Return features, shape ``(width, shots, detectors)``."""
        incident: Tensor = self.incident  # type: ignore[assignment]  # a buffer
        groups: Tensor = self.groups  # type: ignore[assignment]  # a buffer
        seen = F.pad(edges, (0, 1))[:, :, incident]  # shots, 2, detectors, most
        weights = (self.alike[groups] + self.each).to(edges.dtype)
        seen = seen.permute(2, 0, 3, 1).flatten(2)  # detectors, shots, most * 2
        return torch.bmm(seen, weights.flatten(1, 2)).permute(2, 1, 0).contiguous()


class Layer(nn.Module):
    """One round of hearing and updating."""

    def __init__(self, layout: GraphLayout, width: int, normal: "Normal") -> None:
        super().__init__()
        n, pairs = layout.num_detectors, torch.from_numpy(layout.pairs)
        self.num_detectors = n
        # Heard detectors come first, as the products want them.
        self.register_buffer("places", pairs[:, 1] * n + pairs[:, 0], persistent=False)
        self.register_buffer("groups", torch.from_numpy(layout.pair_groups), persistent=False)
        scale = (len(layout.pairs) / n) ** -0.5
        self.alike = normal(int(layout.pair_groups.max()) + 1, width, scale=scale)
        self.each = nn.Parameter(torch.zeros(len(layout.pairs), width))
        self.norm = FeatureNorm(width)
        self.inner = normal(2 * width, 2 * width, scale=(2 * width) ** -0.5)
        self.offset = nn.Parameter(torch.zeros(2 * width, 1))
        self.outer = normal(width, 2 * width, scale=0.3 * (2 * width) ** -0.5)

    def forward(self, features: Tensor) -> Tensor:
        """Return features, shape ``(width, shots, detectors)``."""
        kind, n = features.dtype, self.num_detectors
        seen = self.norm(features)
        places: Tensor = self.places  # type: ignore[assignment]  # a buffer
        groups: Tensor = self.groups  # type: ignore[assignment]  # a buffer
        weights = (self.alike[groups] + self.each).T.to(kind)
        matrices = weights.new_zeros(len(weights), n * n).index_copy(1, places, weights).view(-1, n, n)
        heard = torch.bmm(seen, matrices)
        both = torch.cat([seen, heard]).flatten(1)
        inner = F.gelu(self.inner.to(kind) @ both + self.offset.to(kind))
        return features + (self.outer.to(kind) @ inner).view_as(features)


class FeatureNorm(nn.Module):
    """Root mean square normalisation over the first axis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Return the normalised features."""
        size = torch.rsqrt(features.float().square().mean(dim=0, keepdim=True) + 1e-6)
        return features * size.to(features.dtype) * self.scale.to(features.dtype)
