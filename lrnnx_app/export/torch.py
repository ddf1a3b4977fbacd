"""A program of torch.export (.pt2): one chunk as a function of tensors, for any batch size."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrnnx_app.disk.atomic import fresh
from lrnnx_app.errors import RunError
from lrnnx_app.export import _example
from lrnnx_app.export._chunk import TOLERANCE, Chunk, difference, streamed, traced
from lrnnx_app.export._output import Options, accept
from lrnnx_app.runs.run import Run

ENDING = ".pt2"
ABOUT = "lrnnx.json"


def export(run: Run, path: Path, options: Options) -> list[str]:
    """Write the program and a script that runs it; returns lines that describe them.

    Raises:
        RunError: the run has no checkpoint, or `path` cannot be written.
        StreamError: the model cannot stream, or an option does not fit it.
    """
    if path.suffix != ENDING:
        raise RunError(f"{path}: expected a name ending in {ENDING}")
    chunk = Chunk(run.task().model, options.chunk, options.timed or run.timed)
    script = _example.beside(path)
    with fresh(script) as script_part, fresh(path) as part:
        torch.export.save(traced(chunk), part, extra_files={ABOUT: chunk.description()})
        loaded = _read(part)
        with torch.no_grad():
            found = difference(chunk, lambda inputs: loaded(*inputs))
        accept(path, found, TOLERANCE)
        _example.write(script_part, path, "torch", chunk)
    told = f"chunks of {chunk.chunk} samples, any batch; differs from the model by {found:.1g}"
    return [f"{path}: {told}", f"{script} runs it with torch alone"]


@torch.no_grad()
def outputs(path: Path, x: Tensor) -> Tensor:
    """The outputs of the written program for a signal x (1, T, …), chunk by chunk."""
    about = {ABOUT: ""}
    program = _read(path, about)
    return streamed(lambda inputs: program(*inputs), about[ABOUT], x)


def _read(path: Path, about: dict[str, Any] | None = None) -> nn.Module:
    """Load a program, and fill `about` from it. Hides a warning of torch 2.11 about its own buffer."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.export.load(path, extra_files=about).module()
