"""The learning rates of an ensemble: one number, one per replica, or either as a function of the step."""

import hashlib
from collections.abc import Callable
from typing import Any

from torch import Tensor

from symdyn_core.dynamics.ensemble_checkpoint import digest
from symdyn_core.dynamics.replica_optimizers import Rate
from symdyn_core.errors import InputError

LearningRate = float | Tensor | Callable[[int], float | Tensor]


class LearningRates:
    """The learning rate at each step, and a digest of all so far."""

    def __init__(self, rate: LearningRate, replicas: int) -> None:
        self._rate, self._replicas = rate, replicas
        self._constant = None if callable(rate) else self._checked(rate, "")

    def __getitem__(self, step: int) -> Rate:
        if self._constant is not None:
            return self._constant
        assert callable(self._rate)
        return self._checked(self._rate(step), f" at step {step}")

    def digest(self, steps: int) -> str:
        """Return a digest of the rates of the first ``steps`` steps."""
        total = hashlib.sha256()
        for step in range(1 if self._constant is not None else steps):
            rate = self[step]
            total.update(digest(rate).encode() if isinstance(rate, Tensor) else repr(rate).encode())
        return total.hexdigest()

    def _checked(self, rate: Any, where: str) -> Rate:
        if isinstance(rate, Tensor) and rate.ndim:
            if rate.shape != (self._replicas,):
                raise InputError(
                    f"learning_rate must have shape (replicas={self._replicas},){where}, "
                    f"got {tuple(rate.shape)}"
                )
            if not bool((rate.isfinite() & (rate >= 0)).all()):
                raise InputError(f"learning_rate must be finite and at least 0{where}, got {rate.tolist()}")
            return rate.detach()
        try:
            number = float(rate)
        except (TypeError, ValueError) as error:
            raise InputError(f"learning_rate must be a number{where}, got {rate!r}") from error
        if not 0 <= number < float("inf"):
            raise InputError(f"learning_rate must be finite and at least 0{where}, got {number}")
        return number
