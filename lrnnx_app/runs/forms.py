"""The checkpoints of a run to resume from: what they are, and those of one form in the other."""

from pathlib import Path
from typing import Any

from lrnnx_app.disk import atomic
from lrnnx_app.errors import one_of
from lrnnx_app.recipe import FORMS
from lrnnx_app.runs.checkpoint_file import candidates, link, load, step_of
from lrnnx_app.runs.folder import CHECKPOINTS, LAST, locked
from lrnnx_app.runs.run import Run
from lrnnx_app.runs.sealed import write


def rows(run: Run) -> list[dict[str, Any]]:
    """Name, step, form and size of each checkpoint, newest first."""
    return [
        {"checkpoint": path.name, "step": step_of(path), "form": form, "MiB": _size(path) / 2**20}
        for path, form in _found(run)
    ]


def convert(run: Run, form: str) -> None:
    """Write the run's checkpoints in this form, in place of those of the other; the best one stays whole.

    Raises:
        RunError: a training writes there, a checkpoint is damaged, or the disk is full.
        RecipeError: there is no such form.
    """
    one_of("--to", form, tuple(FORMS))
    with locked(run.path):
        for path, own in reversed(_found(run)):
            if own == form:
                continue
            target, content = path.with_suffix(FORMS[form]), load(path)
            if form == "sharded":
                from lrnnx_app.runs import shards  # which takes long to import

                shards.finished(shards.begin(content, target), target)
            else:
                write(content, target)
            link(target, run.last)
            atomic.discard(path)


def _found(run: Run) -> list[tuple[Path, str]]:
    """The checkpoints of steps, newest first, and their forms."""
    form = {ending: form for form, ending in FORMS.items()}
    paths = (path for path in candidates(run.path / CHECKPOINTS) if path.name != LAST)
    return [(path, form[path.suffix]) for path in paths]


def _size(path: Path) -> int:
    """Bytes of a file, or of the files in a folder."""
    return sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))
