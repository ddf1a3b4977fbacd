"""Building csrc: once for all processes, found again, switched off, and harmless when it fails."""

import os
import subprocess
import sys

import pytest

from lrnnx_app.ops import _extension
from tests.conftest import compiles

PROGRAM = """
import torch
from lrnnx_app.ops import _extension
from lrnnx_app.ops.linear_scan import linear_scan
states, _ = linear_scan(torch.full((1, 3, 2), 0.5), torch.ones(1, 3, 2))
assert states[0, :, 0].tolist() == [1.0, 1.5, 1.75]
print(_extension.status("cpu"))
"""

needs_compiler = pytest.mark.skipif(
    not compiles(), reason="this machine has no C++ compiler, or none that works"
)


def start(cache, **variables):
    environment = {
        **os.environ,
        "LRNNX_CACHE": str(cache),
        "LRNNX_BUILD": "cpu",
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out, err


@needs_compiler
def test_two_processes_build_once_and_a_third_finds_it(tmp_path):
    both = [finish(process) for process in [start(tmp_path), start(tmp_path)]]
    assert all("loaded from" in out for out, _ in both)
    assert sum("building CPU kernels" in err for _, err in both) == 1
    out, err = finish(start(tmp_path))
    assert "loaded from" in out
    assert err == ""
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == ["", ".lock"]


def test_broken_compiler_warns_once_and_runs_anyway(tmp_path):
    compiler = tmp_path / "bad-cxx"
    compiler.write_text("#!/bin/sh\necho no such luck >&2; exit 1\n")
    compiler.chmod(0o755)
    out, err = finish(start(tmp_path / "cache", CXX=str(compiler)))
    assert "the compiler failed" in out
    assert err.count("CPU kernels are not available") == 1
    report = next((tmp_path / "cache").glob("*.log"))
    assert "no such luck" in report.read_text()


def test_missing_compiler_is_named(tmp_path):
    out, err = finish(start(tmp_path, CXX="no-such-compiler"))
    assert "no C++ compiler no-such-compiler" in out
    assert "slower torch code" in err


def test_switched_off(tmp_path):
    out, err = finish(start(tmp_path, LRNNX_BUILD="off"))
    assert "switched off by LRNNX_BUILD=off" in out
    assert err == ""
    assert not any(tmp_path.iterdir())


def test_sources_are_found():
    assert (_extension.source_root() / "cpu" / "linear_scan.cpp").is_file()


def test_architectures_can_be_named(monkeypatch):
    monkeypatch.setenv("LRNNX_ARCH", "9.0;8.0")
    assert _extension.architectures() == [80, 90]
