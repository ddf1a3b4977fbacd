"""Training that survives: SIGTERM, Ctrl-C, damaged files, a full disk, losses that are no numbers."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lrnnx_app import recipe
from lrnnx_app.data.module import AddressSampler
from lrnnx_app.errors import STOPPED, Interrupted, RunError, TrainingError
from lrnnx_app.runs import checkpoint_file, sealed
from lrnnx_app.runs.checkpoint_file import read_checkpoint
from lrnnx_app.spec import Batch
from lrnnx_app.tasks.classify import Classify
from lrnnx_app.train import fit
from tests.helpers import cut, digits, latest, rows, same, started, trained

WORDS = digits(4)
STEPS = 16


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    return trained(folder, "uninterrupted_4", WORDS)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_saves_and_says_how_to_go_on(
    number: signal.Signals, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = started(*WORDS, "trainer.checkpoint_every=1000", "-o", run)
    assert process.stderr.readline().startswith("training 4,")
    assert process.stderr.readline().startswith("epoch 0, step 4: ")
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == STOPPED, error
    assert f"lrnnx train --resume {run}" in error.splitlines()[-1]
    assert 0 < latest(run) < STEPS
    process = started("--resume", run)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    same(run, whole)


def test_a_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    code = (
        "import os, signal, time\nfrom lrnnx_app.console.interrupts import Interrupts\n"
        "with Interrupts():\n    for pause in (0.1, 1, 60):\n        os.kill(os.getpid(), signal.SIGINT)\n"
        "        print('goes on', flush=True)\n        time.sleep(pause)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.returncode == 130
    assert done.stderr.count("once more") == 1
    assert done.stdout.count("goes on") == 2  # what comes at once is one request


SHORT = ["trainer.max_epochs=2", "data.workers=0", "model.dropout=0"]


@pytest.mark.parametrize(
    "length", [("trainer.max_epochs=4",), ("trainer.max_steps=14", "trainer.max_epochs=-1")], ids=str
)
def test_cut_at_and_after_the_ends_of_epochs(length: tuple[str, ...], tmp_path: Path) -> None:
    config = recipe.load(WORDS[0], [*WORDS[1:], "data.workers=0", *length])
    whole, run = tmp_path / "whole", tmp_path / "run"
    fit.train(config, whole)
    for step in (4, 5, 8, 12):
        cut(config, run, step)
        assert latest(run) == step
    fit.train(config, resume=run)
    same(run, whole)


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A run that ended after step 7, with checkpoints of steps 5, 6 and 7."""
    run = tmp_path / "run"
    cut(recipe.load(WORDS[0], [*WORDS[1:], *SHORT]), run, 7)
    assert [checkpoint_file.step_of(p) for p in checkpoint_file.candidates(run / "checkpoints")] == [7, 6, 5]
    return run


def test_damaged_newest_file_costs_the_steps_since_the_one_before(lrnnx, stopped: Path) -> None:
    path = stopped / "checkpoints" / "step_00000007.ckpt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    result = lrnnx("train", "--resume", stopped).done()
    assert "step_00000007.ckpt: damaged" in result.error
    assert "going on from step_00000006.ckpt" in result.error
    assert read_checkpoint(stopped / "checkpoints" / "last.ckpt")["global_step"] == 8
    steps = [row["step"] for row in rows(stopped) if row["train/loss"]]
    assert steps == [str(step) for step in range(8)]


def test_killed_before_the_end_was_named_last(lrnnx, tmp_path: Path) -> None:
    run = tmp_path / "run"
    lrnnx("train", *WORDS, *SHORT, "-o", run).done()
    last = run / "checkpoints" / "last.ckpt"
    for older in (None, run / "checkpoints" / "step_00000007.ckpt"):
        last.unlink()
        if older is not None:
            last.hardlink_to(older)
        lrnnx("train", "--resume", run).done()
        assert read_checkpoint(last)["global_step"] == 8


@pytest.mark.parametrize("copied", [False, True])
def test_killed_before_the_newest_was_named_last(lrnnx, stopped: Path, copied: bool) -> None:
    last, older = (stopped / "checkpoints" / name for name in ("last.ckpt", "step_00000006.ckpt"))
    last.unlink()
    if copied:
        shutil.copy2(older, last)
    else:
        last.hardlink_to(older)
    result = lrnnx("train", "--resume", stopped).done()
    assert "resuming from step 7" in result.error


def test_every_file_damaged_is_an_error(lrnnx, stopped: Path) -> None:
    for path in checkpoint_file.candidates(stopped / "checkpoints"):
        path.write_bytes(path.read_bytes()[:-100])
    lrnnx("train", "--resume", stopped).refuses("no checkpoint in it is good")


@pytest.mark.parametrize("reason", ["No space left on device", "Permission denied"])
def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(
    reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    sealed.write({"x": torch.ones(3)}, path)

    def full(_: int) -> None:
        raise OSError(28, reason)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=reason):
        sealed.write({"x": torch.zeros(3)}, path)
    sealed.verify(path)
    assert torch.equal(torch.load(path, weights_only=True)["x"], torch.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_full_disk_is_named_as_such(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys, torch\nfrom pathlib import Path\n"
        "from lrnnx_app.runs import sealed\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "sealed.write({'x': torch.ones(10000)}, Path(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "last.ckpt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert "last.ckpt: not written (File too large)" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_steps_without_finite_numbers_are_skipped_counted_and_end_the_training(
    lrnnx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Classify.training_step
    poisoned: set[int] = {1, 2, 5}
    weights: dict[int, list[torch.Tensor]] = {}

    def poisonous(self: Classify, batch: Batch, batch_idx: int) -> torch.Tensor:
        weights[self.global_step] = [p.detach().clone() for p in self.parameters()]
        loss = step(self, batch, batch_idx)
        return loss * float("nan") if self.global_step in poisoned else loss

    monkeypatch.setattr(Classify, "training_step", poisonous)
    words = [*WORDS[1:], *SHORT, "trainer.max_skipped=3"]
    run, summary = fit.train(recipe.load(WORDS[0], words), tmp_path / "run")
    assert summary["steps"] == 8
    assert summary["skipped_steps"] == 3
    counts = {row["step"]: float(row["skipped_steps"]) for row in rows(run) if row["skipped_steps"]}
    assert counts == {"1": 1, "2": 2, "3": 2, "4": 2, "5": 3, "6": 3, "7": 3}
    same_after = {k: all(map(torch.equal, weights[k], weights[k + 1])) for k in range(7)}
    assert same_after == {k: k in poisoned for k in range(7)}

    poisoned |= set(range(3, 8))
    with pytest.raises(TrainingError, match=r"step 3: 3 steps in a row .*recurren|step 3: 3 steps in a row"):
        fit.train(recipe.load(WORDS[0], words), tmp_path / "other")
    report = json.loads((tmp_path / "other" / "trouble.json").read_text())
    assert report["step"] == 3
    assert len(report["batch"]) == 324
    assert set(report["gradient_norms"].values()) == {"nan"}


def test_the_sampler_begins_inside_an_epoch() -> None:
    sampler = AddressSampler(10, 3, shuffle=True)
    sampler.set_epoch(2)
    second = list(sampler)
    sampler.resume(2, 4)
    assert list(sampler) == second[4:]
    sampler.set_epoch(3)
    assert len(list(sampler)) == 10


def test_interrupted_names_the_command() -> None:
    assert str(Interrupted(Path("runs/a"), 7)).endswith("lrnnx train --resume runs/a")
