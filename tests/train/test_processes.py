"""Training in two processes: what one process does with the doubled batch, and the loss of either of them."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_leaves

from lrnnx_app import recipe
from lrnnx_app.data.module import Address, AddressSampler
from lrnnx_app.disk import atomic
from lrnnx_app.errors import STOPPED, DataError, RecipeError
from lrnnx_app.runs import checkpoint_file, forms
from lrnnx_app.runs.checkpoint_file import read_checkpoint
from lrnnx_app.runs.run import Run, build
from lrnnx_app.train import fit
from tests.helpers import DENOISE, children, latest, started, wait_for_progress

STEPS = 6
ROUNDING = 1e-5  # of weights that move by 1e-2, and as far away with half of the data
BASE = [
    f"trainer.max_steps={STEPS}",
    "trainer.checkpoint_every=1",
    f"trainer.keep={STEPS}",
    "trainer.log_every=1",
    "trainer.accelerator=cpu",
    "model.d_model=8",
    "model.depth=2",
    "model.dropout=0",
    "model.bidirectional=false",
]
ONE = [*BASE, "data.batch_size=100"]
TWO = [*BASE, "data.batch_size=50", "trainer.devices=2"]
LAYERS = ("lru", "s6", "gru")
TEXT = [
    *(word for word in BASE if "bidirectional" not in word),
    "model.name=language",
    "data.length=16",
    "data.examples_per_epoch=400",
]
FREEZE = "freeze=[encoder.*,blocks.0.*]"


def cut(run: Path, to: Path, step: int) -> Path:
    """A copy of a run as it was when the checkpoint of that step was its newest."""
    shutil.copytree(run, to, symlinks=True)
    for path in (to / "checkpoints").iterdir():
        if not path.name.startswith("step_") or checkpoint_file.step_of(path) > step:
            atomic.discard(path)
    (to / "summary.json").unlink()
    return to


def weights(run: Path) -> dict[str, torch.Tensor]:
    content = read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert content["global_step"] == STEPS
    return content["state_dict"]


def distance(run: Path, other: Path) -> float:
    """The largest difference of any weight."""
    ours, theirs = weights(run), weights(other)
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Path]:
    runs = {}
    for layer in LAYERS:
        runs[layer] = folder / f"alone_{layer}"
        fit.train(recipe.load(f"digits_{layer}", ONE), runs[layer])
    runs["frozen"] = folder / "alone_frozen"
    fit.train(recipe.load("digits_gru", [*ONE, FREEZE]), runs["frozen"])
    runs["text"] = folder / "alone_text"
    fit.train(recipe.load("text_rglru_mini", [*TEXT, "data.batch_size=40"]), runs["text"])
    return runs


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Its exit code, within a minute, and the last lines that it said."""
    _, error = process.communicate(timeout=60)
    assert "Traceback" not in error
    return process.returncode, error.replace("\r", "\n").splitlines()


@pytest.fixture(scope="module")
def survivor(folder: Path) -> Path:
    """A run that has been asked to stop, has lost its second process, and then its first."""
    run = folder / "survivor"
    process = started("digits_lru", *TWO, "-o", run)
    wait_for_progress(run, process, 0)
    process.send_signal(signal.SIGTERM)
    code, said = ended(process)
    assert code == STOPPED
    assert said[-1].endswith(f"lrnnx train --resume {run}")
    assert sum("stop" in line for line in said) == 2  # as noted, and as done

    process = started("--resume", run)
    wait_for_progress(run, process, latest(run))
    os.kill(children(process.pid)[0], signal.SIGKILL)
    code, said = ended(process)
    assert code == 1
    assert said[-1].startswith("error: process 1 of this job ended by SIGKILL")
    assert sum("error:" in line for line in said) == 1

    process = started("--resume", run)
    wait_for_progress(run, process, latest(run))
    process.kill()
    code, said = ended(process)  # the pipe closes when the other process has ended too
    assert code == -signal.SIGKILL
    assert said[-1].startswith("error: the first process of this job is gone")
    assert latest(run) < STEPS
    return run


