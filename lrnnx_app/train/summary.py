"""The content of summary.json, which a finished training writes."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning import Trainer

from lrnnx_app import __version__, plugins
from lrnnx_app.recipe import Recipe
from lrnnx_app.tasks._base import Task
from lrnnx_app.train import begin
from lrnnx_app.train.totals import Totals

RECORDED = ("torch", "torchaudio", "lightning", "torchmetrics")


def summary(recipe: Recipe, task: Task, trainer: Trainer, skipped: int, totals: Totals) -> dict[str, Any]:
    """Metrics, size, steps, time (s), speed (samples/s), peak memory and versions of a finished training.

    Steps, seconds, speed and memory cover all parts of a run that was resumed.
    """
    rates = {name: float(rate) for name, rate in totals.rates().items()}
    return {
        "recipe": recipe.name,
        "metrics": {
            key: float(value) for key, value in sorted(trainer.callback_metrics.items()) if "/" in key
        },
        **task.details(),
        "parameters": sum(p.numel() for p in task.parameters()),
        "trained_parameters": begin.trained(task),
        "steps": trainer.global_step,
        "skipped_steps": skipped,
        "seconds": round(totals.seconds, 2),
        "samples_per_second_per_device": round(rates["samples_per_second"] / trainer.world_size, 2),
        **{name: round(rate, 4 if "utilization" in name else 2) for name, rate in rates.items()},
        **totals.memory,
        "devices": trainer.world_size,
        "strategy": recipe.trainer.strategy,
        "seed": recipe.seed,
        "versions": {
            "lrnnx": __version__,
            "python": sys.version.split()[0],
            **{name: version(name) for name in RECORDED},
        },
        **({"plugins": plugins.marks(recipe.plugins)} if recipe.plugins else {}),
        "device": str(trainer.strategy.root_device),
        "git": _commit(),
    }


def _commit() -> str | None:
    """The checkout's commit, with "+" if it has changes; None for an installed package."""
    here = Path(__file__).parents[2]
    if not (here / ".git").exists():
        return None
    try:

        def git(*words: str) -> str:
            return subprocess.run(
                ("git", "-C", str(here), *words), capture_output=True, text=True, check=True
            ).stdout.strip()

        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
