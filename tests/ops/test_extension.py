"""Building csrc: once for all processes, found again, switched off, and harmless when it fails."""

import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lrnnx_app.ops import _build, _compilers, _extension, _inside, rules
from tests.helpers import compiles

PROGRAM = """
from pathlib import Path
import torch
from lrnnx_app.ops import _extension, _inside
_inside.FOLDER = Path("none")  # so that kernels are built, whatever came with lrnnx
from lrnnx_app.ops.linear_scan import linear_scan
states, _ = linear_scan(torch.full((1, 3, 2), 0.5), torch.ones(1, 3, 2))
assert states[0, :, 0].tolist() == [1.0, 1.5, 1.75]
assert set(_extension._loaded) <= {("cpu", "linear_scan")}, "others were not asked for"
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


FAKE = """#!/bin/sh
case $1 in -print-file-name=*) exit;; esac
echo $$ >> "{folder}/started"
out= shared=
while [ $# -gt 0 ]; do
  case $1 in -o) out=$2; shift;; -shared) shared=1;; esac
  shift
done
sleep {seconds}
if [ $shared ]; then exec g++ -shared -fPIC "{folder}/empty.cpp" -o "$out"; fi
: > "$out"
"""


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """A cache of one's own, and a compiler that makes an empty library, after so many seconds."""

    def make(seconds=0):
        compiler = tmp_path / "cxx"
        compiler.write_text(FAKE.format(folder=tmp_path, seconds=seconds))
        compiler.chmod(0o755)

    make()
    (tmp_path / "empty.cpp").write_text(f'extern "C" const char listed[] = "lrnnx rules: {rules.kernels()}";')
    monkeypatch.setenv("CXX", str(tmp_path / "cxx"))
    monkeypatch.setenv("LRNNX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LRNNX_BUILD", "cpu")
    monkeypatch.setattr(_extension, "_loaded", {})
    monkeypatch.setattr(_extension, "_failures", {})
    monkeypatch.setattr(_extension, "_words", {})
    monkeypatch.setattr(_inside, "FOLDER", tmp_path / "kernels")
    return make


def build() -> Path:
    """The library of the linear scan."""
    library = _build.build("cpu", ["linear_scan"])["linear_scan"]
    assert isinstance(library, Path), library
    return library


@needs_compiler
@pytest.mark.parametrize("size", [0, 1000])
def test_a_library_that_lost_its_end_is_built_again(quick, size, capfd):
    library = build()
    whole = library.read_bytes()
    os.truncate(library, size)
    assert build().read_bytes() == whole
    assert capfd.readouterr().err.count("building CPU kernels") == 2
    assert build() == library
    assert capfd.readouterr().err == ""


@needs_compiler
@pytest.mark.parametrize("place", ["cache", "kernels", "folder", "library"])
def test_a_library_that_others_may_write_is_not_loaded(quick, place, caplog):
    library = build()
    {
        "cache": library.parents[2],
        "kernels": library.parents[1],
        "folder": library.parent,
        "library": library,
    }[place].chmod(0o777)
    assert not _extension.load("cpu", "linear_scan")
    assert not _extension.load("cpu", "linear_scan")
    assert "may be written by others" in _extension.status("cpu")
    assert len(caplog.records) == 1
    assert "slower torch code" in caplog.text


def build_and(end, tmp_path):
    """A process that builds, ended by a signal while its compilers run; returns what it said."""
    program = 'from lrnnx_app.ops import _build as b; b.build("cpu", ["linear_scan"])'
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(end)
    return process.communicate(timeout=30)[1]


