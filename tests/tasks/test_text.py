"""Text: documents that stay in one split, windows that cover each byte once; bits, and sampling."""

import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from data_modules.text import Text
from lrnnx_app import recipe as recipes
from lrnnx_app.cli import app
from lrnnx_app.errors import DataError, RunError
from lrnnx_app.infer import generation
from lrnnx_app.infer.generation import Generation
from lrnnx_app.infer.sampling import Sampling
from lrnnx_app.infer.text import _mean_error
from lrnnx_app.runs.run import Run, build_data, build_task
from lrnnx_app.spec import SPLITS, Batch
from lrnnx_app.train import fit


def folder_of(root: Path, count: int = 40) -> Path:
    rng = np.random.default_rng(0)
    for index in range(count):
        path = root / f"part{index % 3}" / f"{index}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.integers(0, 256, 30 + index, np.uint8).tobytes())
    (root / "picture.png").write_bytes(b"no text")
    return root


def test_embedded_documents_share_no_split() -> None:
    sources = [Text(Text.Config()).source(split) for split in SPLITS]
    names = [set(source.names) for source in sources]
    assert sum(map(len, names)) > 70
    for one, other in combinations(names, 2):
        assert not one & other


def test_evaluation_predicts_every_byte_but_the_first_of_each_document_once(tmp_path: Path) -> None:
    module = Text(Text.Config(root=str(folder_of(tmp_path)), length=16))
    for split in ("valid", "test"):
        source = module.source(split)
        found: dict[str, list[int]] = {}
        for index in range(len(source)):
            x, y, _, name = source.example(index, np.random.default_rng(0))
            assert torch.equal(x[1:], y[:-1])
            assert len(x) == source.lengths[index]
            found.setdefault(name, []).extend(y.tolist())
        assert found
        for name, tokens in found.items():
            assert bytes(tokens) == (tmp_path / name).read_bytes()[1:]


