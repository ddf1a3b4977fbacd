"""Inference for runs that predict the next step: says how well they predict files."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lrnnx_app.console import terminal
from lrnnx_app.console.terminal import as_json
from lrnnx_app.errors import StreamError
from lrnnx_app.infer.generation import piece
from lrnnx_app.models._base import Model
from lrnnx_app.runs.run import Run, build_data
from lrnnx_app.spec import Batch
from lrnnx_app.tasks._base import Task


@torch.inference_mode()
def score_files(run: Run, task: Task, inputs: Sequence[Path], to_json: bool) -> None:
    """Print how well the run predicts each file: in bits per byte for text, by squared error for a signal.

    Raises:
        DataError: the run's data module cannot read a file.
    """
    data = build_data(run.recipe)
    for path in inputs:
        x, y, dt, _ = data.read(path)
        if not task.spec.tokens:
            x, y = x[:-1], x[1:]
        errors = {task.unit: _mean_error(task, x, y, dt)}
        if data.token_bytes is not None:
            errors["bits_per_byte"] = errors[task.unit] * len(y) / int(data.token_bytes[y].sum())
        shown = ", ".join(f"{error:.4g} {unit}" for unit, error in errors.items())
        found = {"file": str(path), "steps": len(x), **errors}
        terminal.say(as_json(found) if to_json else f"{path}: {len(x):,} steps, {shown}")


def _mean_error(task: Task, x: Tensor, y: Tensor, dt: Tensor | None) -> float:
    """Mean bits or squared error of a step. The file goes through the model in pieces, with its state."""
    total, state = 0.0, None
    for part in _pieces(task.model, len(x)):
        given, wanted = x[None, part], y[None, part]
        if task.spec.tokens:
            given, wanted = given.long(), wanted.long()
        batch = Batch(given, wanted, dt=None if dt is None else dt[None, part])
        output, state = task.model(batch.x, state, dt=batch.dt)
        total += float(task.errors_from(output, batch).double().sum())
    return total / len(x)


def _pieces(model: Model, length: int) -> Iterator[slice]:
    """Pieces of a file; the whole file for a model that cannot carry a state."""
    try:
        model.init_state(1)
        size = max(1, piece(model.spec.d_output) // model.hop) * model.hop
    except StreamError:
        size = length
    return (slice(start, start + size) for start in range(0, length, size))
