"""Checkpoints in shards: what a kill, a damaged file, a full disk or a foreign pickle does to them."""

import os
import pickle
from pathlib import Path

import pytest
import torch

from lrnnx_app import recipe
from lrnnx_app.errors import RunError
from lrnnx_app.runs import sealed, shards
from lrnnx_app.runs.checkpoint_file import candidates, load, read_checkpoint
from lrnnx_app.train import fit
from tests.helpers import cut, digits, same

WORDS = [*digits(2), "data.workers=0", "model.dropout=0"]
SHARDED = [*WORDS[1:], "trainer.checkpoints=sharded"]


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A run that ended after step 7, with checkpoints of steps 5, 6 and 7 in shards."""
    run = tmp_path / "run"
    cut(recipe.load(WORDS[0], SHARDED), run, 7)
    assert [path.name for path in candidates(run / "checkpoints")] == [
        f"step_0000000{step}.shards" for step in (7, 6, 5)
    ]
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run"
    fit.train(recipe.load(WORDS[0], WORDS[1:]), path)
    return path


def test_power_that_goes_while_one_is_written_costs_that_one_alone(
    stopped: Path, whole: Path, lrnnx, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder has not got its name, and the next start removes it."""
    newest = stopped / "checkpoints" / "step_00000007.shards"
    part = newest.with_name(".step_00000007.part.shards")
    newest.rename(part)
    (part / shards.INDEX).unlink()
    result = lrnnx("train", "--resume", stopped).done()
    assert "resuming from step 6" in result.error
    assert not part.exists()
    same(stopped, whole)


def test_a_damaged_shard_costs_the_steps_since_the_one_before(stopped: Path, whole: Path, lrnnx) -> None:
    path = stopped / "checkpoints" / "step_00000007.shards" / "__0_0.distcp"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    result = lrnnx("train", "--resume", stopped, "trainer.checkpoints=whole").done()
    assert "__0_0.distcp: damaged or missing" in result.error
    assert "going on from step_00000006.shards" in result.error
    same(stopped, whole)
    assert [path.suffix for path in candidates(stopped / "checkpoints")] == [".ckpt"] * 2 + [".shards"]


def test_one_form_becomes_the_other_and_back(stopped: Path, whole: Path, lrnnx) -> None:
    home = stopped / "checkpoints"
    before = load(home / "step_00000007.shards")
    assert lrnnx("checkpoints", stopped, "--to", "whole").done().out.count(" whole ") == 3
    again = load(home / "step_00000007.ckpt")
    assert again.keys() == before.keys()
    assert all(map(torch.equal, again["state_dict"].values(), before["state_dict"].values()))
    assert not list(home.glob("*.shards"))
    assert (home / "last.ckpt").samefile(home / "step_00000007.ckpt")
    assert lrnnx("checkpoints", stopped, "--to", "sharded").done().out.count(" sharded ") == 3
    assert (home / "last.ckpt").samefile(home / "step_00000007.shards")
    lrnnx("train", "--resume", stopped).done()
    same(stopped, whole)
    lrnnx("checkpoints", stopped, "--to", "halves").refuses("--to")


class Harmful:
    def __reduce__(self):
        return os.system, ("touch harmed",)


def test_a_pickle_among_the_shards_runs_nothing(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = stopped / "checkpoints" / "step_00000007.shards"
    (path / shards.METADATA).write_bytes(pickle.dumps(Harmful()))
    index = load(path / shards.INDEX)
    index["files"][shards.METADATA] = shards._digest(path / shards.METADATA)
    sealed.write(index, path / shards.INDEX)
    with pytest.raises(RunError, match="not a checkpoint that lrnnx wrote"):
        read_checkpoint(path)
    assert not (tmp_path / "harmed").exists()


def test_a_full_disk_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, content = tmp_path / "step_00000001.shards", {"state_dict": {"x": torch.ones(3)}, "step": 1}
    shards.finished(shards.begin(content, path), path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    content["state_dict"]["x"].zero_()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left on device"):
        shards.finished(shards.begin(content, path), path)
    assert torch.equal(load(path)["state_dict"]["x"], torch.ones(3))


def test_what_changes_while_it_is_written_is_written_as_it_was(tmp_path: Path) -> None:
    weight, path = torch.ones(1000), tmp_path / "step_00000001.shards"
    begun = shards.begin({"state_dict": {"x": weight}, "loops": [1]}, path)
    weight.zero_()
    shards.finished(begun, path)
    assert torch.equal(load(path)["state_dict"]["x"], torch.ones(1000))
