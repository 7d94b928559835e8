"""The learning rules that can be put side by side on the same network."""

from enum import StrEnum


class Rule(StrEnum):
    """How the error travels down, and which synapses learn.

    ``HETEROSYNAPTIC``: through plastic feedback that learns like the weights
    (:class:`symdyn_neuro.layers.HSLinear`). ``BACKPROP``: through the transposed weights.
    ``FROZEN_FEEDBACK``: through fixed random feedback, known as feedback alignment.

    >>> Rule("frozen-feedback")
    <Rule.FROZEN_FEEDBACK: 'frozen-feedback'>
    """

    HETEROSYNAPTIC = "heterosynaptic"
    BACKPROP = "backprop"
    FROZEN_FEEDBACK = "frozen-feedback"
