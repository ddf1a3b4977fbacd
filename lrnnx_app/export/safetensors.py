"""Weights as safetensors, with the recipe and the description of the data in the file's header."""

from pathlib import Path

import torch
from torch import Tensor

from lrnnx_app.disk.atomic import fresh
from lrnnx_app.export._output import Options, accept, refuse
from lrnnx_app.models._base import Model
from lrnnx_app.runs.run import Run
from lrnnx_app.runs.weights_file import ENDING as ENDING
from lrnnx_app.runs.weights_file import write
from lrnnx_app.spec import DataSpec

STEPS = 4096  # length of the signal on which the written model is compared


def export(run: Run, path: Path, options: Options) -> list[str]:
    """Write the weights; returns lines that describe them.

    Raises:
        RunError: the run has no checkpoint, or `path` cannot be written.
        UserError: an option is for another format.
    """
    refuse(options)
    task = run.task()
    with fresh(path) as part:
        write(part, task.model.state_dict(), task.spec, run.config, run.tokenizer())
        accept(path, _difference(task.model, load(part), task.spec), 0.0)
    return [f"{path}: read back, its output equals the run's"]


def load(path: Path) -> Model:
    """The exported model, in evaluation mode.

    Raises:
        RunError: the file is missing, or `export` did not write it.
    """
    return Run(path).task().model


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
