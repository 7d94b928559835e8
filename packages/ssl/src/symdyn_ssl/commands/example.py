"""``symdyn ssl example``: a first file of positive pairs."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from symdyn_core.commands.console import say


class Example(StrEnum):
    """Data sets that need no download."""

    DIGITS = "digits"


def example(
    name: Annotated[
        Example, typer.Argument(help="Which data: handwritten digits, 8x8 pixels.")
    ] = Example.DIGITS,
    out: Annotated[Path, typer.Option(help="The .npz file to write.")] = Path("views.npz"),
    pairs: Annotated[int, typer.Option(help="Number of positive pairs, 2 to 1797.")] = 500,
    shift: Annotated[int, typer.Option(help="Augmentation: largest roll in pixels.")] = 1,
    gain: Annotated[float, typer.Option(help="Augmentation: largest relative change of brightness.")] = 0.2,
    noise: Annotated[float, typer.Option(help="Augmentation: standard deviation of the pixel noise.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Moves all random numbers.")] = 0,
) -> None:
    """Write two augmented views of handwritten digits to a file that `symdyn ssl predict` reads."""
    from symdyn_ssl.augment import digit_pairs
    from symdyn_ssl.pairs import save_pairs

    x, x_prime = digit_pairs(pairs, seed, shift=shift, gain=gain, noise=noise)
    written = save_pairs(out, x, x_prime)
    say(f"wrote {written}: x and x_prime, {len(x)} pairs of {name.value}, {x.shape[1]} features")
