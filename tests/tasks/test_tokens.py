"""Runs on tokens: what they measure and keep, and that a run's folder is enough."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_modules.text import Text
from lrnnx_app import recipe as recipes
from lrnnx_app.data import tokenizer as tokenizers
from lrnnx_app.data.tokenizer import opened
from lrnnx_app.reports import compare
from lrnnx_app.runs.folder import CHECKPOINTS
from lrnnx_app.runs.run import Run, build_data
from lrnnx_app.train import fit, resume
from tests.helpers import same

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
SMALL = [
    "model.d_model=16",
    "model.depth=1",
    "data.length=16",
    "data.batch_size=4",
    "data.examples_per_epoch=40",
    "data.tokenizer=train:300",
    "data.pack=true",
    "task.lr=0.02",
    "trainer.max_epochs=4",
    "trainer.accelerator=cpu",
]


def write(root: Path) -> Path:
    """Documents that count round and round."""
    root.mkdir()
    for i in range(12):
        words = [WORDS[(i + step) % 8] for step in range(60 + i)]
        (root / f"{i}.txt").write_text(" ".join(words) + f" and all {i * 7919 % 1000}")
    return root


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture(scope="module", autouse=True)
def own_cache(place: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LRNNX_CACHE", str(place / "cache"))
        yield


def settings(place: Path, *more: str) -> list[str]:
    return [*SMALL, f"data.root={place / 'text'}", *more]


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    write(place / "text")
    folder, summary = fit.train(recipes.load("text_rglru_mini", settings(place)), place / "run")
    assert summary["metrics"]["test/bits_per_byte"] < 3
    return folder


def test_bits_per_byte_are_those_of_all_the_text(run: Path, place: Path) -> None:
    metrics = Run(run).summary()["metrics"]
    data = build_data(Run(run).recipe)
    assert isinstance(data, Text)
    source = data.source("test")
    tokens = int(source.documents.sizes.sum()) - len(source.names)
    firsts = [int(source.documents.part(i, 0, 1)[0]) for i in range(len(source.names))]
    size = sum((place / "text" / name).stat().st_size for name in source.names)
    size -= sum(len(data.tokenizer.piece(first)) for first in firsts)  # which are not predicted
    ratio = metrics["test/bits_per_token"] / metrics["test/bits_per_byte"]
    assert ratio == pytest.approx(size / tokens, rel=1e-5)
    assert metrics["test/bits_per_token"] == metrics["test/loss"]
    (row,) = compare.rows([Run(run)])
    assert (row.metric, row.value) == ("bits_per_byte", metrics["test/bits_per_byte"])


def test_a_run_holds_its_tokenizer_and_needs_no_cache(run: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("LRNNX_CACHE", str(tmp_path / "empty"))
    moved = Path(shutil.copytree(run, tmp_path / "moved"))
    shutil.copytree(run.parent / "text", tmp_path / "text")
    expected = opened((run / tokenizers.FILE).read_text()).json
    opened_run = Run(moved, [f"data.root={tmp_path / 'text'}"])
    assert opened_run.config.data.tokenizer == "train:300"  # as it was set
    data = build_data(opened_run.recipe)
    assert isinstance(data, Text)
    assert data.tokenizer.json == expected
    assert data.spec.d_output == 300
    metrics = fit.evaluate(opened_run, "test")
    assert metrics["bits_per_byte"] == pytest.approx(Run(run).summary()["metrics"]["test/bits_per_byte"])
    assert not (tmp_path / "empty" / "tokenizers").exists()


def test_an_exported_model_holds_it_too(run: Path, tmp_path: Path, lrnnx) -> None:
    lrnnx("export", run, "-o", tmp_path / "a.safetensors").done()
    lrnnx("export", run, "--format", "huggingface", "-o", tmp_path / "hub").done()
    assert (tmp_path / "hub" / "tokenizer.json").read_text() == (run / "tokenizer.json").read_text()
    text = run.parent / "text" / "0.txt"
    expected = lrnnx("infer", run, text).done().out
    assert lrnnx("infer", tmp_path / "a.safetensors", text).done().out == expected
    assert "bits_per_token" in expected
    assert "bits_per_byte" in expected


def test_a_resumed_run_on_tokens_ends_with_the_same_weights(run: Path, place: Path, monkeypatch) -> None:
    """In the midst of an epoch; with its own tokenizer, also when the cache is gone."""
    words = settings(place, "trainer.max_steps=15", "trainer.checkpoint_every=5")
    whole, _ = fit.train(recipes.load("text_rglru_mini", words), place / "whole")
    half = Path(shutil.copytree(whole, place / "half"))
    for path in (half / CHECKPOINTS).iterdir():
        if path.name != "step_00000005.ckpt":
            path.unlink()
    monkeypatch.setenv("LRNNX_CACHE", str(place / "other"))
    fit.train(resume.settings(None, half, []), resume=half)
    assert not (place / "other" / "tokenizers").exists()
    same(half, whole)
    assert (half / tokenizers.FILE).read_text() == (whole / tokenizers.FILE).read_text()
    assert Run(half).config.data.tokenizer == "train:300"


def test_a_run_on_tokens_continues_a_text_wherever_it_is(run: Path, tmp_path: Path, lrnnx) -> None:
    moved = Path(shutil.copytree(run, tmp_path / "moved"))
    words = ["--prompt", "one two three four", "--length", 4, "--temperature", 0, "--device", "cpu"]
    told = lrnnx("infer", moved, *words).done().out
    assert told.startswith("one two three four five")
    lrnnx("export", run, "-o", tmp_path / "a.safetensors").done()
    assert lrnnx("infer", tmp_path / "a.safetensors", *words).done().out == told
    lrnnx("infer", moved, "--prompt", "\udcff", "--device", "cpu").refuses("--prompt: byte 0 is not UTF-8")
    (moved / tokenizers.FILE).unlink()
    lrnnx("infer", moved, *words).refuses("tokenizer.json: missing", "train:300")
