"""A format that lists the shapes of weights."""

from pathlib import Path

from lrnnx_app.errors import RunError
from lrnnx_app.export import Options
from lrnnx_app.runs.run import Run


def export(run: Run, path: Path, options: Options) -> list[str]:
    """Write a line for each weight; returns what to tell.

    Raises:
        RunError: there is no checkpoint, or something stands at `path` already.
    """
    if path.exists():
        raise RunError(f"{path}: is there already; remove it first")
    weights = run.task().model.state_dict()
    path.write_text("".join(f"{name} {tuple(value.shape)}\n" for name, value in weights.items()))
    return [f"{path}: {len(weights)} weights"]
