"""`lrnnx import`: a published language model, or a model that was trained on in JAX, becomes a run."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from lrnnx_app import recipe as recipes
from lrnnx_app.data import tokenizer
from lrnnx_app.disk.atomic import fresh
from lrnnx_app.disk.overrides import dotlist
from lrnnx_app.errors import DataError, nearest
from lrnnx_app.models.language import Language
from lrnnx_app.published import _folder, falcon_mamba, mamba, mamba2, recurrent_gemma, state_spaces
from lrnnx_app.published._folder import CONFIG
from lrnnx_app.published._layout import Settings
from lrnnx_app.runs import weights_file
from lrnnx_app.runs.folder import RECIPE, WEIGHTS
from lrnnx_app.runs.run import Run, build_task
from lrnnx_app.spec import DataSpec

KINDS: dict[str, ModuleType] = {  # by model_type, which the authors of Mamba do not write
    "mamba": mamba,
    "mamba2": mamba2,
    "falcon_mamba": falcon_mamba,
    "recurrent_gemma": recurrent_gemma,
}


def import_folder(folder: Path, out: Path) -> list[str]:
    """Make a run: `infer`, `evaluate`, `export` and `init_from` take it.

    Args:
        folder: of a published language model: config.json; model.safetensors, or its shards and their index,
            or pytorch_model.bin; and tokenizer.json if there is one. Without it tokens are bytes, if there
            are 256, or numbers. Or one that `lrnnx export --format jax` wrote, with the weights of now.
        out: the run folder to make.

    Returns:
        Lines that say what was read.

    Raises:
        DataError: a file is missing or damaged, there is no layout for the model, or a tensor is missing, has
            another shape, or is one too many.
        RunError: `out` exists, or cannot be written; or the folder is one of ours, with other weights.
    """
    if (folder / RECIPE).is_file():
        return _home(folder, out)
    source = str(folder / CONFIG)
    values = _folder.config(folder)
    layout = _layout(values, source)
    options = {"name": "language", **layout.settings(Settings(values, source))}
    words = _words(folder)
    with fresh(out, folder=True) as part:
        config = _recipe(folder, options, str(out.absolute() / tokenizer.FILE) if words else "")
        tokens = tokenizer.opened(words or config.data.tokenizer).size
        model = _empty(config, tokens, source)
        weights = layout.LAYOUT.taken(model, _folder.tensors(folder), str(folder))
        weights_file.write(part / WEIGHTS, weights, model.spec, config, words)
        (part / RECIPE).write_text(OmegaConf.to_yaml(config), encoding="utf-8")
        (part / CONFIG).write_text(json.dumps(values, indent=2), encoding="utf-8")
        if words:
            (part / tokenizer.FILE).write_text(words, encoding="utf-8")
    return [
        f"{out}: {layout.LAYOUT.architecture}, {_count(weights):,} parameters, {tokens:,} tokens",
        f"Next: lrnnx infer {out} --prompt TEXT",
    ]


def _home(folder: Path, out: Path) -> list[str]:
    """Make a run of a folder with the recipe beside the weights."""
    run = Run(folder)
    task = run.task()
    with fresh(out, folder=True) as part:
        weights = task.model.state_dict()
        weights_file.write(part / WEIGHTS, weights, task.spec, run.config, run.tokenizer())
        (part / RECIPE).write_text(OmegaConf.to_yaml(run.config), encoding="utf-8")
        if run.tokenizer():
            (part / tokenizer.FILE).write_text(run.tokenizer(), encoding="utf-8")
    return [
        f"{out}: {run.recipe.model.name}, {_count(weights):,} parameters of {folder}",
        f"Next: lrnnx evaluate {out}",
    ]


def _layout(values: dict[str, Any], source: str) -> ModuleType:
    """The layout of a model with this config."""
    kind = values.get("model_type")
    if kind is None and "ssm_cfg" in values:
        return state_spaces
    if kind not in KINDS:
        raise DataError(f"{source}: there is no layout for model_type {kind!a}; {nearest(str(kind), KINDS)}")
    return KINDS[kind]


def _words(folder: Path) -> str:
    """The JSON of the folder's tokenizer; "" if it has none."""
    try:
        return (folder / tokenizer.FILE).read_text("utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{folder / tokenizer.FILE}: not readable ({type(error).__name__})") from error


def _recipe(folder: Path, options: dict[str, Any], words: str) -> DictConfig:
    """A recipe that would build the model, for text."""
    rows = options["vocabulary"]
    plain = tokenizer.BYTES if rows == tokenizer.Tokenizer.size else f"{tokenizer.IDS}{rows}"
    content = {
        "about": f"imported from {folder.name}",
        "task": {"name": "predict"},
        "model": options,
        "data": {"name": "text", "tokenizer": words or plain},
    }
    return recipes.resolve(OmegaConf.create(content), dotlist(()), str(folder / CONFIG), "imported")


def _empty(config: DictConfig, tokens: int, source: str) -> Language:
    """The model without weights."""
    spec = DataSpec(tokens, tokens, tokens=True, target="step")
    try:
        with torch.device("meta"):
            model = build_task(recipes.typed(config), spec).model
    except recipes.RecipeError as error:
        raise DataError(f"{source}: {error}") from error
    assert isinstance(model, Language)
    return model


def _count(weights: dict[str, Tensor]) -> int:
    return sum(value.numel() for value in weights.values())
