"""Grids and seeds: which runs a command means; that each is made, continued and compared."""

import json
from pathlib import Path

import pytest

from lrnnx_app import recipe
from lrnnx_app.errors import RecipeError, RunError
from lrnnx_app.reports import compare, show
from lrnnx_app.runs.run import Run, build
from lrnnx_app.train import fit, grid
from tests.helpers import TINY


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Trainings run in this process, and fail where `model.layer=s5` is asked for with a power cut."""
    calls: list[list[str]] = []

    def train(words: list[str]) -> str:
        calls.append(words)
        _, name, *overrides, option, folder = words
        if "model.layer=s5" in overrides and len(calls) == 2:
            return "power cut"
        place = {"out" if option == "-o" else "resume": Path(folder)}
        fit.train(recipe.load(name, overrides), **place)
        return ""

    monkeypatch.setattr(grid, "train_one", train)
    return calls


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("lru,s5,s6", ["lru", "s5", "s6"]),
        ("[8,8]", ["[8,8]"]),
        ("[8,8],[4,4]", ["[8,8]", "[4,4]"]),
        ("[{name: s5, d_state: 8}, {name: gru}]", ["[{name: s5, d_state: 8}, {name: gru}]"]),
        ("'a, b'", ["'a, b'"]),
        ("", [""]),
    ],
)
def test_commas_outside_brackets_and_quotes_part_alternatives(value: str, parts: list[str]) -> None:
    assert grid.alternatives(value) == parts


def test_a_value_that_is_no_text_has_a_folder_too() -> None:
    first, second = (cell.folder for cell in grid.cells(["data.root=a\udcff,a\udcfe"]))
    assert first != second
    assert f"{first}{second}".isascii()


def test_lists_and_seeds_multiply() -> None:
    cells = grid.cells(["model.layer=lru,s5", "task.lr=0.1,0.2", "data.batch_size=2"], [3, 4])
    assert len(cells) == 8
    assert cells[1] == (
        "lru_lr_0.1/seed_4",
        ("model.layer=lru", "task.lr=0.1", "data.batch_size=2", "seed=4"),
    )
    assert len({cell.folder for cell in cells}) == 8
    assert grid.cells(["model.d_model=8"]) == [("", ("model.d_model=8",))]
    assert grid.seeds_from("digits_lru", ["seed=5"], 2) == [5, 6]


@pytest.mark.parametrize("override", ["model.layer=lru,", "model.layer=lru,lru"])
def test_empty_or_repeated_alternatives_are_refused(override: str) -> None:
    with pytest.raises(RecipeError, match="different values"):
        grid.cells([override])


@pytest.mark.parametrize(("overrides", "count"), [([], 0), (["seed=1,2"], 2), (["seed=x"], 2)])
def test_seeds_that_make_no_sense(overrides: list[str], count: int) -> None:
    with pytest.raises(RecipeError, match="seed"):
        grid.seeds_from("digits_lru", overrides, count)


def test_a_grid_loses_no_run_to_another_and_goes_on(tmp_path: Path, in_process: list[list[str]]) -> None:
    parent = tmp_path / "grid"
    cells = grid.cells(["model.layer=lru,s5", *TINY, "trainer.max_steps=1"], [0, 1])
    _, outcomes = grid.run("digits_lru", cells[::2] + cells[1::2], parent)
    assert dict(outcomes) == {"lru/seed_0": "", "s5/seed_0": "power cut", "lru/seed_1": "", "s5/seed_1": ""}
    found = compare.rows(compare.find([parent]))
    assert [(row.label, row.runs, row.spread_of) for row in found] == [("lru", 2, "sd"), ("s5", 1, "se")]

    done = (parent / "lru" / "seed_0" / "summary.json").stat().st_mtime_ns
    with pytest.raises(RunError, match="other settings"):
        grid.run(
            "digits_lru",
            [cell._replace(overrides=(*cell.overrides, "task.lr=1")) for cell in cells],
            None,
            parent,
        )
    with pytest.raises(RunError, match="not an empty folder"):
        grid.run("digits_lru", cells, parent)
    _, outcomes = grid.run("digits_lru", cells, None, parent)
    assert dict(outcomes) == {"s5/seed_0": ""}
    assert (parent / "lru" / "seed_0" / "summary.json").stat().st_mtime_ns == done

    show.outcome(parent, {"s7": "broken"})
    content = json.loads((parent / "comparison.json").read_text())
    assert content["failed"] == {"s7": "broken"}
    for row in content["rows"]:
        values = [
            Run(parent / row["label"] / f"seed_{n}").summary()["metrics"]["test/accuracy"] for n in (0, 1)
        ]
        mean = sum(values) / 2
        assert row["value"] == pytest.approx(mean)
        assert row["spread"] == pytest.approx((sum((v - mean) ** 2 for v in values)) ** 0.5)
    assert (parent / "comparison.png").stat().st_size > 1000


def test_a_grid_with_a_mistake_trains_nothing(tmp_path: Path, in_process: list[list[str]]) -> None:
    with pytest.raises(RecipeError, match="did you mean 's5'"):
        grid.run("digits_lru", grid.cells(["model.layer=lru,s55"]), tmp_path / "grid")
    assert not in_process
    assert not (tmp_path / "grid").exists()


def test_what_a_process_says_last_is_why_it_failed(capfd: pytest.CaptureFixture[str]) -> None:
    assert grid.train_one(["recipes", "digits_lur"]).startswith("digits_lur: unknown recipe")
    assert "error: digits_lur" in capfd.readouterr().err
    assert grid.train_one(["--help"]) == ""


@pytest.mark.parametrize(
    ("name", "overrides", "state"),
    [
        ("digits_lru", ["model.depth=2", "model.bidirectional=false"], 2 * 2 * 64 + 64 + 1),
        ("digits_lru", ["model.depth=2"], 2 * 2 * 64),
        ("denoise_lru", ["model.channels=[8,8]", "model.strides=[4,4]", "model.layer.d_state=3"], 4 * 2 * 3),
    ],
)
def test_state_and_latency_are_those_of_a_stream(name: str, overrides: list[str], state: int) -> None:
    opened = recipe.typed(recipe.load(name, overrides))
    _, task = build(opened)
    size, latency, streams = compare._step(task.model.eval(), task.spec)
    assert size == state
    assert latency > 0
    assert streams == (name != "digits_lru" or "model.bidirectional=false" in overrides)


def test_folders_without_runs_are_refused(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "gone", "no such folder"), (tmp_path, "no finished run")):
        with pytest.raises(RunError, match=words):
            compare.find([path])
