"""Trainings that begin with another model's weights, and parameters that stay as they are."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from lrnnx_app import recipe as recipes
from lrnnx_app.errors import RecipeError, RunError
from lrnnx_app.registry import LAYERS
from lrnnx_app.reports import show
from lrnnx_app.runs.checkpoint_file import read_checkpoint
from lrnnx_app.runs.run import Run, load
from lrnnx_app.train import begin, fit
from tests.helpers import TINY, cut, digits, relative, same, small_model, untrained

FROZEN = "freeze=[encoder.*,blocks.*.norm.weight,blocks.*.D]"


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """A run of two blocks, not trained."""
    (tmp_path / "given").mkdir()
    return untrained(tmp_path / "given", "digits_lru", *TINY, "model.depth=2")


def test_what_fits_is_taken_and_the_rest_is_listed(lrnnx, given: Path, tmp_path: Path) -> None:
    still = ["trainer.max_steps=1", "task.lr=0", "task.ssm_lr=0"]
    other = ["model.layer=s5", "model.layer.d_state=4"]
    lrnnx("export", given, "-o", tmp_path / "given.safetensors").done()
    theirs = load(given).state_dict()
    for name, source in (("run", given), ("file", tmp_path / "given.safetensors")):
        out = tmp_path / f"from_{name}"
        done = lrnnx("train", "digits_lru", *TINY, *still, *other, f"init_from={source}", "-o", out).done()
        own, kept = load(out).state_dict(), json.loads((out / "init_from.json").read_text())
        fitting = [key for key, value in own.items() if key in theirs and value.shape == theirs[key].shape]
        assert fitting
        assert all(torch.equal(own[key], theirs[key]) for key in fitting)
        assert kept["init_from"] == str(source)
        assert kept["taken"] == sum(own[key].numel() for key in fitting)
        assert kept["of"] == sum(value.numel() for value in own.values())
        assert kept["new"] == [key for key in own if key not in theirs]
        assert kept["left over there"] == [key for key in theirs if key not in own]
        for key, shapes in kept["of another shape"].items():
            assert (shapes["here"], shapes["there"]) == (list(own[key].shape), list(theirs[key].shape))
        listed = {*fitting, *kept["new"], *kept["of another shape"]}
        assert listed == own.keys()
        assert f"{source}: took {kept['taken']:,} of {kept['of']:,} weights" in done.error
        for title in ("new", "of another shape", "left over there"):
            assert f"  {title}: " in done.error


def test_nothing_that_fits_is_an_error(given: Path) -> None:
    with pytest.raises(RunError, match=r"no weight of .* fits this model: .* is \(.* here and \(.* there"):
        begin.take(small_model("backbone", "s5", d_model=6), str(given))
    with pytest.raises(RunError, match=r"no weight of .* fits this model: weight is not among them"):
        begin.take(torch.nn.Linear(3, 5), str(given))


def test_frozen_parameters_stay_and_a_resumed_run_needs_no_source(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*digits(2), "model.depth=2", f"init_from={given}", FROZEN, "task.weight_decay=10"]
    config = recipes.load("digits_lru", words[1:])
    fit.train(config, tmp_path / "whole")
    cut(config, tmp_path / "parts", 5)
    shutil.move(given, tmp_path / "moved")
    fit.train(config, resume=tmp_path / "parts")
    same(tmp_path / "whole", tmp_path / "parts")
    own, theirs = (load(path).state_dict() for path in (tmp_path / "parts", tmp_path / "moved"))
    stay = [key for key in own if key.startswith("encoder.") or key.endswith((".norm.weight", ".D"))]
    assert all(torch.equal(own[key], theirs[key]) == (key in stay) for key in own), stay
    states = read_checkpoint(Run(tmp_path / "whole").last)["optimizer_states"][0]["state"]
    assert len(states) == len(own) - len(stay)
    summary = Run(tmp_path / "whole").summary()
    frozen = sum(own[key].numel() for key in stay)
    assert summary["trained_parameters"] == summary["parameters"] - frozen
    show.summary("classify", tmp_path / "whole", summary)
    assert f"of which {summary['trained_parameters']:,} were trained" in capsys.readouterr().out


@pytest.mark.parametrize("layer", LAYERS)
def test_the_others_have_the_gradients_that_they_had(layer: str) -> None:
    """Operators that derive for several parameters at once derive for the rest."""
    model = small_model("backbone", layer, pool="none").double()
    x = torch.randn(2, 20, 3, dtype=torch.float64)

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(x)[0].square().sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    whole, names = gradients(), list(dict(model.named_parameters()))
    for rest in (0, 1):
        for index, p in enumerate(model.parameters()):
            p.requires_grad_(index % 2 == rest)
        part = gradients()
        assert list(part) == [name for name in names[rest::2] if name in whole]
        assert all(relative(gradient, whole[name]) < 1e-12 for name, gradient in part.items())


def test_patterns_are_checked_and_counted(lrnnx) -> None:
    model = small_model("backbone")
    with pytest.raises(RecipeError, match=r"freeze: no parameter matches 'encodr\.wei.*'encoder\.weight'\?"):
        begin.freeze(model, ["head.*", "encodr.weight"])
    with pytest.raises(RecipeError, match=r"freeze: enc\*, \* match every parameter"):
        begin.freeze(small_model("backbone"), ["enc*", "*"])
    said = lrnnx("train", "digits_lru", *TINY, FROZEN, "--dry-run").done().out.splitlines()
    rows = {words[0]: words[-2:] for line in said if len(words := line.split()) > 2}
    assert rows["encoder"][1] == "0"
    assert rows["head"][0] == rows["head"][1]
    assert int(rows["total"][1].replace(",", "")) < int(rows["total"][0].replace(",", ""))
