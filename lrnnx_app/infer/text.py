"""Inference for runs that predict the next step: scores files, and continues a text."""

import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lrnnx_app.console import terminal
from lrnnx_app.console.terminal import as_json
from lrnnx_app.errors import DataError, RunError, StreamError, UserError
from lrnnx_app.infer.report import text
from lrnnx_app.machine import peaks
from lrnnx_app.models._base import Model
from lrnnx_app.runs.run import Run, build_data
from lrnnx_app.spec import Batch
from lrnnx_app.streaming.slots import Timing
from lrnnx_app.streaming.threads import threads
from lrnnx_app.tasks._base import Task

PIECE = 4096  # steps of one pass through the model


@dataclass(frozen=True)
class Sampling:
    """How to continue.

    Attributes:
        temperature: divides the logits; with 0 the likeliest byte is always taken.
        top: draw from so many of the likeliest bytes; 0 for all.
    """

    length: int = 400  # bytes
    temperature: float = 0.8
    top: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.length < 1 or not 0 <= self.temperature < math.inf or self.top < 0:
            raise UserError("--length, --temperature, --top: expected finite numbers of at least 1, 0 and 0")


def continued(run: Run, prompt: bytes, how: Sampling) -> Iterator[int]:
    """The bytes that follow a prompt, one at a time, by the model's recurrent step.

    Raises:
        RunError: the run does not predict tokens.
        UserError: the prompt is empty.
    """
    task = run.task()
    if task.inference != "errors" or not task.spec.tokens:
        raise RunError(
            f"{run.path}: is no model of text; --prompt continues runs of the task predict on text"
        )
    if not prompt:
        raise UserError("--prompt: expected at least one byte to continue")
    return _bytes(task.model, prompt, how)


@torch.inference_mode()
def _bytes(model, prompt: bytes, how: Sampling) -> Iterator[int]:
    generator = torch.Generator().manual_seed(how.seed)
    logits, state = None, None
    for start in range(0, len(prompt), PIECE):
        logits, state = model(torch.tensor([list(prompt[start : start + PIECE])]), state)
    assert logits is not None
    logits = logits[:, -1]
    for _ in range(how.length):
        token = _drawn(logits[0].float(), how, generator)
        yield int(token)
        logits, state = model.step(token[None], state)


def _drawn(logits: Tensor, how: Sampling, generator: torch.Generator) -> Tensor:
    if how.temperature == 0:
        return logits.argmax()
    if how.top:
        least = logits.topk(min(how.top, len(logits))).values[-1]
        logits = logits.where(logits >= least, -torch.inf)
    shares = ((logits - logits.max()).double() / how.temperature).softmax(-1)
    return torch.multinomial(shares, 1, generator=generator)[0]


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
        size = max(1, PIECE // model.hop) * model.hop
    except StreamError:
        size = length
    return (slice(start, start + size) for start in range(0, length, size))


def prompt_bytes(prompt: str) -> bytes:
    """The bytes of the prompt, or of the file if the prompt is @FILE.

    Raises:
        DataError: the file is not readable.
    """
    if not prompt.startswith("@"):
        return os.fsencode(prompt)  # any bytes, as the shell gave them
    try:
        return Path(prompt[1:]).read_bytes()
    except OSError as error:
        raise DataError(f"{prompt[1:]}: not readable ({error.strerror}); expected a text file") from error


def continue_text(run: Run, prompt: bytes, how: Sampling) -> None:
    """Write the prompt and its continuation to standard output byte by byte, the speed to standard error."""
    out, timing = terminal.target(), Timing()
    with threads(1):
        following = continued(run, prompt, how)
        out.write(prompt)
        started = time.perf_counter()
        for token in following:
            out.write(bytes((token,)))
            out.flush()
            now = time.perf_counter()
            timing.chunks.append(now - started)
            started = now
        out.write(b"\n")
        out.flush()
        costs = timing.percentiles() | {"threads": 1} | peaks(torch.device("cpu"))
        terminal.say(text(costs, False), aside=True)
