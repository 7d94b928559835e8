"""Exactly solved models: where the minima of a network lie, and when they appear, merge and vanish."""
