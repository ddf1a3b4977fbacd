"""Formats that other programs read: one file per format, found by its name; plugins may add to them."""

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lrnnx_app import plugins
from lrnnx_app.errors import UserError, nearest
from lrnnx_app.export._output import Options as Options

ENDINGS = {".safetensors": "safetensors", ".pt2": "torch", ".onnx": "onnx"}


def own() -> list[str]:
    """lrnnx's own formats."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name[0] != "_")


def names() -> list[str]:
    """All formats, those of plugins too."""
    files = (name for name, module in plugins.files().items() if callable(getattr(module, "export", None)))
    return sorted({*own(), *plugins.installed("formats"), *files})


def find(name: str | None, output: Path) -> Callable[..., list[str]]:
    """The function that writes a format, called `name` or else known by the output's ending.

    Raises:
        UserError: there is no such format.
    """
    if name is None and output.suffix not in ENDINGS:
        raise UserError(f"{output}: no format is known by that ending; add --format {'|'.join(names())}")
    name = name or ENDINGS[output.suffix]
    if name not in names():
        raise UserError(f"format: unknown '{name}'; {nearest(name, names())}")
    if name in own():
        module: Any = importlib.import_module(f"{__name__}.{name}")
        return module.export
    if name in plugins.installed("formats"):
        return plugins.imported(plugins.installed("formats")[name])
    return plugins.files()[name].export
