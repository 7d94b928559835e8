"""What a command looks at: the user's TARGET, or an example trained on the spot."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from symdyn_core.commands.console import messages, progress_bar
from symdyn_core.commands.examples import EXAMPLES
from symdyn_core.errors import InputError
from symdyn_core.files import check_writable

if TYPE_CHECKING:
    from symdyn_core.commands.target import Target


def load_subject(
    target: str | None, example: str | None, seed: int, epochs: int | None
) -> "tuple[Target, str]":
    """Return the model with its loss and data, and what to call it.

    Args:
        target: ``file.py:function`` or ``module:function``; None with an example.
        example: name of an example to train; None with a target.
        seed: trains the example.
        epochs: of the example's training; the example's own if left out.

    Raises:
        InputError: both or neither are given, an unknown example, or epochs that do not go with it.
        TargetError: see :func:`~symdyn_core.commands.target.load_target`.
    """
    if (target is None) == (example is None):
        raise InputError(
            f"expected exactly one of TARGET and --example, got {'both' if target else 'neither'}"
        )
    if target is None:
        return _train(str(example), seed, epochs), f"{example}: {EXAMPLES[str(example)].text}"
    if epochs is not None:
        raise InputError("--epochs belongs to --example; a TARGET comes trained")
    from symdyn_core.commands.target import load_target

    with messages().status(escape(f"loading {target}")):
        return load_target(target), target


def check_page(html: Path | None) -> None:
    """Raise InputError unless a page can be written there; said before the work, not after it."""
    if html is None:
        return
    if html.is_dir():
        raise InputError(f"--html must name a file, got the folder {html}")
    check_writable(html.parent)


def _train(name: str, seed: int, epochs: int | None) -> "Target":
    if name not in EXAMPLES:
        raise InputError(f"unknown example {name!r}; expected one of {', '.join(EXAMPLES)}")
    example = EXAMPLES[name]
    rounds = example.epochs if epochs is None else epochs
    if rounds < 1:
        raise InputError(f"--epochs must be at least 1, got {rounds}")
    from symdyn_core.study.runner import single_threaded

    # One thread: the same network on every machine, and such small matrices gain nothing from more.
    with single_threaded(), progress_bar() as bar:
        task = bar.add_task(f"training {example.text}", total=rounds)
        return example.build(seed, rounds, lambda loss: bar.advance(task))
