"""Export formats: one file for each format, found by its name; plugins may add more.

A format's file has a function `export(run, path, options)`, which writes a model and returns lines about it.
lrnnx's own formats also have `ENDING`, the ending of what they write (None if any will do), and
`outputs(path, x)`, the outputs of the written model for a signal.
"""

import importlib
import pkgutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrnnx_app import plugins
from lrnnx_app.errors import UserError, one_of
from lrnnx_app.export._output import Options as Options

if TYPE_CHECKING:
    from lrnnx_app.runs.run import Run


def own() -> list[str]:
    """lrnnx's own formats."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name[0] != "_")


def names() -> list[str]:
    """The names of all formats, also those of plugins."""
    files = (name for name, module in plugins.files().items() if callable(getattr(module, "export", None)))
    return sorted({*own(), *plugins.installed("formats"), *files})


def module(name: str) -> Any:
    """The file of one of lrnnx's own formats.

    Raises:
        UserError: it needs a package that is not installed.
    """
    return importlib.import_module(f"{__name__}.{name}")


def find(name: str | None, output: Path) -> Callable[..., list[str]]:
    """The function that writes format `name`, or if that is None, the format with the output's ending.

    Raises:
        UserError: there is no such format, or it needs a package that is not installed.
    """
    name = one_of("format", name or _by_ending(output), names())
    if name in own():
        return module(name).export
    if name in plugins.installed("formats"):
        return plugins.imported(plugins.installed("formats")[name])
    return plugins.files()[name].export


def export_run(
    run: "Run | str | Path",
    path: str | Path,
    format: str | None = None,
    *,
    chunk: int | None = None,
    timed: bool = False,
    int8: bool = False,
) -> list[str]:
    """Write a run's best model in a format that other programs read, and check what was written.

    Args:
        run: a run folder.
        path: the file or folder to write.
        format: one of `names()`; by the ending of `path` if None.
        chunk: samples of one call of a program; None is the model's hop.
        timed: the program also takes elapsed time dt (B, T), as it does where the data have it.
        int8: store weights in 8 bits.

    Returns:
        Lines that say what was written and how much its outputs differ from the model's.

    Raises:
        UserError: the format is unknown, or needs a package that is not installed, or an option is for
            another format.
        RunError: the run has no checkpoint, or `path` exists or cannot be written.
        StreamError: the model cannot be written as a program that streams.
    """
    from lrnnx_app.runs.run import Run

    path = Path(path)
    run = run if isinstance(run, Run) else Run(run)
    return find(format, path)(run, path, Options(chunk, timed, int8))


def _by_ending(output: Path) -> str:
    for name in own() if output.suffix else ():
        with suppress(UserError):  # a format that is not installed is chosen by its name
            if output.suffix == module(name).ENDING:
                return name
    raise UserError(f"{output}: no format is known by that ending; add --format {'|'.join(names())}")
