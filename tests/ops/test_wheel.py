"""The build backend: a wheel with kernels holds a library for each target, and its tag is of this system."""

import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lrnnx_app.ops import _build, _compilers, _inside, _wheel
from tests.helpers import ROOT, compiles

NVCC = """#!/bin/sh
if [ $1 = --version ]; then echo "Cuda compilation tools, release 12.9, V12.9.86"
else echo sm_75 sm_80 sm_86 sm_100
fi
"""
on_linux = pytest.mark.skipif(
    sys.platform != "linux" or not compiles(), reason="wheels hold kernels for Linux only, by a compiler"
)
LEVELS = list(_inside.LEVELS.get(platform.machine(), {}))


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was asked to be built; each library is an empty one, and nvcc knows four kinds of GPU."""
    asked = []
    library, source, nvcc = tmp_path / "lrnnx.so", tmp_path / "empty.cpp", tmp_path / "nvcc"
    source.touch()
    nvcc.write_text(NVCC)
    nvcc.chmod(0o755)
    use = _compilers.commands("cpu", LEVELS[-1])
    command = [*use.link, "-fPIC", str(source), "-o", str(library), *use.libraries]
    subprocess.run(command, check=True)

    def build(device: str, names: tuple[str, ...], target: str) -> dict[str, Path]:
        asked.append((device, target))
        (tmp_path / target).mkdir()
        return {name: Path(shutil.copy(library, tmp_path / target / f"{name}.so")) for name in names}

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(_build, "build", build)
    monkeypatch.setattr(_compilers, "find_nvcc", lambda older: str(nvcc))
    monkeypatch.delenv("LRNNX_ARCH", raising=False)
    return asked


@on_linux
@pytest.mark.parametrize("kernels", ["cpu,cuda", ["cpu", "cuda"]], ids=str)
def test_a_wheel_holds_kernels_for_each_target(kernels, made, tmp_path):
    name = _wheel.build_wheel(str(tmp_path), {"kernels": kernels})
    names = zipfile.ZipFile(tmp_path / name).namelist()
    assert name.startswith("lrnnx_app-0.1.0-py3-none-manylinux")  # nothing of torch is missed
    assert name.endswith(f"_{platform.machine()}.whl")
    gpus = ["sm_80", "sm_86", "sm_100+PTX"]
    assert made == [*(("cpu", level) for level in LEVELS), *(("cuda", gpu) for gpu in gpus)]
    folders = {*LEVELS, *(f"cuda12-{gpu}" for gpu in gpus)}
    held = {name for name in names if name.startswith("lrnnx_app/kernels/") and name[-1] != "/"}
    assert held == {
        f"lrnnx_app/kernels/{folder}/{name}.so"
        for folder in folders
        for name in _build.libraries("cuda" if folder.startswith("cuda") else "cpu")
    }
    assert list(tmp_path.glob("*.whl")) == [tmp_path / name]
    assert "lrnnx_app/csrc/check.h" in names


@on_linux
def test_gpus_can_be_named(made, monkeypatch):
    monkeypatch.setenv("LRNNX_ARCH", "9.0")
    assert {Path(path).parent.name for path, _ in _wheel._built("cuda")} == {"cuda12-sm_90+PTX"}


@on_linux
def test_a_build_that_fails_makes_no_wheel(made, tmp_path, monkeypatch):
    failed = _compilers.BuildError("the compiler failed")
    monkeypatch.setattr(_build, "build", lambda device, names, target: {names[0]: failed})
    with pytest.raises(_compilers.BuildError, match="the compiler failed"):
        _wheel.build_wheel(str(tmp_path), {"kernels": "cpu"})
    assert not list(tmp_path.glob("*.whl"))


@on_linux
def test_nothing_is_compiled_without_the_setting(made, tmp_path):
    assert _wheel.build_wheel(str(tmp_path)) == "lrnnx_app-0.1.0-py3-none-any.whl"
    assert made == []


def test_what_a_build_needs():
    assert not any("torch" in each for each in _wheel.get_requires_for_build_wheel())
    if sys.platform == "linux":
        assert "torch>=2.11" in _wheel.get_requires_for_build_wheel({"kernels": "cuda"})


@pytest.mark.parametrize("kernels", ["gpu", "cpu,", "cpu cuda"])
def test_other_kernels_are_refused_in_one_line(kernels):
    with pytest.raises(SystemExit, match=f"kernels={kernels}: there are kernels for cpu and cuda") as caught:
        _wheel.build_wheel("", {"kernels": kernels})
    assert "\n" not in str(caught.value)


@on_linux
def test_a_missing_tool_is_told_before_anything_is_built(made, tmp_path, monkeypatch):
    monkeypatch.setattr(_wheel, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"kernels: auditwheel is missing; pip install"):
        _wheel.build_wheel(str(tmp_path), {"kernels": "cpu"})
    assert not made
