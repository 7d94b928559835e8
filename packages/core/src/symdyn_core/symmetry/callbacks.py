"""The symmetry monitor as a callback of Lightning and of the Hugging Face Trainer.

The classes exist only where their library does: both names below are resolved on first use, and raise
:class:`~symdyn_core.errors.DependencyError` without it.
"""

import json
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from symdyn_core.errors import DependencyError
from symdyn_core.files import write_atomically
from symdyn_core.symmetry.monitor import SymmetryMonitor

STATE_FILE = "symmetry_monitor.json"


def __getattr__(name: str) -> Any:
    makers = {"LightningSymmetryCallback": _lightning_class, "TrainerSymmetryCallback": _trainer_class}
    if name not in makers:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return makers[name]()


def lightning_callback(monitor: SymmetryMonitor) -> Any:
    """Return a Lightning callback that updates a monitor after every optimizer step.

    Its numbers go to the trainer's loggers as ``symmetry/<layer>/<name>``; its state is part of checkpoints.
    With several processes only the first one watches.

    Args:
        monitor: made with the LightningModule as model.

    Raises:
        DependencyError: Lightning is not installed.
    """
    return _lightning_class()(monitor)


def trainer_callback(monitor: SymmetryMonitor) -> Any:
    """Return a callback of the Hugging Face Trainer that updates a monitor after every optimizer step.

    The loss is the last one that the trainer has logged. The state of the monitor is written into every
    checkpoint and read back when training resumes from it. With several processes only the first one watches.

    Args:
        monitor: made with the model that the trainer trains.

    Raises:
        DependencyError: transformers is not installed.
    """
    return _trainer_class()(monitor)


@cache
def _lightning_class() -> type[Any]:
    base: Any = _base("lightning.pytorch.callbacks", "Callback", extra="lightning")

    class LightningSymmetryCallback(base):  # type: ignore[misc]
        """See :func:`lightning_callback`."""

        def __init__(self, monitor: SymmetryMonitor) -> None:
            self.monitor = monitor

        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            if not trainer.is_global_zero:
                return
            loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
            snapshot = self.monitor.update(trainer.global_step, loss)
            if snapshot is not None:
                for logger in trainer.loggers:
                    logger.log_metrics(snapshot.metrics(), step=snapshot.step)

        def state_dict(self) -> dict[str, Any]:
            return self.monitor.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.monitor.load_state_dict(state_dict)

    return _at_home(LightningSymmetryCallback)


@cache
def _trainer_class() -> type[Any]:
    base: Any = _base("transformers", "TrainerCallback", extra="transformers")

    class TrainerSymmetryCallback(base):  # type: ignore[misc]
        """See :func:`trainer_callback`."""

        def __init__(self, monitor: SymmetryMonitor) -> None:
            self.monitor = monitor
            self._loss: float | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            saved = _checkpoint(args, state) / STATE_FILE
            if state.is_world_process_zero and state.global_step > 0 and saved.exists():
                self.monitor.load_state_dict(json.loads(saved.read_text()))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                self.monitor.update(state.global_step, self._loss)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            self._loss = (logs or {}).get("loss", self._loss)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                content = json.dumps(self.monitor.state_dict())
                write_atomically(_checkpoint(args, state) / STATE_FILE, content)

    return _at_home(TrainerSymmetryCallback)


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _at_home(made: type[Any]) -> type[Any]:
    made.__qualname__ = made.__name__  # found again under its own name, as pickle does
    return made


def _base(module: str, name: str, *, extra: str) -> Any:
    try:
        return getattr(import_module(module), name)
    except ImportError as error:
        raise DependencyError(
            f"{module.split('.')[0]} is not installed; pip install 'symdyn-core[{extra}]'"
        ) from error