@pytest.fixture(scope="module")
def pairs(folder: Path, alone: dict[str, Path], survivor: Path) -> dict[str, Path]:
    """What two processes trained, all in one job of torchrun."""
    fsdp = "trainer.strategy=fsdp"
    resumed, shards = cut(alone["gru"], folder / "one_then_fsdp", 3), "trainer.checkpoints=sharded"
    forms.convert(Run(resumed), "sharded")
    jobs = {layer: (f"digits_{layer}", TWO, folder / f"pair_{layer}") for layer in LAYERS}
    jobs["fsdp"] = ("digits_gru", [*TWO, fsdp], folder / "pair_fsdp")
    jobs["shards"] = ("digits_gru", [*TWO, fsdp, shards], folder / "pair_shards")
    jobs["resumed"] = ("digits_gru", [*TWO, fsdp, shards], resumed)
    jobs["frozen_fsdp"] = ("digits_gru", [*TWO, fsdp, FREEZE], folder / "pair_frozen_fsdp")
    jobs["frozen_ddp"] = ("digits_gru", [*TWO, FREEZE], folder / "pair_frozen_ddp")
    jobs["frozen_resumed"] = (
        "digits_gru",
        [*TWO, fsdp, FREEZE],
        cut(alone["frozen"], folder / "frozen_resumed", 3),
    )
    text = [*TEXT, "data.batch_size=20", "trainer.devices=2"]
    jobs["text_ddp"] = ("text_rglru_mini", text, folder / "pair_text")
    twice = [*text, fsdp, "trainer.recompute=true"]
    jobs["text_fsdp"] = ("text_rglru_mini", twice, folder / "pair_text_fsdp")
    jobs["denoise"] = ("denoise_lru", [*DENOISE[1:], "trainer.devices=2"], folder / "pair_denoise")
    jobs["survivor"] = ("digits_lru", TWO, survivor)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    listed = json.dumps([(name, words, str(place)) for name, words, place in jobs.values()])
    done = subprocess.run(
        [*command, "-m", "tests.train.job", listed],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return {key: place for key, (_, _, place) in jobs.items()}


@pytest.mark.parametrize("layer", LAYERS)
def test_two_processes_do_what_one_does_with_the_doubled_batch(
    layer: str, alone: dict[str, Path], pairs: dict[str, Path]
) -> None:
    assert distance(alone[layer], pairs[layer]) < ROUNDING


def test_weights_spread_over_two_processes_end_as_in_one(
    alone: dict[str, Path], pairs: dict[str, Path], tmp_path: Path
) -> None:
    assert distance(alone["gru"], pairs["fsdp"]) < ROUNDING
    assert distance(alone["gru"], pairs["resumed"]) < ROUNDING
    for way in ("fsdp", "shards"):
        back = cut(pairs[way], tmp_path / f"{way}_then_one", 3)
        fit.train(recipe.load("digits_gru", ONE), resume=back)
        assert distance(alone["gru"], back) < ROUNDING


def test_each_process_writes_its_shard_of_what_is_whole_otherwise(pairs: dict[str, Path]) -> None:
    assert distance(pairs["fsdp"], pairs["shards"]) == 0
    for step in range(1, STEPS + 1):
        name = f"checkpoints/step_{step:08d}"
        whole, parts = (
            read_checkpoint(pairs[way] / f"{name}{end}")
            for way, end in (("fsdp", ".ckpt"), ("shards", ".shards"))
        )
        assert parts["position"] == whole["position"]
        states = [content["optimizer_states"][0] for content in (whole, parts)]
        assert states[0]["param_groups"] == states[1]["param_groups"]
        assert all(map(torch.equal, *(tree_leaves(state["state"]) for state in states)))
        sizes = [file.stat().st_size for file in (pairs["shards"] / f"{name}.shards").glob("*.distcp")]
        assert len(sizes) == 2
        assert max(sizes) < 0.7 * sum(sizes)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_logits_in_parts_have_the_gradients_of_two_processes(
    way: str, alone: dict[str, Path], pairs: dict[str, Path]
) -> None:
    """The head has the weights of the embedding; fsdp also runs its blocks twice."""
    assert distance(alone["text"], pairs[f"text_{way}"]) < ROUNDING


def test_frozen_weights_stay_in_two_processes(alone: dict[str, Path], pairs: dict[str, Path]) -> None:
    for way in ("ddp", "fsdp", "resumed"):
        assert distance(alone["frozen"], pairs[f"frozen_{way}"]) < ROUNDING
    moved, stayed = weights(alone["gru"]), weights(pairs["frozen_fsdp"])
    fresh = build(recipe.typed(recipe.load("digits_gru", ONE)))[1].state_dict()
    same = {name for name in fresh if torch.equal(stayed[name], fresh[name])}
    assert same == {name for name in fresh if name.startswith(("model.encoder.", "model.blocks.0."))}
    assert not any(torch.equal(moved[name], fresh[name]) for name in same)


@pytest.mark.parametrize("name", ["lru", "fsdp", "denoise"])  # of 300 rows, or 23 in batches of 2
def test_the_test_counts_every_row_once(name: str, pairs: dict[str, Path]) -> None:
    run = Run(pairs[name])
    together = run.summary()["metrics"]
    by_one = fit.evaluate(run, "test")
    assert {key: together[f"test/{key}"] for key in by_one} == pytest.approx(by_one, rel=1e-5, abs=1e-6)
    assert run.summary()["devices"] == 2


def test_a_run_of_two_processes_exports_in_one(lrnnx, pairs: dict[str, Path], tmp_path: Path) -> None:
    lrnnx("export", pairs["fsdp"], "-o", tmp_path / "model.safetensors").done()
    assert (tmp_path / "model.safetensors").stat().st_size > 1000


def test_stopped_and_bereaved_it_ends_as_if_nothing_had_been(pairs: dict[str, Path]) -> None:
    assert distance(pairs["survivor"], pairs["lru"]) == 0


def test_every_rank_has_as_many_batches_and_all_rows_are_dealt_once() -> None:
    for size, ranks, batch in ((17, 2, 8), (16, 2, 8), (15, 2, 8), (3, 2, 1), (23, 4, 2), (9, 8, 4)):
        dealt: list[list[list[Address]]] = []
        for rank in range(ranks):
            sampler = AddressSampler(size, 0, shuffle=False, batch=batch)
            sampler.rank, sampler.ranks = rank, ranks
            dealt.append(sampler.batches())
        assert len({len(batches) for batches in dealt}) == 1
        assert all(1 <= len(rows) <= batch + 1 for batches in dealt for rows in batches)
        rows = [address.row for batches in dealt for rows in batches for address in rows]
        assert sorted(rows) == list(range(size))


def test_training_deals_the_rows_of_the_doubled_batch() -> None:
    one = AddressSampler(47, 5, shuffle=True, batch=10)
    halves = [AddressSampler(47, 5, shuffle=True, batch=5) for _ in range(2)]
    for rank, half in enumerate(halves):
        half.rank, half.ranks = rank, 2
    first, second = map(list, halves)
    assert len(one) == len(list(one)) == 40
    assert len(first) == len(second) == len(halves[0]) == 20
    for start in range(0, 20, 5):
        both = first[start : start + 5] + second[start : start + 5]
        assert set(both) == set(list(one)[2 * start : 2 * start + 10])


def test_fewer_examples_than_processes_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    with pytest.raises(DataError, match="3 examples for 4 processes"):
        AddressSampler(3, 0, shuffle=True)


@pytest.mark.parametrize("name", ["ddp_spawn", "deepspeed"])
def test_a_strategy_that_there_is_not_is_one_line(lrnnx, name: str) -> None:
    lrnnx("train", "digits_lru", f"trainer.strategy={name}").refuses(name)
    with pytest.raises(RecipeError, match="nodes: expected a positive integer"):
        recipe.load("digits_lru", ["trainer.nodes=0"])
