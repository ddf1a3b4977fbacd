"""`lrnnx import`."""

from pathlib import Path
from typing import Annotated

import typer

from lrnnx_app.console.terminal import say


def import_(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="config.json, weights and tokenizer.json.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Run folder to make.")],
) -> None:
    """Make a run of a published language model: Mamba, FalconMamba or RecurrentGemma, as the hub has them."""
    from lrnnx_app.published.imports import import_folder

    say(*import_folder(folder, out))
