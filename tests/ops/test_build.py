"""What a build compiles, what it keeps when it is ended, what it shows, and which nvcc it takes."""

import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lrnnx_app.ops import _build, _compilers
from lrnnx_app.ops._ninja import Progress
from lrnnx_app.ops._table import OPERATORS

# Notes the files that it has compiled. One whose name begins with "slow" takes a minute.
FAKE = """#!/bin/sh
case $1 in -print-file-name=*) exit;; esac
while [ $# -gt 0 ]; do
  case $1 in -o) out=$2; shift;; -c) source=$2; shift;; -shared) source=link;; esac
  shift
done
case $source in */slow*) test -e "{folder}/fast" || sleep 60;; esac
echo compiled > "$out"
echo "$(basename $source)" >> "{folder}/compiled"
"""
PROGRAM = """
import sys
from pathlib import Path
from lrnnx_app.ops import _build
_build.source_root = lambda: Path(sys.argv[1])
found = _build.build("cpu", ["many"])["many"]
assert found.read_text() == "compiled\\n"
"""


class Bench:
    """A folder with sources, a compiler that only notes what it compiles, and a cache."""

    def __init__(self, place: Path) -> None:
        self.place, self.cache = place, place / "cache"
        (place / "csrc/cpu/instances/many").mkdir(parents=True)
        for name in ("many", "instances/many/one", "instances/many/slow", "other"):
            (place / f"csrc/cpu/{name}.cpp").write_text('#include "shared.h"\n')
        (place / "csrc/cpu/instances/many/shared.h").write_text("")
        (place / "csrc/cpu/shared.h").write_text("")
        (place / "cxx").write_text(FAKE.format(folder=place))
        (place / "cxx").chmod(0o755)

    def start(self, stderr: int = subprocess.PIPE) -> "subprocess.Popen[str]":
        environment = {**os.environ, "CXX": str(self.place / "cxx"), "LRNNX_CACHE": str(self.cache)}
        command = [sys.executable, "-c", PROGRAM, str(self.place / "csrc")]
        return subprocess.Popen(command, env=environment, stderr=stderr, text=True)

    def wait_for(self, *names: str) -> None:
        """Wait until these are compiled and kept."""
        deadline = time.monotonic() + 60
        while not all([*self.cache.glob(f"kernels/*.parts/{name}.o")] for name in names):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def finish(self) -> str:
        """Build to the end; returns lines that tell of an error."""
        process = self.start()
        _, said = process.communicate(timeout=30)
        return said if process.returncode else ""

    def compiled(self) -> list[str]:
        """What was compiled since the last call."""
        notes = self.place / "compiled"
        lines = sorted(notes.read_text().split()) if notes.exists() else []
        notes.unlink(missing_ok=True)
        return lines

    def hurry(self) -> None:
        (self.place / "fast").touch()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no signal tells of a parent's end")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_build_that_is_ended_keeps_what_it_compiled(bench: Bench, end: signal.Signals) -> None:
    process = bench.start()
    bench.wait_for("many", "one")
    process.send_signal(end)
    _, said = process.communicate(timeout=30)
    assert process.returncode
    assert bench.compiled() == ["many.cpp", "one.cpp"]
    assert ("the next start" in said) == (end == signal.SIGINT)
    bench.hurry()
    assert bench.finish() == ""
    assert bench.compiled() == ["link", "slow.cpp"]
    assert not [path for path in bench.cache.rglob("*") if ".parts" in path.name or "building-" in path.name]


def test_a_kept_file_that_was_cut_is_compiled_again(bench: Bench) -> None:
    process = bench.start()
    bench.wait_for("many", "one")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    bench.compiled()
    os.truncate(next(bench.cache.rglob("*.parts/one.o")), 0)
    bench.hurry()
    assert bench.finish() == ""
    assert bench.compiled() == ["link", "one.cpp", "slow.cpp"]


def test_what_no_build_goes_on_with_is_removed_after_a_week(bench: Bench) -> None:
    old, young = (bench.cache / f"kernels/cpu-{name}-0.parts" for name in ("old", "young"))
    for folder, age in ((old, 8), (young, 6)):
        folder.mkdir(0o700, parents=True)
        (folder / "one.o").touch()
        os.utime(folder, (0, time.time() - age * 24 * 3600))
    for folder in (bench.cache, bench.cache / "kernels"):
        folder.chmod(0o700)
    bench.hurry()
    assert bench.finish() == ""
    assert not old.exists()
    assert young.exists()


