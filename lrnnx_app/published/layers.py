"""`lrnnx import --from`: layers of another implementation become those of a model's blocks."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from lrnnx_app.disk.atomic import fresh
from lrnnx_app.errors import DataError, UserError, nearest
from lrnnx_app.interop import converted, key
from lrnnx_app.published import _folder
from lrnnx_app.registry import LAYERS
from lrnnx_app.runs import weights_file


def import_layers(path: Path, source: str, options: Sequence[str], out: Path) -> list[str]:
    """Write the layers in a file of weights for `init_from`: the first is that of block 0, and so on.

    Args:
        path: parameters by the names of the source, after any prefix that ends with a dot or slash: numpy's
            .npz, .safetensors, or a state dict that torch saved.
        source: one of `interop.SOURCES`.
        options: key=value, of the source.
        out: the safetensors file to make. Its tensors have the names of models backbone and language.

    Returns:
        Lines that say what was read.

    Raises:
        DataError: the file is not readable, or has no layer of the source, or one that differs.
        UserError: there is no such source, or no such option.
        RunError: `out` exists, or cannot be written.
    """
    if out.suffix != weights_file.ENDING:
        raise UserError(f"{out}: layers are written to one file; expected a name that ends with .safetensors")
    mark = key(source)
    given = {name.replace("/", "."): value for name, value in _folder.file(path).items()}
    weights: dict[str, Tensor] = {}
    found, said = [], []
    for number, place in enumerate(_places(given, mark, f"{path}: {source}")):
        inside = {name[len(place) :]: value for name, value in given.items() if name.startswith(place)}
        try:
            layer = converted(source, inside, **_values(options))
        except UserError as error:
            raise DataError(f"{path}: {place and f'in {place[:-1]}: '}{error}") from error
        found.append((layer.d_model, layer.layer, asdict(layer.config)))
        said.append(f"block {number}: {layer.layer}, width {layer.d_model}, from {place[:-1] or path.name}")
        weights |= {f"blocks.{number}.layer.{name}": value for name, value in layer.state.items()}
    with fresh(out) as part:
        layers = [{"name": name, **own} for _, name, own in found]
        weights_file.write_layers(part, weights, yaml.safe_dump(layers))
    return [*said, *_next(found, out)]


def _places(given: Mapping[str, Tensor], mark: str, source: str) -> list[str]:
    """What stands before the names of each layer, in the order of their numbers."""
    found = [name.removesuffix(mark) for name in given if f".{name}".endswith(f".{mark}")]
    if not found:
        raise DataError(f"{source} has '{mark}' in every layer, this file has not; {nearest(mark, given)}")
    return sorted(found, key=_order)


def _next(found: list[tuple[int, str, dict[str, Any]]], out: Path) -> Iterator[str]:
    """How a recipe takes the layers, if they are alike."""
    width, name, own = found[0]
    if all(layer == found[0] for layer in found):
        words = [f"model.d_model={width}", f"model.depth={len(found)}", f"model.layer={name}"]
        words += _settings("model.layer", own, asdict(LAYERS[name].Config()))
        yield f"Next: lrnnx train RECIPE init_from={out} {' '.join(words)}"


def _settings(start: str, own: dict[str, Any], usual: dict[str, Any]) -> Iterator[str]:
    """The settings of a layer that differ from its usual ones, as overrides."""
    for name, value in own.items():
        if isinstance(value, dict):
            inner = LAYERS[own["layer"]].Config()
            yield from _settings(f"{start}.{name}", value, asdict(inner))
        elif value != usual.get(name):
            yield f"{start}.{name}={yaml.safe_dump(value).splitlines()[0]}"


def _order(place: str) -> list[Any]:
    """A key that sorts names by the numbers in them."""
    return [int(piece) if piece.isdecimal() else piece for piece in re.split(r"(\d+)", place)]


def _values(options: Sequence[str]) -> dict[str, Any]:
    """The options of a source as numbers, truth values and words."""
    found = {}
    for option in options:
        name, equals, text = option.partition("=")
        if not equals:
            raise UserError(f"'{option}': expected key=value, such as discretization=bilinear")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found
