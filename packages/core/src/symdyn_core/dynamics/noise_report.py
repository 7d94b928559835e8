"""What there is to say of the noise of a network's gradient; ``noise_measurement`` measures it."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console, ConsoleOptions, RenderableType


@dataclass(frozen=True)
class LayerNoise:
    """Noise of the gradient of one layer.

    Attributes:
        name: of the module that holds the parameters; ``(model)`` for parameters of the model itself.
        parameters: how many.
        trace: of the covariance of one sample's gradient.
        share: of the trace of the whole model.
        noise_to_signal: trace over the squared norm of the mean gradient, both of this layer: the batch size
            at which they are equal. Infinite where the mean cannot be told from zero.
    """

    name: str
    parameters: int
    trace: float
    share: float
    noise_to_signal: float


@dataclass(frozen=True)
class Equivalent:
    """Another batch size, and the learning rates that go with it.

    Attributes:
        batch_size: of SGD.
        learning_rate: with the loss gap of the present settings.
        linear: by the linear rule, the present learning rate times the ratio of batch sizes.
        linear_is_stable: whether that one is below the edge of stability.
    """

    batch_size: int
    learning_rate: float
    linear: float
    linear_is_stable: bool


@dataclass(frozen=True)
class NoiseReport:
    r"""Noise of minibatch gradients at the present parameters of a network; prints as a page.

    Attributes:
        model: class name of the network.
        parameters: number P of its parameters.
        samples: number of samples looked at.
        given: number of samples there were: the data set that batches are drawn from.
        learning_rate: of SGD.
        batch_size: of SGD.
        momentum: of SGD.
        weight_decay: as ``torch.optim.SGD`` takes it; part of gradient and curvature, not of the noise.
        replacement: whether batches are drawn with replacement.
        loss: without the decay, on the samples.
        gradient_norm: of the loss with its decay; corrected for the samples not looked at, not below 0.
        trace: of the covariance :math:`\Sigma` of one sample's gradient.
        batch_trace: of the covariance C of the minibatch gradient.
        spectrum: largest eigenvalues of :math:`\Sigma`, descending.
        effective_rank: how many equal eigenvalues would be as spread out.
        layers: the same trace layer by layer, in the model's order.
        noise_scale: :math:`\mathrm{Tr}\,\Sigma/|g|^2`: the batch size at which noise equals signal.
        critical_batch_size: :math:`\mathrm{Tr}[H\Sigma]/g^THg`, the same weighted by curvature; None where
            curvature along the gradient or under the noise is not positive.
        noise_to_loss: :math:`\mathrm{Tr}\,\Sigma/(2L\,\mathrm{Tr}H)`, 1 if the noise followed from the loss.
        curvatures: eigenvalues of the Hessian, descending: all of a small network, else the largest in size.
        noise_along: :math:`v^T\Sigma v` along their eigenvectors.
        hessian_trace: of the Hessian, estimated for all but small networks; None where positive and negative
            curvature cancel so far that the estimate is not good to a quarter; what rests on it likewise.
        tail_index: of plain SGD along the steepest direction; None with momentum or without curvature.
        edge: learning rate beyond which the mean leaves; None without positive curvature.
        loss_gap: predicted stationary loss above the minimum; None beyond the edge.
        all_directions: whether the gap is that of every direction, or of the steepest with the rest as flat.
        resting_gradient_norm: size of the gradient that noise keeps up at stationarity; None where undefined.
        equivalents: other batch sizes with their learning rates.
    """

    model: str
    parameters: int
    samples: int
    given: int
    learning_rate: float
    batch_size: int
    momentum: float
    weight_decay: float
    replacement: bool
    loss: float
    gradient_norm: float
    trace: float
    batch_trace: float
    spectrum: tuple[float, ...]
    effective_rank: float
    layers: tuple[LayerNoise, ...]
    noise_scale: float
    critical_batch_size: float | None
    noise_to_loss: float | None
    curvatures: tuple[float, ...]
    noise_along: tuple[float, ...]
    hessian_trace: float | None
    tail_index: float | None
    edge: float | None
    loss_gap: float | None
    all_directions: bool
    resting_gradient_norm: float | None
    equivalents: tuple[Equivalent, ...]

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of the trace in each of the largest eigenvalues."""
        return tuple(value / self.trace if self.trace else 0.0 for value in self.spectrum)

    @property
    def share_along_curvature(self) -> float:
        """Share of the trace along the directions of :attr:`curvatures`."""
        return math.fsum(self.noise_along) / self.trace if self.trace else 0.0

    @property
    def descent(self) -> float | None:
        """Squared gradient over what noise keeps up at rest: what a step gains over what its noise costs."""
        if not self.resting_gradient_norm:
            return None
        return (self.gradient_norm / self.resting_gradient_norm) ** 2

    @property
    def advice(self) -> list[str]:
        """What this means, most important first."""
        from symdyn_core.dynamics.noise_advice import advise

        return list(advise(self))

    def to_frame(self) -> "pd.DataFrame":
        """Return the layers as a table: one row per layer."""
        import pandas as pd

        return pd.DataFrame([asdict(layer) for layer in self.layers]).set_index("name")

    def to_dict(self) -> dict[str, Any]:
        """Return the report as values that JSON can hold; what is not finite becomes None."""
        values = asdict(self) | {
            "shares": self.shares,
            "share_along_curvature": self.share_along_curvature,
            "descent": self.descent,
            "advice": self.advice,
        }
        cleaned: dict[str, Any] = _plain(values)
        return cleaned

    def to_html(self, title: str | None = None) -> str:
        """Return a page with figures that stands alone.

        Args:
            title: what was looked at; by default the class of the model.
        """
        from symdyn_core.dynamics.noise_page import page

        return page(self, title)

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[RenderableType]":
        """Yield the page for the terminal."""
        from symdyn_core.dynamics.noise_page import render

        yield from render(self)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
