"""What a finished training leaves in its run folder beside weights and events."""

import csv
import json
import os
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from lrnnx_app.plots import learning_curves
from lrnnx_app.tasks._base import Task

METRICS = "metrics.csv"


def draw(task: Task, folder: Path) -> None:
    """Write plots/*.png, and the same pictures and the task's sounds to TensorBoard."""
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    curves = learning_curves(folder / METRICS) if (folder / METRICS).is_file() else None
    if curves is not None:
        curves.savefig(plots / "learning_curves.png", dpi=120)
    with SummaryWriter(str(folder)) as writer:
        for name, figure in task.figures():
            figure.savefig(plots / f"{name}.png", dpi=120)
            writer.add_figure(name, figure)
        for name, wave in task.sounds():
            writer.add_audio(name, wave[None].clamp(-1, 1), sample_rate=task.spec.sample_rate)


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write summary.json in one move."""
    part = folder / "summary.json.part"
    part.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    os.replace(part, folder / "summary.json")


def read_metrics(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv so far."""
    path = folder / METRICS
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def keep_metrics(folder: Path, before: list[dict[str, str]]) -> None:
    """Put the rows of an earlier part of the run, up to where this part began, before its own."""
    rows = read_metrics(folder)
    if not before or not rows:
        return
    start = min(int(row["step"]) for row in rows)
    rows = [row for row in before if int(row["step"]) < start] + rows
    fields = sorted({key for row in rows for key in row}, key=lambda key: (key not in ("epoch", "step"), key))
    with (folder / METRICS).open("w", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(rows)
