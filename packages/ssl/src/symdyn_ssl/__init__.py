"""Exact theory of when self-supervised representations grow, from data alone."""

__version__ = "0.1.0"
