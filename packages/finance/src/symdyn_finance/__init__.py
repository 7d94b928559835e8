"""A market economy whose laws follow from symmetry."""

__version__ = "0.1.0"
