"""Symmetries of a PyTorch model, what SGD does to them, and studies that put the theory to the test."""

__version__ = "0.1.0"
