"""The ``symdyn`` command."""
