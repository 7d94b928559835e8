"""Decode, benchmark and check the symmetries of quantum error correcting circuits in Stim."""

__version__ = "0.1.0"