def test_training_draws_every_place_alike(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(bytes(range(100)))
    source = Text(Text.Config(root=str(tmp_path / "a.txt"), length=10)).source("train")
    starts = [int(source.example(0, np.random.default_rng(i)).x[0]) for i in range(700)]
    assert set(starts) == set(range(70))  # of the first eight tenths, 80 bytes, each window 11


def test_one_file_is_split_by_place(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(bytes(range(100)))
    module = Text(Text.Config(root=str(tmp_path / "a.txt"), length=4))
    for split, first, end in (("valid", 80, 90), ("test", 90, 100)):
        seen = {
            int(t)
            for i in range(len(module.source(split)))
            for t in module.source(split).example(i, np.random.default_rng(0)).y
        }
        assert seen == set(range(first + 1, end))


@pytest.mark.parametrize(
    ("name", "words"),
    [("no", "no such file or folder"), ("", "no file that ends in"), ("e.txt", "no document")],
)
def test_text_that_is_none_is_named(tmp_path: Path, name: str, words: str) -> None:
    if name == "e.txt":
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=words) as caught:
        Text(Text.Config(root=str(tmp_path / name))).source("train")
    assert str(tmp_path / name) in str(caught.value)


SMALL = [
    "model.d_model=8",
    "model.depth=1",
    "data.length=16",
    "data.batch_size=4",
    "data.examples_per_epoch=8",
]


def test_loss_is_bits_per_byte_without_padding() -> None:
    recipe = recipes.typed(recipes.load("text_rglru_mini", SMALL))
    task = build_task(recipe, build_data(recipe).spec).eval()
    x, y = torch.randint(256, (2, 9)), torch.randint(256, (2, 9))
    lengths = torch.tensor([9, 4])
    with torch.no_grad():
        total, bits, _ = task.errors_of(Batch(x, y, lengths))
        _, again, _ = task.errors_of(Batch(x[1:, :4], y[1:, :4]))
        output, _ = task.model(x, lengths=lengths)
    assert bits[1, 4:].eq(0).all()
    assert abs(float(total - bits.sum())) < 1e-4
    assert torch.allclose(bits, task.errors_from(output, Batch(x, y, lengths)), atol=1e-5)
    expected = -output.log_softmax(-1)[1, 2, y[1, 2]] / math.log(2)
    assert abs(float(bits[1, 2] - expected)) < 1e-5
    assert torch.allclose(bits[1, :4], again[0], atol=1e-5)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("text")
    (root / "a.txt").write_text("abcdefgh" * 60)
    settings = [*SMALL, f"data.root={root / 'a.txt'}", "data.examples_per_epoch=160", "model.d_model=16"]
    config = recipes.load(
        "text_rglru_mini", [*settings, "trainer.max_epochs=5", "task.lr=0.02", "trainer.accelerator=cpu"]
    )
    folder, summary = fit.train(config, root / "run")
    assert summary["metrics"]["test/bits_per_byte"] < 1
    assert summary["metrics"]["test/loss_stderr"] > 0
    assert list((folder / "plots").glob("prediction_*.png"))
    return folder


def follow(run: Path, prompt: bytes, how: Sampling) -> bytes:
    made = Generation(Run(run), [prompt], how)
    parts = [part for (part,) in made.parts()]
    assert b"".join(parts) == made.texts[0].text
    return made.texts[0].text


def test_a_trained_run_goes_on_as_its_text_does(run: Path) -> None:
    greedy = Sampling(length=12, temperature=0)
    assert follow(run, b"abcdefghabc", greedy) == b"defghabcdefg"
    warm = Sampling(length=30, temperature=2.0, seed=1)
    one, again = (follow(run, b"a", warm) for _ in range(2))
    assert one == again
    assert follow(run, b"a", replace(warm, seed=2)) != one
    for narrow in (replace(warm, length=12, top_k=1), replace(warm, length=12, top_p=1e-9)):
        assert follow(run, b"abcdefghabc", narrow) == b"defghabcdefg"


def test_infer_prints_the_continuation_and_the_bits_of_a_file(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    (tmp_path / "p.txt").write_text("abcdefghabcd")
    app(
        ["infer", str(run), "--prompt", f"@{tmp_path / 'p.txt'}", "--length", "4", "--temperature", "0"],
        standalone_mode=False,
    )
    assert capfd.readouterr().out == "abcdefghabcdefgh\n"
    app(["infer", str(run), str(tmp_path / "p.txt")], standalone_mode=False)
    assert "11 steps" in capfd.readouterr().out


def test_long_texts_go_in_pieces_and_give_the_same_numbers(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Run(run).task()
    content = bytes(np.random.default_rng(0).integers(97, 105, 501, dtype=np.uint8))
    x = torch.tensor(list(content))
    expected = float(task.errors_of(Batch(x[None, :-1], x[None, 1:]))[1].mean())
    how = Sampling(length=5, temperature=0)
    following = follow(run, content, how)
    sizes = []
    monkeypatch.setattr(generation, "PIECE", 64)
    monkeypatch.setattr(Run, "task", lambda _: task)
    task.model.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[1]))
    assert follow(run, content, how) == following
    assert max(sizes) == 64
    with torch.inference_mode():
        found = _mean_error(task, x[:-1].byte(), x[1:].byte(), None)
    assert abs(found - expected) < 1e-5 * expected
    assert max(sizes) == 64


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", ""], "at least one byte"),
        (["--prompt", "@nowhere"], "nowhere"),
        ([], "INPUT"),
        (["--prompt", "a", "--length", "0"], "--length"),
    ],
)
def test_mistakes_of_a_prompt(lrnnx, run: Path, words: list[str], message: str) -> None:
    lrnnx("infer", run, *words).refuses(message)


def test_evaluation_takes_other_data(run: Path, tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("hgfedcba" * 40)
    own = fit.evaluate(Run(run), "test")
    other = fit.evaluate(Run(run, [f"data.root={tmp_path / 'b.txt'}"]), "test")
    assert other["bits_per_byte"] > own["bits_per_byte"] + 1


def test_only_text_is_continued(tmp_path: Path) -> None:
    config = recipes.load(
        "samples_s4d_mini",
        [
            "model.d_model=4",
            "model.depth=1",
            "data.seconds=0.01",
            "trainer.max_epochs=1",
            "trainer.accelerator=cpu",
        ],
    )
    folder, summary = fit.train(config, tmp_path / "run")
    assert summary["metrics"]["test/mse_of_no_change"] > 0
    assert summary["metrics"]["test/mse"] == summary["metrics"]["test/loss"]
    with pytest.raises(RunError, match="no model of text"):
        Generation(Run(folder), [b"a"], Sampling())
