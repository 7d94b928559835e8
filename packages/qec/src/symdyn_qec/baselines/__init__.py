"""Decoders of others, each in its best configuration, as sinter decoders that work in memory.

Packages that are not installed are missed only when a decoder is made ready for a circuit; names and their
packages are in :mod:`symdyn_qec.baselines.registry`.
"""
