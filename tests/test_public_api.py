"""The front door: the names of `lrnnx_app`, what they say of themselves, and what they do not import."""

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lrnnx_app
from lrnnx_app import (
    LAYERS,
    Run,
    Session,
    UserError,
    evaluate,
    export_run,
    layer,
    load,
    load_recipe,
    model,
    train_recipe,
)
from lrnnx_app.registry import MODELS
from tests.helpers import DENOISE, DOCS, ROOT

NAMES = {
    *("LAYERS", "Run", "Session", "UserError", "convert", "evaluate", "export_run", "layer", "load"),
    *("load_recipe", "model", "train_recipe"),
}
OF_TENSORS = ("convert", "layer", "load", "model")  # those that say which shapes go in and out


def test_the_names_are_these_and_a_type_checker_reads_the_same() -> None:
    assert set(lrnnx_app.__all__) == NAMES
    assert set(dir(lrnnx_app)) >= NAMES
    tree = ast.parse(Path(lrnnx_app.__file__).read_text())
    typed = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module != "typing")
    found = {
        alias.asname: f"{node.module}:{alias.name}".removeprefix("lrnnx_app.")
        for node in typed
        if node.module != "importlib"
        for alias in node.names
    }
    assert found == lrnnx_app._HOMES
    with pytest.raises(AttributeError, match="no attribute 'layr'"):
        _ = lrnnx_app.layr


def test_the_guide_lists_them() -> None:
    rows = re.findall(r"^\| `(\w+)", (DOCS / "python.md").read_text("utf-8"), re.MULTILINE)
    assert set(rows) == NAMES


def test_a_name_hides_no_module_of_the_package() -> None:
    package = Path(lrnnx_app.__file__).parent
    assert not NAMES & {path.stem for path in package.iterdir()}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_name_says_what_it_takes_and_what_it_raises(name: str) -> None:
    said = inspect.getdoc(getattr(lrnnx_app, name)) or ""
    entry = getattr(lrnnx_app, name)
    if inspect.isfunction(entry) or name in ("Run", "Session"):
        assert "Raises:" in said
        assert [name for name in inspect.signature(entry).parameters if f"{name}" not in said] == []
    if name in OF_TENSORS:
        assert "(B, T, d" in said
    assert said


def test_what_is_imported_is_lean() -> None:
    """The package alone imports nothing; what needs no training needs no Lightning."""
    lean = ", ".join(f"lrnnx_app.{name}" for name in sorted(NAMES - {"evaluate", "train_recipe"}))
    code = f"import sys, lrnnx_app; print(*sys.modules); found = {lean}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    alone, used = ({name.partition(".")[0] for name in line.split()} for line in done.stdout.splitlines())
    assert not alone & {"torch", "numpy", "omegaconf", "typer"}
    assert "torch" in used
    assert not used & {"lightning", "torchmetrics", "matplotlib", "tensorboard"}


def test_every_layer_and_model_is_made_by_its_name() -> None:
    x = torch.randn(2, 6, 8)
    for name in LAYERS:
        y, state = layer(name, 8)(x)
        assert y.shape == x.shape
        assert layer(name, 8).step(x[:, 0], state)[0].shape == (2, 8)
    for name in MODELS:
        built = model(name, 1, 1, {"name": "s5", "d_state": 4}, **MODELS[name].small)
        assert built.spec.d_output == 1
        assert any(type(module) is LAYERS["s5"] for module in built.modules())
    mixed = model("backbone", 1, 3, ["lru", {"name": "gru"}], d_model=8, depth=2, pool="none")
    kinds = [type(module) for module in mixed.modules()]
    assert (kinds.count(LAYERS["lru"]), kinds.count(LAYERS["gru"])) == (1, 1)


def test_a_run_is_trained_judged_loaded_streamed_and_exported(tmp_path: Path) -> None:
    run = train_recipe(*DENOISE, out=tmp_path / "run")
    assert run.summary()["steps"] == 3
    assert evaluate(run, "test")["si_snr"] == pytest.approx(run.summary()["metrics"]["test/si_snr"], abs=1e-4)
    session = Session(load(str(run.path)), batch=2)
    assert session.push(torch.randn(2, session.chunk, 1)).shape == (2, session.chunk, 1)
    assert load_recipe("denoise_lru", "model.layer.d_state=7").model.layer.d_state == 7
    (said,) = export_run(Run(str(run.path)), tmp_path / "model.safetensors")
    assert "model.safetensors" in said


MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "layer": (lambda: layer("lur", 8), "layer: unknown layer 'lur'; did you mean 'lru'"),
    "option": (lambda: layer("lru", 8, dstate=4), "lru: unknown option 'dstate'; did you mean 'd_state'"),
    "value": (lambda: layer("lru", 8, d_state=0), "d_state: expected at least 1"),
    "model": (lambda: model("backbon", 1, 2), "model: unknown model 'backbon'; did you mean 'backbone'"),
    "inner": (lambda: model("backbone", 1, 2, {"name": "s5", "rul": 1}), "s5: unknown option 'rul'; did you"),
    "recipe": (lambda: load_recipe("denoise_lur"), "denoise_lur: unknown recipe; did you mean 'denoise_lru'"),
    "run": (lambda: load("nowhere"), "nowhere: no such run folder"),
    "export": (lambda: export_run("nowhere", "x.onnx"), "nowhere: no such run folder"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name: str) -> None:
    mistake, words = MISTAKES[name]
    with pytest.raises(UserError) as found:
        mistake()
    assert str(found.value).startswith(words)
    assert "\n" not in str(found.value)
