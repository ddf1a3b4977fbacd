"""Reads a folder in the layout of the Hugging Face hub: config.json, and weights in one file or in shards."""

import json
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lrnnx_app.errors import DataError

CONFIG = "config.json"
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
MOST_BYTES = 1 << 26  # of a file of JSON


def config(folder: Path) -> dict[str, Any]:
    """The content of config.json.

    Raises:
        DataError: there is no such folder or file, or it holds something else.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected one with {CONFIG} and {WHOLE}")
    return _mapping(folder / CONFIG)


def tensors(folder: Path) -> dict[str, Tensor]:
    """The weights by name, from one file or from all shards.

    Raises:
        DataError: there are none, a shard is missing or lacks what the index says, or a file holds more than
            tensors.
    """
    for whole, index, read in ((WHOLE, INDEX, _safe), (PICKLED, PICKLED_INDEX, _pickled)):
        if (folder / whole).is_file():
            return read(folder / whole)
        if (folder / index).is_file():
            return _sharded(folder, folder / index, read)
    raise DataError(f"{folder}: no weights in it; expected {WHOLE}, or {INDEX} and its shards")


def file(path: Path) -> dict[str, Tensor]:
    """The tensors by name in one file: .safetensors, numpy's .npz, or what torch has saved.

    Raises:
        DataError: there is none, it is damaged, or it holds more than tensors.
    """
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; expected weights in .npz or .safetensors, or as torch saves them"
        )
    if path.suffix == ".npz":
        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays}
        except (OSError, ValueError, TypeError, EOFError, BadZipFile) as error:
            raise DataError(f"{path}: not readable as arrays of numbers ({type(error).__name__})") from error
    return (_safe if path.suffix == ".safetensors" else _pickled)(path)


def _sharded(folder: Path, index: Path, read: Any) -> dict[str, Tensor]:
    places = _mapping(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise DataError(f"{index}: expected a weight_map from names of tensors to names of files")
    found: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise DataError(f"{index}: names the file {name!a}; expected a file of this folder")
        found |= read(folder / name)
    for name, file in places.items():
        if name not in found:
            raise DataError(f"{folder / file}: no tensor {name!a} in it, which {index.name} names")
    return found


def _safe(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: not readable as safetensors ({type(error).__name__})") from error


def _pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a .bin, read so that nothing in it can run."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of torch, about the pickle's protocol
            content = torch.load(path, "cpu", weights_only=True)
    except (OSError, RuntimeError, UnpicklingError, EOFError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path}: a pickle of more than tensors, or damaged; expected weights as safetensors"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):  # as Lightning has them
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise DataError(f"{path}: expected a mapping from names to tensors")
    return content


def _mapping(path: Path) -> dict[str, Any]:
    """The object in a file of JSON."""
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise ValueError(f"longer than {MOST_BYTES} bytes")
        content = json.loads(text)
    except OSError as error:
        raise DataError(f"{path}: not readable ({error.strerror}); expected a model's {path.name}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected an object of names and values")
    return content
