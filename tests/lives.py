"""Trainings that end before their end, in processes of their own, and what is compared of them."""

import csv
import subprocess
import sys
import time
from pathlib import Path

import torch

from lrnnx_app.runs import checkpoint_file
from lrnnx_app.runs.checkpoint_file import read_checkpoint


def digits(epochs: int) -> list[str]:
    """A short training with noise and dropout, four steps in an epoch, each with a checkpoint."""
    return [
        "digits_lru",
        f"trainer.max_epochs={epochs}",
        "trainer.checkpoint_every=1",
        "trainer.log_every=1",
        "trainer.accelerator=cpu",
        "data.batch_size=324",
        "data.workers=1",
        "data.noise=0.1",
        "model.d_model=8",
        "model.depth=1",
        "model.dropout=0.2",
    ]


def started(*words: object) -> subprocess.Popen[str]:
    """`lrnnx train` with these words, in a process group of its own."""
    command = [sys.executable, "-m", "lrnnx_app.cli", "train", *map(str, words)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    )


def wait_for_progress(run: Path, process: subprocess.Popen[str], seen: int) -> None:
    """Until a checkpoint beyond step `seen` is there, or the process has ended."""
    while process.poll() is None and latest(run) <= seen:
        time.sleep(0.002)


def latest(run: Path) -> int:
    """The step of a run's newest checkpoint, 0 if there is none."""
    return max(map(checkpoint_file.step_of, (run / "checkpoints").glob("step_*.ckpt")), default=0)


def rows(run: Path) -> list[dict[str, str]]:
    """metrics.csv without what depends on the clock."""
    with (run / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "samples_per_second"} for row in csv.DictReader(file)]


def same(run: Path, other: Path) -> None:
    """Equal weights, optimizer states and schedules bit for bit, the same best weights, the same metrics."""
    for name in ("last", "best"):
        one, two = (read_checkpoint(path / "checkpoints" / f"{name}.ckpt") for path in (run, other))
        assert one["global_step"] == two["global_step"]
        assert one["state_dict"].keys() == two["state_dict"].keys()
        for key, value in one["state_dict"].items():
            assert torch.equal(value, two["state_dict"][key]), key
        states = [end["optimizer_states"][0]["state"] for end in (one, two)]
        for index, state in states[0].items():
            assert all(torch.equal(value, states[1][index][key]) for key, value in state.items())
        assert one["lr_schedulers"] == two["lr_schedulers"]
    assert rows(run) == rows(other)