def runs(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no signal tells of a parent's end")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_build_that_is_ended_leaves_no_compilers_and_no_folders(quick, tmp_path, end):
    quick(30)
    build_and(end, tmp_path)
    compilers = [int(line) for line in (tmp_path / "started").read_text().split()]
    assert compilers
    deadline = time.monotonic() + 10
    while any(map(runs, compilers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(runs, compilers))
    quick(0)
    build()
    assert not list((tmp_path / "cache").rglob("building-*"))


@needs_compiler
def test_two_processes_build_once_and_a_third_finds_it(tmp_path):
    cache, quick = tmp_path / "cache", tmp_path / "cxx"  # which optimizes nothing, in a third of the time
    quick.write_text(f'#!/bin/sh\nexec "{_compilers.host_compiler()}" "$@" -O0\n')
    quick.chmod(0o755)
    one, other = (start(cache, CXX=str(quick)) for _ in range(2))
    both = finish(one), finish(other)
    assert all("loaded from" in out for out, _ in both)
    assert sum("building CPU kernels" in err for _, err in both) == 1
    out, err = finish(start(cache, CXX=str(quick)))
    assert "loaded from" in out
    assert err == ""
    assert [path.suffix for path in sorted((cache / "kernels").iterdir())] == ["", ".lock"]


def test_broken_compiler_warns_once_and_runs_anyway(tmp_path):
    compiler = tmp_path / "bad-cxx"
    compiler.write_text("#!/bin/sh\necho no such luck >&2; exit 1\n")
    compiler.chmod(0o755)
    out, err = finish(start(tmp_path / "cache", CXX=str(compiler)))
    assert "the compiler failed" in out
    assert err.count("CPU kernels of linear_scan are not available") == 1
    report = next((tmp_path / "cache").rglob("*.log"))
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
    assert (_build.source_root() / "cpu" / "linear_scan.cpp").is_file()


@needs_compiler
@pytest.mark.parametrize("listed", ["", "lrnnx rules: 0 zoh, 1 dirac, "])
def test_kernels_that_number_other_rules_are_refused(listed, quick, tmp_path, monkeypatch, caplog):
    (tmp_path / "empty.cpp").write_text(f'extern "C" const char listed[] = "{listed}";')
    for name in ("_loaded", "_failures"):
        monkeypatch.setattr(_extension, name, {})
    monkeypatch.setattr(torch.ops, "load_library", lambda path: pytest.fail("it was loaded"))
    assert not _extension.load("cpu", "discretized_scan")
    (line,) = caplog.messages
    assert "\n" not in line
    assert (
        f"its rules are {listed[13:-2] or 'none'}, those of lrnnx_app/ops/rules.py {rules.kernels()}" in line
    )


def test_architectures_can_be_named(monkeypatch):
    monkeypatch.setenv("LRNNX_ARCH", "9.0;8.0")
    assert _compilers.architectures() == [80, 90]


@pytest.fixture
def brought(quick, tmp_path, monkeypatch):
    """A library that came in a wheel and fits this machine."""
    library = tmp_path / "kernels" / "linear_scan.so"
    library.parent.mkdir()
    shutil.copy(build(), library)
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(_inside, "library", lambda device, name: (library, "which came with lrnnx"))
    return library


@needs_compiler
def test_what_came_in_a_wheel_is_loaded_and_nothing_is_built(brought, tmp_path):
    assert _extension.load("cpu", "linear_scan")
    assert _extension.status("cpu").endswith(
        f"; linear_scan: loaded from {brought.parent}, which came with lrnnx"
    )
    assert not (tmp_path / "cache").exists()


@needs_compiler
def test_a_build_takes_the_place_of_what_does_not_load(brought, tmp_path):
    brought.write_bytes(brought.read_bytes().replace(b"lrnnx rules: 0", b"lrnnx rules: 9"))
    assert _extension.load("cpu", "linear_scan")
    assert f", built here, as {brought} does not load: its rules are 9 " in _extension.status("cpu")


@needs_compiler
def test_without_a_compiler_it_is_said_why_what_came_in_a_wheel_was_not_taken(brought, monkeypatch, caplog):
    brought.write_bytes(b"torn")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not _extension.load("cpu", "linear_scan")
    assert "; linear_scan: no C++ compiler no-such-compiler on PATH" in _extension.status("cpu")
    assert f"{brought} does not load" in caplog.text
    assert "\n" not in caplog.messages[0]


@needs_compiler
def test_what_came_in_a_wheel_is_switched_off_too(brought, monkeypatch):
    monkeypatch.setenv("LRNNX_BUILD", "off")
    assert not _extension.load("cpu", "linear_scan")
    assert _extension.status("cpu") == "switched off by LRNNX_BUILD=off"


@needs_compiler
@pytest.mark.parametrize("target", ["", next(reversed(_inside.LEVELS.get(platform.machine(), {"": ""})))])
def test_an_exception_of_a_kernel_reaches_torch_where_static_libraries_are_preferred(
    target: str, tmp_path: Path
) -> None:
    compiler = tmp_path / "static-g++"
    compiler.write_text(f'#!/bin/sh\nexec "{_compilers.host_compiler()}" -static-libstdc++ "$@"\n')
    compiler.chmod(0o755)
    source = tmp_path / "raises.cpp"
    source.write_text(
        "#include <torch/csrc/stable/library.h>\n#include <torch/headeronly/util/Exception.h>\n"
        'int64_t raises(int64_t x) { STD_TORCH_CHECK(x > 0, "x must be positive"); return x; }\n'
        'STABLE_TORCH_LIBRARY(raising, m) { m.def("raises(int x) -> int"); }\n'
        "STABLE_TORCH_LIBRARY_IMPL(raising, CompositeExplicitAutograd, m) "
        '{ m.impl("raises", TORCH_BOX(&raises)); }\n'
    )
    program = (
        "import os, subprocess, sys, torch\nfrom lrnnx_app.ops import _compilers\n"
        f"use = _compilers.commands('cpu', {target!r})\n"
        "subprocess.run([*use.compile, '-c', 'raises.cpp', '-o', 'raises.o'], check=True)\n"
        "subprocess.run([*use.link, 'raises.o', '-o', 'raises.so', *use.libraries], check=True)\n"
        "torch.ops.load_library(os.path.abspath('raises.so'))\n"
        "try: torch.ops.raising.raises(-1)\nexcept RuntimeError as error: print(error)\n"
    )
    environment = {**os.environ, "CXX": str(compiler), "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "x must be positive" in done.stdout
