"""Classification: what is said of a test set against direct counts, in batches and from several processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from torchmetrics.functional.classification import multiclass_calibration_error

from lrnnx_app import recipe
from lrnnx_app.runs.run import Run, build_data, build_task
from lrnnx_app.tasks._reliability import BINS, Reliability
from lrnnx_app.tasks.classify import calibration_error
from lrnnx_app.train.learner import learner


@pytest.fixture(scope="module")
def tested():
    """An untrained classifier tested in batches of 64, the last of 44; its trainer, logits and labels."""
    torch.manual_seed(1)
    opened = recipe.typed(
        recipe.load("digits_lru", ["model.d_model=8", "model.depth=1", "data.batch_size=64"])
    )
    data = build_data(opened)
    task = build_task(opened, data.spec, learner)
    torch.nn.init.normal_(task.model.head.weight, std=3)
    options = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", logger=False, **options)
    trainer.test(task, data.loader("test"), verbose=False)
    task.eval()
    with torch.no_grad():
        batches = [(task._logits(batch), batch.y) for batch in data.loader("test")]
    assert len({len(y) for _, y in batches}) == 2
    logits, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return task, trainer, logits, labels


def test_metrics_are_those_of_the_whole_test_set(tested) -> None:
    task, trainer, logits, labels = tested
    right = (logits.argmax(-1) == labels).double()
    by_class = torch.stack([right[labels == k].mean() for k in range(10)])
    wanted = {
        "accuracy": right.mean(),
        "accuracy_stderr": right.std(correction=0) / len(right) ** 0.5,
        "accuracy_of_classes": by_class.mean(),
        "calibration_error": multiclass_calibration_error(logits.softmax(-1), labels, 10, n_bins=BINS),
        "loss": torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1),
    }
    for key, value in wanted.items():
        assert float(trainer.callback_metrics[f"test/{key}"]) == pytest.approx(float(value), abs=1e-5), key
    told = task.details()["accuracy_by_class"]
    assert list(told.values()) == pytest.approx(by_class.tolist(), abs=1e-5)


def test_pictures_show_mistakes_and_successes(tested) -> None:
    task, _, logits, labels = tested
    names = [name for name, _ in task.figures()]
    assert names == ["confusion_matrix", "reliability", "examples_right", "examples_wrong"]
    for right, kept in task.examples.items():
        rows = [int(example.name) for example, _, _ in kept]
        assert rows == (((logits.argmax(-1) == labels) == right).nonzero()[: len(rows), 0]).tolist()
        assert [int(example.y) for example, _, _ in kept] == labels[rows].tolist()


def test_calibration_in_parts_is_that_of_the_whole() -> None:
    logits, labels = 3 * torch.randn(101, 7), torch.randint(7, (101,))
    one, parts = Reliability(), [Reliability(), Reliability()]
    one.update(logits, labels)
    for part, rows in zip(parts, (slice(0, 64), slice(64, None)), strict=True):
        part.update(logits[rows], labels[rows])
    torch.testing.assert_close(one.compute(), sum(part.compute() for part in parts))
    sure = Reliability()
    sure.update(1e4 * torch.eye(3), torch.tensor([0, 1, 0]))
    assert float(calibration_error(sure.compute())) == pytest.approx(1 / 3)


def test_two_processes_test_as_one(tmp_path: Path) -> None:
    words = ["model.d_model=8", "model.depth=1", "trainer.max_steps=1", "trainer.accelerator=cpu"]
    words += ["trainer.devices=2", "trainer.strategy=ddp", "data.batch_size=64"]
    run = tmp_path / "run"
    command = [sys.executable, "-m", "lrnnx_app.cli", "train", "digits_lru", *words, "-o", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Next: ") == 1
    metrics = json.loads((run / "summary.json").read_text())["metrics"]
    task, data = Run(run).task(), build_data(Run(run).recipe)
    with torch.no_grad():
        batches = [(task._logits(batch), batch.y) for batch in data.loader("test")]
    logits, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert len(labels) == 300
    assert metrics["test/accuracy"] == pytest.approx(float((logits.argmax(-1) == labels).float().mean()))
    loss = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    assert metrics["test/loss"] == pytest.approx(float(loss), rel=1e-5)
