"""What a resumed run goes on with: its own settings, overrides that count, the totals of all its parts."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from lrnnx_app import recipe
from lrnnx_app.errors import RecipeError, RunError, TrainingError
from lrnnx_app.runs import folder as run_folder
from lrnnx_app.runs.checkpoint_file import read_checkpoint
from lrnnx_app.runs.run import Run
from lrnnx_app.tasks.classify import Classify
from lrnnx_app.train import fit, resume
from lrnnx_app.train.totals import Totals
from tests.helpers import TINY, cut, refused

WORDS = [*TINY, "data.workers=0", "trainer.max_epochs=3", "trainer.checkpoint_every=1"]


@pytest.fixture(scope="module")
def halved(folder: Path) -> Path:
    """A run of two steps an epoch that ended after step 3 of 6."""
    cut(recipe.load("digits_lru", WORDS), folder / "halved", 3)
    return folder / "halved"


@pytest.fixture
def run(halved: Path, tmp_path: Path) -> Path:
    """A copy of it elsewhere."""
    return Path(shutil.copytree(halved, tmp_path / "run"))


def last(run: Path) -> dict:
    return read_checkpoint(run / "checkpoints" / "last.ckpt")


def best(content: dict) -> dict:
    return next(state for state in content["callbacks"].values() if "best_k_models" in state)


def test_rates_count_from_the_resumption_on_and_a_moved_run_keeps_its_best(run: Path) -> None:
    before = last(run)
    assert best(before)["best_model_path"] == "best.ckpt"
    assert best(before)["dirpath"] == ""
    rates = ["task.lr=0", "task.ssm_lr=0", "task.weight_decay=0"]
    _, summary = fit.train(resume.settings(None, run, rates), resume=run)
    after = last(run)
    assert after["global_step"] == summary["steps"] == 6
    assert all(torch.equal(value, after["state_dict"][key]) for key, value in before["state_dict"].items())
    for group in after["optimizer_states"][0]["param_groups"]:
        assert group["lr"] == group["initial_lr"] == group["weight_decay"] == 0
    assert best(after)["best_model_score"] <= best(before)["best_model_score"]
    assert [path.name for path in (run / "checkpoints").glob("best*")] == ["best.ckpt"]
    written = OmegaConf.load(run / "recipe.yaml")
    assert written.task.lr == 0
    assert written.trainer.max_epochs == 3


def test_limits_count_and_totals_are_of_all_parts(run: Path) -> None:
    before = last(run)["callbacks"]["Totals"]
    assert before["samples"] == 3 * 600
    assert before["seconds"] > before["training"] > 0
    config = resume.settings("digits_lru", run, ["trainer.max_epochs=2"])
    _, summary = fit.train(config, resume=run)
    assert summary["steps"] == 4
    assert summary["seconds"] > before["seconds"]
    ended = last(run)["callbacks"]["Totals"]
    assert ended["samples"] == 4 * 600
    assert summary["samples_per_second"] == pytest.approx(ended["samples"] / ended["training"], abs=0.01)
    assert summary["peak_mib"] >= before["memory"]["peak_mib"]
    assert not (run / "hparams.yaml").exists()
    _, again = fit.train(resume.settings(None, run, []), resume=run)  # nothing is left to do
    assert again["seconds"] >= summary["seconds"]
    assert again["samples_per_second"] == summary["samples_per_second"]
    assert again["metrics"] == summary["metrics"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.d_model=16", "model.d_model: 16 instead of 8"),
        ("model.layer=s5", "model.layer"),
        ("model.pool=last", "model.pool"),
        ("model.layer.d_state=8", "model.layer.d_state"),
        ("data.noise=0.5", "data.noise: 0.5"),
        ("data.batch_size=50", "data.batch_size: 50 examples a batch in all instead of 600"),
        ("trainer.devices=2", "trainer.devices: 1200 examples"),
        ("seed=5", "seed: 5 instead of 0"),
        ("name=other", "name"),
        ("trainer.max_epochs=0", "max_epochs"),
        ("trainer.max_steps=2", "trainer.max_steps: 2, but 3 are done already"),
    ],
)
def test_what_cannot_count_is_refused(override: str, words: str, halved: Path) -> None:
    kept = (halved / "recipe.yaml").read_bytes()
    with refused(RecipeError, words):
        fit.train(resume.settings(None, halved, [override]), resume=halved)
    assert (halved / "recipe.yaml").read_bytes() == kept
    assert not (halved / "summary.json").exists()


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.batch_size=300", "trainer.devices=2"],
        ["data.workers=1", "model.dropout=0.5", "task.label_smoothing=0.1"],
        ["trainer.precision=bf16-mixed", "trainer.keep=9", "about=other words"],
    ],
)
def test_what_can_count_is_taken(overrides: list[str], halved: Path) -> None:
    path, content = resume.start(Run(halved), resume.settings(None, halved, overrides), print)
    assert path is not None
    assert content["global_step"] == 3


def test_the_recipe_s_own_settings_do_not_swap_the_run_s(halved: Path, tmp_path: Path) -> None:
    own = Run(halved).config
    assert resume.settings("digits_lru", halved, []) == own
    assert resume.settings(str(halved / "recipe.yaml"), halved, []) == own
    with pytest.raises(RunError, match="a run of digits_lru, not of digits_s5"):
        resume.settings("digits_s5", halved, [])


def test_an_override_after_resume_is_no_recipe(lrnnx, halved: Path) -> None:
    words = "model.d_model: 16 instead of 8 cannot count"
    lrnnx("train", "--resume", halved, "model.d_model=16").refuses(words)


def test_weights_that_grew_beyond_numbers_end_the_training_in_one_line(lrnnx, tmp_path: Path) -> None:
    rates = ["task.lr=1e30", "task.ssm_lr=1e30", "trainer.max_skipped=1000"]
    result = lrnnx("train", "digits_lru", *WORDS, *rates, "-o", tmp_path / "run")
    assert result.code == 2
    assert "step 2: no output of the validation is a finite number" in result.error.splitlines()[-1]
    assert "Traceback" not in result.error
    assert not (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()


def test_a_test_of_weights_that_are_no_numbers_is_one_line(
    halved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Run.task

    def broken(self: Run, kind: Any) -> Classify:
        task = make(self, kind)
        for p in task.parameters():
            p.data.fill_(float("nan"))
        return task

    monkeypatch.setattr(Run, "task", broken)
    with pytest.raises(TrainingError, match="the test: outputs are no finite numbers"):
        fit.evaluate(Run(halved), "test")


def test_a_metric_that_is_no_number_is_null_in_the_summary(run: Path) -> None:
    rest = {"parameters": 1, "samples_per_second": 1.0, "device": "cpu"}
    run_folder.write_summary(run, {"metrics": {"test/loss": math.nan, "test/accuracy": 0.5}, **rest})
    assert json.loads((run / "summary.json").read_text())["metrics"]["test/loss"] is None
    assert math.isnan(Run(run).summary()["metrics"]["test/loss"])
    assert Run(run).summary()["metrics"]["test/accuracy"] == 0.5


def test_totals_add_up() -> None:
    totals = Totals()
    totals.start()
    totals.load_state_dict({"samples": 10, "training": 2.0, "seconds": 100.0, "memory": {"peak_mib": 1e9}})
    totals.stop()
    assert 100 < totals.seconds < 160
    assert totals.rates() == {"samples_per_second": 5, "time_steps_per_second": 0}
    assert totals.memory["peak_mib"] == 1e9
    assert json.loads(json.dumps(totals.state_dict()))["samples"] == 10
