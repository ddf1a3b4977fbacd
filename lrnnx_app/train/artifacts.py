"""Pictures and sounds that a finished training leaves in its run folder and in TensorBoard."""

import re
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from lrnnx_app.plots import learning_curves
from lrnnx_app.runs.folder import METRICS, PLOTS
from lrnnx_app.tasks._base import Task

LONGEST = 60  # letters of a picture's name


def draw(task: Task, folder: Path, step: int) -> None:
    """Write plots/*.png. Write the same pictures and the task's sounds to TensorBoard.

    Args:
        task: the trained task.
        folder: the run folder.
        step: the optimizer step of the task's weights, under which TensorBoard shows them.
    """
    plots = folder / PLOTS
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
    """A title as a name that is valid for a file and for a tag of TensorBoard."""
    return re.sub(r"[^\w.+-]+", "_", title)[:LONGEST]
