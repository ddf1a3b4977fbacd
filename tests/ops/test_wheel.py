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
    link = _compilers.commands("cpu", LEVELS[-1])[1] + " -fPIC"
    subprocess.run(link.replace("$in", str(source)).replace("$out", str(library)), shell=True, check=True)

    def build(device: str, target: str) -> Path:
        asked.append((device, target))
        return Path(shutil.copy(library, tmp_path / f"{target}.so"))

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(_build, "build", build)
    monkeypatch.setattr(_compilers, "find_nvcc", lambda: str(nvcc))
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
    held = {name.split("/")[2] for name in names if name.startswith("lrnnx_app/kernels/") and name[-1] != "/"}
    assert held == folders
    assert list(tmp_path.glob("*.whl")) == [tmp_path / name]
    assert "lrnnx_app/csrc/check.h" in names


@on_linux
def test_gpus_can_be_named(made, monkeypatch):
    monkeypatch.setenv("LRNNX_ARCH", "9.0")
    assert [path for path, _ in _wheel._built("cuda")] == ["lrnnx_app/kernels/cuda12-sm_90+PTX/sm_90+PTX.so"]


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
