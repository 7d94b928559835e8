"""Layers and circuits that learn by heterosynaptic plasticity, with probes of what emerges."""

__version__ = "0.1.0"
