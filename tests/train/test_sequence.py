"""Sequences that are split in time over processes: losses and gradients are those of one process."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import multiprocessing

from lrnnx_app.train import fit
from tests.train import sequence

STEPS = ("trainer.max_steps=3", "trainer.log_every=1", "trainer.accelerator=cpu", "trainer.precision=64-true")
CASES = {
    "text_hybrid": (
        *("model.name=language", "model.depth=2", "model.d_model=16", "data.length=37", "data.batch_size=4"),
        *("data.pack=true", "data.tokenizer=ids:300", "data.root=numbers", "data.examples_per_epoch=40"),
    ),
    "digits_s5": ("model.d_model=8", "model.depth=2", "model.bidirectional=true", "model.dropout=0"),
    "events_event_ssm_mini": (
        *(
            "model.name=backbone",
            "model.pool=last",
            "model.d_model=8",
            "model.dropout=0",
            "data.batch_size=4",
        ),
    ),
}


def test_layers_of_every_kind(tmp_path):
    multiprocessing.spawn(sequence.checked, (str(tmp_path),), sequence.PROCESSES)
    assert (tmp_path / "found").read_text() == ""


@pytest.fixture
def numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the trainings run, with documents of several lengths."""
    for split in ("train", "valid", "test"):
        (tmp_path / "numbers" / split).mkdir(parents=True)
        for length in (9, 20, 51, 80):
            text = " ".join(str(length * i % 300) for i in range(length))
            (tmp_path / "numbers" / split / f"{length}.txt").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def losses(run: Path) -> list[float]:
    """The loss of each step of a training."""
    rows = csv.DictReader((run / "metrics.csv").read_text().splitlines())
    return [float(row["train/loss"]) for row in rows if row["train/loss"]]


def trained(recipe: str, folder: Path, *more: str) -> tuple[list[float], list[float]]:
    """The losses of one process, and of two that share each sequence, with `more` settings."""
    words = (recipe, *STEPS, *CASES[recipe], *(word for word in more if "accelerator" in word))
    fit.train_recipe(*words, out=folder / "one")
    shared = ("trainer.devices=2", "trainer.sequence_parallel=2", *more, "-o", "two")
    command = [sys.executable, "-m", "lrnnx_app", "train", *words, *shared]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, two = losses(folder / "one"), losses(folder / "two")
    assert len(one) == 3
    return one, two


@pytest.mark.parametrize("recipe", CASES)
def test_two_processes_train_as_one(recipe, numbers):
    one, two = trained(recipe, numbers, *(["trainer.recompute=true"] if recipe == "digits_s5" else []))
    assert two == pytest.approx(one, rel=1e-12 if recipe == "text_hybrid" else 1e-6)  # classify: in float32


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("recipe", CASES)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("recompute", ["false", "true"])
def test_two_gpus_train_as_one(recipe, strategy, recompute, numbers):
    """By NCCL, and with checkpoints in shards."""
    more = ("accelerator=gpu", f"strategy={strategy}", f"recompute={recompute}", "checkpoints=sharded")
    one, two = trained(recipe, numbers, *(f"trainer.{word}" for word in more))
    assert two == pytest.approx(one, rel=1e-10 if recipe == "text_hybrid" else 1e-5)


@pytest.mark.parametrize(
    ("words", "said"),
    {
        ("trainer.devices=2", "trainer.sequence_parallel=3"): "expected a divisor of",
        ("denoise_lru",): "model unet takes sequences whole; expected backbone, language",
        ("digits_s5", "data.pack=true"): "a pool of packed rows takes them whole",
        ("trainer.compile=true",): "expected trainer.compile to be off",
    }.items(),
)
def test_what_cannot_be_split_is_refused(words, said, lrnnx):
    named = [] if "=" not in words[0] else ["text_rglru_mini"]
    shared = ["trainer.devices=2", "trainer.sequence_parallel=2", "trainer.accelerator=cpu"]
    lrnnx("train", *(named or words[:1]), *shared, *words[not named :], "--dry-run").refuses(said)
