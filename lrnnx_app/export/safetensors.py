"""Weights as safetensors, with the recipe and the description of the data in the file's header."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lrnnx_app import recipe as recipes
from lrnnx_app.disk.overrides import dotlist
from lrnnx_app.errors import RunError
from lrnnx_app.export._output import Options, accept, refuse, whole
from lrnnx_app.models._base import Model
from lrnnx_app.runs.run import Run, build_task
from lrnnx_app.spec import DataSpec

ENDING = ".safetensors"
STEPS = 4096  # length of the signal on which the written model is compared


def export(run: Run, path: Path, options: Options) -> list[str]:
    """Write the weights; returns lines that describe them.

    Raises:
        RunError: the run has no checkpoint, or `path` cannot be written.
        UserError: an option is for another format.
    """
    refuse(options)
    task = run.task()
    metadata = {"recipe": OmegaConf.to_yaml(run.config), "spec": json.dumps(asdict(task.spec))}
    with whole(path) as part:
        weights = {name: value.contiguous() for name, value in task.model.state_dict().items()}
        save_file(weights, part, metadata)
        accept(path, _difference(task.model, load(part), task.spec), 0.0)
    return [f"{path}: read back, its output equals the run's"]


def load(path: Path) -> Model:
    """The exported model, in evaluation mode.

    Raises:
        RunError: the file is missing, or `export` did not write it.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        spec = DataSpec.read(json.loads(metadata["spec"]))
        given = recipes.tree(recipes.mapping(metadata["recipe"], str(path)), str(path))
        config = recipes.resolve(given, dotlist(()), str(path))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: not a model that lrnnx exported ({type(error).__name__})") from error
    model = build_task(recipes.typed(config), spec).model
    model.load_state_dict(weights)
    return model.eval()


@torch.inference_mode()
def outputs(path: Path, x: Tensor) -> Tensor:
    """The outputs of the written model for a signal x (1, T, …)."""
    return load(path)(x)[0]


@torch.inference_mode()
def _difference(model: Model, other: Model, spec: DataSpec) -> float:
    generator = torch.Generator().manual_seed(0)
    if spec.tokens:
        x = torch.randint(spec.d_input, (1, STEPS), generator=generator)
    else:
        x = torch.randn(1, STEPS, spec.d_input, generator=generator)
    return float((model(x)[0] - other(x)[0]).abs().max())
