"""Fixtures that tests of several folders use."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

import jinja2
import pytest
import torch

from lrnnx_app import cli
from lrnnx_app.ops import _extension, _inside
from tests.helpers import DENOISE, compiles, trained

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread for each worker, and for what it starts
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


# What is said without kernels is tested in test_extension; here it would be in every output.
if not compiles() and not _inside.library("cpu", "linear_scan")[0]:
    os.environ["LRNNX_BUILD"] = "off"


@pytest.fixture(autouse=True, scope="module")
def _what_stays_is_not_walked_again() -> None:
    """Packages and collected tests, which else each full pass of the garbage collector walks."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Workers get neighbours, which share fixtures; one that is done takes half of what another has left."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getoption("dist") == "load" else None


@pytest.fixture(autouse=True, scope="session")
def _templates_are_compiled_once() -> Iterator[None]:
    """Those of emx-onnx-cgen, which compiles all 169 anew for each export, half of whose time that is."""
    compiled, codes = jinja2.Environment.compile, dict[tuple[str, str | None], CodeType]()

    def once(self: jinja2.Environment, source: str, name: str | None = None, *rest: Any) -> Any:
        if (source, name) not in codes:
            codes[source, name] = compiled(self, source, name, *rest)
        return codes[source, name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jinja2.Environment, "compile", once)
        yield


@pytest.fixture(params=("cpu", "cuda") if torch.cuda.is_available() else ("cpu",))
def device(request):
    """A device whose kernels are loaded, if this machine can build them."""
    _extension.load(request.param)
    return request.param


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


class Result(NamedTuple):
    code: int
    out: str
    error: str

    def done(self) -> "Result":
        """The command has done its work."""
        assert self.code == 0, self
        return self

    def refuses(self, *words: object) -> None:
        """The command has said in one line what is wrong, with these words, and nothing else."""
        assert self.code == 2, self
        assert self.error.startswith("error: "), self
        assert self.error.count("\n") == 1, self
        assert [word for word in words if str(word) not in self.error] == [], self


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


@pytest.fixture(scope="session")
def denoiser(folder: Path) -> Path:
    return trained(folder, "denoiser", DENOISE)