def test_a_change_makes_only_libraries_again_that_include_it(bench: Bench, monkeypatch) -> None:
    monkeypatch.setattr(_build, "source_root", lambda: bench.place / "csrc")
    monkeypatch.setenv("CXX", str(bench.place / "cxx"))
    monkeypatch.setenv("LRNNX_CACHE", str(bench.cache))
    assert _build.libraries("cpu") == ("many", "other")
    bench.hurry()

    def made() -> list[str]:
        assert all(isinstance(path, Path) for path in _build.build("cpu", ["many", "other"]).values())
        return bench.compiled()

    assert len(made()) == 6
    assert made() == []
    (bench.place / "csrc/cpu/instances/many/shared.h").write_text("// changed\n")
    assert made() == ["link", "many.cpp", "one.cpp", "slow.cpp"]
    (bench.place / "csrc/cpu/other.cpp").write_text("// changed\n")
    assert made() == ["link", "other.cpp"]
    (bench.place / "csrc/cpu/shared.h").write_text("// changed\n")
    assert made() == ["link", "many.cpp", "one.cpp", "slow.cpp"]  # other.cpp includes it no more


def test_a_terminal_sees_one_line_that_is_rewritten(bench: Bench) -> None:
    ours, theirs = pty.openpty()
    bench.hurry()
    process = bench.start(theirs)
    os.close(theirs)
    said = b""
    try:
        while part := os.read(ours, 1000):
            said += part
    except OSError:  # as Linux says that the other end is closed
        pass
    os.close(ours)
    assert process.wait(30) == 0, said.decode()
    *before, last = said.decode().rstrip("\r\n").split("\r")
    assert said.count(b"\n") == 1
    assert "CPU kernels of many: done after" in last
    assert any("of 4 files" in line for line in before)


def test_seconds_left_are_of_files_made_and_run_down(monkeypatch) -> None:
    clock = iter([100.0, 105.0, 110.0, 112.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    progress = Progress("CUDA kernels")
    progress.expect(13)
    for found in (True, True, True, False, False):
        progress.done(found)
    assert progress.line() == "lrnnx: building CUDA kernels: 5 of 13 files, about 38 s left"


def test_an_operator_with_kernels_has_a_library_of_its_name() -> None:
    for device in ("cpu", "cuda"):
        assert set(_build.libraries(device)) == {
            name for name, operator in OPERATORS.items() if device in operator.kernels
        }
    instances = (_build.source_root() / "cuda/instances").iterdir()
    assert {path.name for path in instances} < set(_build.libraries("cuda"))


@pytest.fixture
def nvccs(tmp_path: Path, monkeypatch) -> Path:
    """A folder pip/nvidia/cu13 and a folder path, without compilers; torch is built with CUDA 13.2."""
    (tmp_path / "pip/nvidia/cu13/bin").mkdir(parents=True)
    (tmp_path / "path").mkdir()
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    which = shutil.which
    monkeypatch.setattr(
        shutil, "which", lambda name: which(name, path=None if name != "nvcc" else tmp_path / "path")
    )
    monkeypatch.setattr(_compilers, "TOOLKIT", tmp_path / "none")
    monkeypatch.setattr(_compilers, "_packages", lambda: [tmp_path / "pip/nvidia"])
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    return tmp_path


def nvcc(path: Path, release: str) -> str:
    path.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.1'\n")
    path.chmod(0o755)
    return str(path)


def test_without_nvcc_the_line_for_pip_is_named(nvccs: Path, monkeypatch) -> None:
    with pytest.raises(
        _compilers.BuildError,
        match=r'no CUDA compiler .* pip install "cuda-toolkit\[nvcc,cccl\]==13\.2\.\*" \(.* min',
    ):
        _compilers.find_nvcc()
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    with pytest.raises(_compilers.BuildError, match=r"install the CUDA toolkit 12\.8"):
        _compilers.find_nvcc()
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(_compilers.BuildError, match="is built without CUDA"):
        _compilers.find_nvcc()


def test_an_nvcc_of_another_version_is_not_taken(nvccs: Path) -> None:
    nvcc(nvccs / "path/nvcc", "12.4")
    with pytest.raises(
        _compilers.BuildError, match=r'nvcc is of CUDA 12\.4.* with CUDA 13\.2; pip install "cuda'
    ):
        _compilers.find_nvcc()
    assert _compilers.find_nvcc(older=True) == str(nvccs / "path/nvcc")
    of_pip = nvcc(nvccs / "pip/nvidia/cu13/bin/nvcc", "13.2")
    assert _compilers.find_nvcc() == of_pip


def test_libraries_of_pip_are_found_by_the_linker(nvccs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", sys.executable)  # no compiler is asked for
    nvcc(nvccs / "pip/nvidia/cu13/bin/nvcc", "13.2")
    own = nvccs / "pip/nvidia/cu13/lib"
    assert f"-L{own}" not in _compilers.commands("cuda").libraries
    own.mkdir()
    (own / "libcudart_static.a").touch()
    assert f"-L{own}" in _compilers.commands("cuda").libraries
