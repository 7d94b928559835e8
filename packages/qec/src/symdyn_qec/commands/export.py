"""``symdyn qec export``: a trained network as an ONNX file."""

from pathlib import Path
from typing import Annotated

import typer

from symdyn_core.commands.console import messages, say
from symdyn_core.errors import InputError


def export(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="Folder, or the name of a shipped one, such as bb72.")
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE.onnx", help="Where to write; FILE.onnx.json goes beside.")
    ],
    basis: Annotated[str, typer.Option(help="Of the memory experiment: Z or X.")] = "Z",
    batch: Annotated[int | None, typer.Option(help="Shots per call; any number by default.")] = None,
) -> None:
    """Write a decoder's network for ONNX Runtime, TensorRT and the like.

    It takes detectors and gives log odds of flips; the file beside it says how to read them out.
    """
    from symdyn_qec.checkpoint import Checkpoint
    from symdyn_qec.codes import check_basis
    from symdyn_qec.onnx_export import export_onnx
    from symdyn_qec.shipped import load, shipped

    if out.suffix != ".onnx":
        raise InputError(f"--out must end in .onnx, got {out}")
    found = load(shipped().get(checkpoint, Path(checkpoint)))
    if not isinstance(found, Checkpoint):
        raise InputError(
            f"CHECKPOINT must be of a bicycle code, got {found.name}: graph networks stand on matchings"
        )
    with messages().status("tracing the network; this takes a minute"):
        export_onnx(found, out, check_basis(basis), batch)
    say(f"wrote {out} and {out}.json")
