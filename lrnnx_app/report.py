"""What a finished training leaves in its run folder beside weights and events."""

import csv
import io
import re
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from lrnnx_app import atomic
from lrnnx_app.errors import RunError
from lrnnx_app.plots import learning_curves
from lrnnx_app.tasks._base import Task
from lrnnx_app.terminal import as_json

METRICS = "metrics.csv"
LONGEST = 60  # letters of a picture's name
EARLIER = "metrics.earlier.csv"  # of the parts of a run before the last resume


def draw(task: Task, folder: Path, step: int) -> None:
    """Write plots/*.png, and the same pictures and the task's sounds to TensorBoard, at the step of the
    weights that they show."""
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    curves = learning_curves(folder / METRICS) if (folder / METRICS).is_file() else None
    if curves is not None:
        curves.savefig(plots / "learning_curves.png", dpi=120)
    with SummaryWriter(str(folder)) as writer:
        for title, figure in task.figures():
            name = plain(title)
            figure.savefig(plots / f"{name}.png", dpi=120)
            writer.add_figure(name, figure, step)
        for title, wave in task.sounds():
            name, _, kind = title.rpartition("/")
            writer.add_audio(
                f"{plain(name)}/{kind}", wave[None].clamp(-1, 1), step, sample_rate=task.spec.sample_rate
            )


def plain(title: str) -> str:
    """A title as a file and a tag of TensorBoard can be called, whatever a user's files are called."""
    return re.sub(r"[^\w.+-]+", "_", title)[:LONGEST]


def write_whole(path: Path, text: str) -> None:
    """Write a file in one move.

    Raises:
        RunError: the disk is full or refuses; whatever stood at `path` is as it was.
    """
    try:
        atomic.write(path, text)
    except OSError as error:
        raise RunError(f"{path}: not written ({error.strerror}); what stood there is as it was") from error


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write summary.json in one move; a metric that is not finite is null."""
    write_whole(folder / "summary.json", as_json(summary, 2) + "\n")


def read_metrics(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv so far, those of the run's earlier parts first."""
    rows: list[dict[str, str]] = []
    for path in (folder / EARLIER, folder / METRICS):
        if path.is_file():
            try:
                with path.open(newline="", encoding="utf-8") as file:
                    part = [row for row in csv.DictReader(file) if _whole(row)]
            except (UnicodeDecodeError, csv.Error) as error:
                raise RunError(f"{path}: not readable as csv ({error}); restore or remove it") from error
            start = min((int(row["step"]) for row in part), default=0)
            rows = [row for row in rows if int(row["step"]) < start or not part] + part
    return rows


def carry_metrics(folder: Path, steps: int) -> None:
    """Set the rows of the first `steps` steps aside, before a resumed run's logger begins the file anew."""
    rows = [row for row in read_metrics(folder) if int(row["step"]) < steps]
    write_whole(folder / EARLIER, _table(rows))
    (folder / METRICS).unlink(missing_ok=True)


def keep_metrics(folder: Path) -> None:
    """Put what was set aside back into metrics.csv."""
    rows = read_metrics(folder)
    if rows:
        write_whole(folder / METRICS, _table(rows))
    (folder / EARLIER).unlink(missing_ok=True)


def _whole(row: dict[str, str]) -> bool:
    """Whether a row was not cut short by a kill, and holds numbers."""
    if None in row or None in row.values() or not re.fullmatch(r"[0-9]{1,18}", row.get("step", "")):
        return False
    try:
        return all(not value or isinstance(float(value), float) for value in row.values())
    except ValueError:
        return False


def _table(rows: list[dict[str, str]]) -> str:
    fields = sorted({key for row in rows for key in row}, key=lambda key: (key not in ("epoch", "step"), key))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
