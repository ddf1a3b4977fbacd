"""Kernels that came in a wheel: the best that fit this machine are taken, and a reason is said."""

import platform
import shutil
from pathlib import Path

import pytest
import torch

from lrnnx_app.ops import _inside
from tests.helpers import ROOT

GPUS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120+PTX")
LEVELS = _inside.LEVELS["x86_64"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where kernels of a wheel for all targets lie, as empty files."""
    for target in (*LEVELS, *(f"cuda13-{name}" for name in GPUS)):
        (tmp_path / target).mkdir()
        (tmp_path / target / "linear_scan.so").touch()
    monkeypatch.setattr(_inside, "FOLDER", tmp_path)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    return tmp_path


@pytest.mark.parametrize("level", LEVELS)
def test_the_best_level_of_the_processor_is_taken(folder, level, monkeypatch):
    monkeypatch.setattr(_inside, "processor", lambda: f"flags : {LEVELS[level]} of_another_kind")
    assert _inside.library("cpu", "linear_scan") == (
        folder / level / "linear_scan.so",
        f"which came with lrnnx, for {level}",
    )


def test_a_processor_below_all_levels_has_none(folder, monkeypatch):
    monkeypatch.setattr(_inside, "processor", lambda: LEVELS["x86-64-v2"].replace("ssse3", ""))
    shutil.rmtree(folder / "x86-64-v4")
    assert _inside.library("cpu", "linear_scan") == (
        None,
        "what came with lrnnx is for x86-64-v3, x86-64-v2, which does not fit this machine",
    )


@pytest.mark.parametrize(
    ("gpus", "taken"),
    [
        ([80], "sm_80"),
        ([87], "sm_86"),  # and not sm_80, which asks for as much shared memory as there is
        ([86, 89], "sm_86"),
        ([90], "sm_90"),
        ([103], "sm_100"),
        ([121], "sm_120+PTX"),
        ([130], "sm_120+PTX"),  # translated
        ([75], None),
        ([80, 86], None),  # code of 8.0 asks for more shared memory than 8.6 has
        ([80, 90], None),
        ([110], None),
        ([], None),
    ],
)
def test_kernels_are_taken_that_all_gpus_run(folder, gpus, taken, monkeypatch):
    monkeypatch.setattr(_inside, "capabilities", lambda: gpus)
    path, why = _inside.library("cuda", "linear_scan")
    assert path == (folder / f"cuda13-{taken}" / "linear_scan.so" if taken else None)
    assert why.endswith(f"for cuda13-{taken}" if taken else "which does not fit this machine")


@pytest.mark.parametrize("cuda", ["12.8", None])
def test_kernels_of_a_later_cuda_than_that_of_torch_do_not_fit(folder, cuda, monkeypatch):
    monkeypatch.setattr(_inside, "capabilities", lambda: [90])
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert _inside.library("cuda", "linear_scan")[0] is None


def test_an_older_torch_than_the_kernels_need(folder, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    assert _inside.library("cpu", "linear_scan") == (None, "what came with lrnnx needs a later torch")


def test_a_checkout_has_none(monkeypatch):
    monkeypatch.setattr(_inside, "FOLDER", ROOT / "lrnnx_app" / "kernels")
    assert {_inside.library(device, "linear_scan") for device in ("cpu", "cuda")} == {(None, "")}
