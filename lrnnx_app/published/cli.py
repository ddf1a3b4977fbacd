"""`lrnnx import`."""

from pathlib import Path
from typing import Annotated

import typer

from lrnnx_app.console.terminal import say
from lrnnx_app.errors import UserError


def import_(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="A published model, or what --format jax wrote; or a file of layers."
        ),
    ],
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[key=value]…", help="Options of a source."),
    ] = None,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Run folder to make; of layers a safetensors file.")
    ] = ...,  # type: ignore[assignment]  (typer's sign of what must be given)
    source: Annotated[
        str | None, typer.Option("--from", help="Read layers of s5, s4 … instead; see lrnnx docs python.")
    ] = None,
) -> None:
    """Make a run of a published language model: Mamba, FalconMamba or RecurrentGemma, as the hub has them.

    Or of a folder that `lrnnx export --format jax` wrote, with the weights that training there left in it.
    With --from, take layers of another implementation: a file that `lrnnx train RECIPE init_from=` reads.
    """
    if source is not None:
        from lrnnx_app.published.layers import import_layers

        return say(*import_layers(folder, source, options or (), out))
    if options:
        raise UserError(f"'{options[0]}': options are those of a source; expected --from with them")
    from lrnnx_app.published.imports import import_folder

    say(*import_folder(folder, out))
