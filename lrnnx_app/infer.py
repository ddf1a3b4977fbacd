"""A trained run on a user's files."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from lrnnx_app.errors import DataError
from lrnnx_app.run import Run, build_data
from lrnnx_app.streaming.files import Timing, denoise_file
from lrnnx_app.tasks.classify import Classify

Probabilities = list[tuple[str, float]]


def outputs(inputs: Sequence[Path], output: Path | None) -> list[Path]:
    """Where each input's result goes: `output` is a file for one input, a folder for several.

    Raises:
        DataError: the output is missing, or is a file although there are several inputs.
    """
    if output is None:
        raise DataError("-o: expected a file for the result, or a folder for several inputs")
    if len(inputs) == 1 and not output.is_dir():
        return [output]
    if not output.is_dir():
        raise DataError(f"{output}: expected an existing folder, since there are {len(inputs)} inputs")
    return [output / path.name for path in inputs]


def denoise(
    run: Run, inputs: Sequence[Path], output: Path | None, chunk_ms: float | None, offline: bool
) -> Iterator[tuple[Path, Timing, float]]:
    """Denoise files one by one; yields (result, timing, look-ahead in ms).

    Raises:
        UserError: a file, the output or the chunk does not serve; files done before are kept.
    """
    task = run.task()
    rate = task.spec.sample_rate
    chunk = None if chunk_ms is None else round(chunk_ms * rate / 1000)
    for source, target in zip(inputs, outputs(inputs, output), strict=True):
        timing = denoise_file(task.model, rate, source, target, chunk, offline)
        yield target, timing, 1000 * task.model.lookahead / rate


@torch.inference_mode()
def classify(run: Run, inputs: Sequence[Path]) -> Iterator[tuple[Path, Probabilities]]:
    """Classes with their probabilities, likeliest first, file by file.

    Raises:
        DataError: a file is not what the run's data module reads.
    """
    task = run.task()
    data = build_data(run.recipe)
    names = task.spec.classes or tuple(map(str, range(task.spec.d_output)))
    for path in inputs:
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        example = data.read(path)
        logits, _ = task.model(example.x[None], dt=None if example.dt is None else example.dt[None])
        shares = logits[0].softmax(-1).tolist()
        yield path, sorted(zip(names, shares, strict=True), key=lambda pair: -pair[1])


def is_classifier(run: Run) -> bool:
    return run.recipe.task.name == Classify.__name__.lower()
