"""Shared helpers of the tests."""

import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from lrnnx_app import cli
from lrnnx_app.ops import _extension

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread for each worker, and for what it starts
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


@cache
def compiles() -> bool:
    """Whether there is a C++ compiler that works, without which kernels cannot be built."""
    try:
        command = [_extension.host_compiler(), "-x", "c++", "-E", os.devnull]
    except _extension.BuildError:
        return False
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


if not compiles():  # what is said then is tested in test_extension; here it would be in every output
    os.environ["LRNNX_BUILD"] = "off"


@pytest.fixture(params=("cpu", "cuda") if torch.cuda.is_available() else ("cpu",))
def device(request):
    """A device whose kernels are loaded, if this machine can build them."""
    _extension.load(request.param)
    return request.param


def needs_kernels(device: str) -> None:
    """Skip a test about kernels where they are switched off; elsewhere they must load."""
    if device not in _extension.wanted():
        pytest.skip("kernels are switched off, as they are without a compiler")
    assert _extension.load(device), _extension.status(device)


SMALL = [
    "trainer.max_steps=3",
    "trainer.checkpoint_every=1",
    "trainer.log_every=1",
    "trainer.validate_every=1",
    "trainer.accelerator=cpu",
    "data.batch_size=2",
]
DENOISE = [
    "denoise_lru",
    *SMALL,
    "model.channels=[8,8]",
    "model.strides=[16,16]",
    "data.seconds=0.2",
    "data.examples_per_epoch=4",
    "data.mixtures=1",
]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    """‖value − expected‖ / ‖expected‖."""
    difference, size = (float(x.detach().norm()) for x in (value - expected, expected))
    return difference / max(size, 1e-300)


class Result(NamedTuple):
    code: int
    out: str
    error: str


@pytest.fixture
def lrnnx(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Run the command in this process."""

    def run(*words: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["lrnnx", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return Result(int(stop.value.code or 0), *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def trained(folder: Path, name: str, words: Sequence[str], seconds: float = 300) -> Path:
    """A run folder, trained once for the module by the real command, in so many seconds at most."""
    path = folder / name
    if not path.exists():
        command = [sys.executable, "-m", "lrnnx_app.cli", "train", *words, "-o", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        assert done.returncode == 0, done.stderr
        assert "Next: lrnnx" in done.stdout
    return path


@pytest.fixture(scope="session")
def denoiser(folder: Path) -> Path:
    return trained(folder, "denoiser", DENOISE)
