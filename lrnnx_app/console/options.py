"""Arguments and options that several commands share, and the ranges of their numbers."""

import math
from pathlib import Path
from typing import Annotated

import typer

from lrnnx_app.registry import DATA, plug_in, recipes

MOST_SEED = 2**32 - 1  # largest seed that all random generators take
MOST_STEPS = 2**24  # most steps of one chunk
MOST_THREADS = 1024
MOST_SLOTS = 2**16
MOST_CHANNELS = 1024


def positive(value: float | None) -> float | None:
    """The value of an option.

    Raises:
        BadParameter: it is not finite, or not above 0.
    """
    if value is not None and not 0 < value < math.inf:
        raise typer.BadParameter(f"expected a finite number above 0, not {value}")
    return value


def not_negative(value: float) -> float:
    """The value of an option.

    Raises:
        BadParameter: it is not finite, or below 0.
    """
    if not 0 <= value < math.inf:
        raise typer.BadParameter(f"expected a finite number of at least 0, not {value}")
    return value


def _recipes(incomplete: str) -> list[str]:
    """Names of recipes, for completion in a shell."""
    return [name for name in recipes() if name.startswith(incomplete)]


def _data(incomplete: str) -> list[str]:
    """Names of recipes and data modules, for completion in a shell."""
    return [*_recipes(incomplete), *(name for name in DATA if name.startswith(incomplete))]


def _plug_in(paths: list[Path] | None) -> list[Path]:
    """Load plugin files, so that recipes can name the parts that they define."""
    for path in paths or ():
        plug_in(path)
    return list(paths or ())


Recipe = Annotated[
    str | None,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe file, or a shipped one's name; --resume needs none.",
        autocompletion=_recipes,
    ),
]
RecipeName = Annotated[
    str | None, typer.Argument(metavar="[NAME]", help="Show this recipe, resolved.", autocompletion=_recipes)
]
DataName = Annotated[
    str,
    typer.Argument(metavar="NAME", help="A recipe, or a data module's name.", autocompletion=_data),
]
RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run folder, an exported model, or the name of a shipped one.")
]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[key.sub=value]…", help="Overrides.")]
Plugins = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        metavar="FILE.py",
        callback=_plug_in,
        is_eager=True,
        help="A file with a layer, a task …",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; cuda if there is a GPU.")]
