"""What comes from outside to a training: signals to all of its processes, killed ones, terminals that go."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lrnnx_app import plots, recipe
from lrnnx_app.console import outputs
from lrnnx_app.data import workers
from lrnnx_app.errors import DataError, GridInterrupted, Interrupted, RunError
from lrnnx_app.runs import checkpoint_file, sealed
from lrnnx_app.runs import folder as run_folder
from lrnnx_app.tasks.classify import Classify
from lrnnx_app.train import fit, grid, progress
from tests.helpers import TINY, children, in_step, refused

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
WORDS = [*TINY, "data.workers=2", "trainer.max_epochs=2"]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds its children in /proc")
def test_signals_to_all_processes_end_with_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def group() -> None:
        assert children(os.getpid())
        for number in (signal.SIGTERM, signal.SIGINT):
            for child in children(os.getpid()):
                os.kill(child, number)
            os.kill(os.getpid(), number)
        time.sleep(0.3)  # those that such a signal ends are gone by now

    in_step(Classify, 0, group, monkeypatch)
    run = tmp_path / "run"
    with pytest.raises(Interrupted, match="after step 1"):
        fit.train(recipe.load("digits_lru", WORDS), run)
    assert [checkpoint_file.step_of(path) for path in checkpoint_file.candidates(run / "checkpoints")] == [1]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds its children in /proc")
def test_a_killed_process_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill() -> None:
        os.kill(children(os.getpid())[0], signal.SIGKILL)
        time.sleep(0.3)

    in_step(Classify, 1, kill, monkeypatch)
    run = tmp_path / "run"
    with refused(DataError, match=r"data\.workers: .* killed .*memory.*--resume .*run"):
        fit.train(recipe.load("digits_lru", [*WORDS, "trainer.checkpoint_every=1"]), run)
    sealed.verify(run / "checkpoints" / "last.ckpt")
    assert not list(run.rglob("*.part"))


def test_a_killed_process_is_no_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def died(*_: object) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr(torch, "save", died)
    with pytest.raises(DataError, match="pid 7"), workers.told():
        sealed.write({}, tmp_path / "last.ckpt")
    assert not list(tmp_path.iterdir())


def test_what_such_a_process_says_is_said_without_its_traceback() -> None:
    text = (
        "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "x.py", line 1\nlrnnx_app.errors.DataError: a.wav: no audio: expected wav'
    )
    with pytest.raises(DataError, match=r"^a\.wav: no audio: expected wav$"), workers.told():
        raise DataError(text)
    with pytest.raises(RuntimeError, match="else"), workers.told():
        raise RuntimeError("something else")


def test_processes_end_with_the_one_that_trains() -> None:
    code = (
        "import os, sys, torch\nfrom lrnnx_app.data.workers import Loader\n"
        "rows = iter(Loader(list(range(8)), num_workers=1))\nnext(rows)\n"
        "print(rows._workers[0].pid, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    if sys.platform == "linux":
        deadline = time.monotonic() + 3  # torch's own watch takes 5 s
        while (gone := not _runs(int(done.stdout))) is False and time.monotonic() < deadline:
            time.sleep(0.05)
        assert gone


def _runs(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_terminal_that_goes_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(sys, "stdout", None)
        with outputs.lasting():
            for _ in range(2):
                print("nobody reads", file=sys.stderr, flush=True)
                print("nor here", flush=True)
            os.kill(os.getpid(), signal.SIGHUP)
        assert sys.stderr is stream
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


def test_a_training_without_standard_streams_ends_well(tmp_path: Path) -> None:
    words = ["digits_lru", *WORDS, "data.workers=0", "trainer.max_steps=1", "-o", str(tmp_path / "run")]
    command = f'"{sys.executable}" -m lrnnx_app.cli train "$@" >&- 2>&-'
    done = subprocess.run(["bash", "-c", command, "-", *words], timeout=300)
    assert done.returncode == 0
    assert (tmp_path / "run" / "summary.json").is_file()


def test_a_grid_stops_as_its_training_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[int] = []

    def train(words: list[str]) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        return "stopped after step 3 as asked"

    monkeypatch.setattr(grid, "_running", [SimpleNamespace(send_signal=got.append)])
    monkeypatch.setattr(grid, "train_one", train)
    parent, outcomes = grid.run("digits_lru", grid.cells(["seed=1,2"]), tmp_path / "grid")
    with pytest.raises(GridInterrupted, match=f"the same command and --resume {parent}"):
        list(outcomes)
    assert got == [signal.SIGTERM]


def test_a_file_that_cannot_be_written_leaves_the_former_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    text, picture = tmp_path / "summary.json", tmp_path / "plot.png"
    run_folder.write_whole(text, "former")
    plots.save(Figure(), picture)
    drawn = picture.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("write_text", "write_bytes"):
        monkeypatch.setattr(Path, name, full)
    with pytest.raises(RunError, match=r"summary.json: not written .No space"):
        run_folder.write_whole(text, "new")
    with pytest.raises(RunError, match=r"plot.png: .*No space"):
        plots.save(Figure(), picture)
    assert text.read_text() == "former"
    assert picture.read_bytes() == drawn
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plot.png", "summary.json"]


def test_the_bar_shows_at_80_columns() -> None:
    line = progress.Tqdm.format_meter(
        120,
        240,
        61.0,
        ncols=80,
        prefix="Epoch 12",
        postfix="loss=0.512, accuracy=0.831, samples/s=375.0",
        bar_format=progress.FORMAT,
    )
    assert line.startswith("Epoch 12 |█████     | 120/240 01:01<01:01, loss=0.512, accuracy=0.831")
    assert len(line) <= 80


def test_a_log_has_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "EVERY", -1.0)
    words = [*WORDS, "data.workers=0", "trainer.max_epochs=1"]
    fit.train(recipe.load("digits_lru", words), tmp_path / "run")
    said = capfd.readouterr().err.splitlines()
    assert said[0].startswith("training 4,842 parameters on 1 × cpu, to 1 epochs of 2 batches, in ")
    assert said[1].startswith("step 1, batch 1 of 2 of epoch 0, ")
    assert "train/loss" in said[1]
    assert said[3].startswith("epoch 0, step 2: ")
