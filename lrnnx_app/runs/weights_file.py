"""A trained model in one file: safetensors, with its recipe and the description of its data in the header."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lrnnx_app import recipe as recipes
from lrnnx_app.errors import RunError
from lrnnx_app.spec import DataSpec

ENDING = ".safetensors"
PART = "layers"  # in the header of a file that has layers alone


class Written(NamedTuple):
    """The content of a file: its recipe as written, the data's description, the model's weights, and the
    JSON of its tokenizer or ""."""

    recipe: Any
    spec: DataSpec
    weights: dict[str, Tensor]
    tokenizer: str = ""


def write(
    path: Path, weights: Mapping[str, Tensor], spec: DataSpec, recipe: DictConfig, tokenizer: str = ""
) -> None:
    """Write a model's weights, its spec and recipe, and the JSON of its tokenizer if it has one."""
    weights = {name: value.contiguous() for name, value in weights.items()}
    metadata = {"recipe": OmegaConf.to_yaml(recipe), "spec": json.dumps(asdict(spec))}
    if tokenizer:
        metadata["tokenizer"] = tokenizer
    save_file(weights, path, metadata)


def write_layers(path: Path, weights: Mapping[str, Tensor], layers: str) -> None:
    """Write weights of a model's layers alone, and in YAML the layers that they are of."""
    save_file({name: value.contiguous() for name, value in weights.items()}, path, {PART: layers})


def read_layers(path: Path) -> dict[str, Tensor] | None:
    """The weights that `write_layers` wrote; None if the file is another."""
    try:
        with safe_open(path, "pt") as file:
            if PART in (file.metadata() or {}):
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError):
        pass
    return None


def read(path: Path) -> Written:
    """Read what `write` wrote.

    Raises:
        RunError: the file is missing, or another program wrote it.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        spec = DataSpec.read(json.loads(metadata["spec"]))
        recipe = recipes.tree(recipes.mapping(metadata["recipe"], str(path)), str(path))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: not a model that lrnnx exported ({type(error).__name__})") from error
    return Written(recipe, spec, weights, metadata.get("tokenizer", ""))
