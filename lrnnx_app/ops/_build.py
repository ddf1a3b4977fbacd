"""Builds csrc/ into the user's cache.

A build belongs to its sources, torch, compiler, processor and GPU architectures; if one changes, it is made
again. If several processes start at once, one builds while the others wait at a file lock. A library that
another user owns or may write to is refused.
"""

import contextlib
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from lrnnx_app.disk import atomic
from lrnnx_app.disk.cache import made, root
from lrnnx_app.errors import CacheError
from lrnnx_app.ops._compilers import BuildError, commands, ninja

# SIGTERM comes when the process that started this one ends; ninja hands it on to its compilers.
LAUNCH = """import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def build(device: str, target: str = "") -> Path:
    """The library for a device, from the cache or built now; see `_compilers.commands`.

    Raises:
        BuildError: that fails.
    """
    lines = commands(device, target)
    top, key, name = root(), f"{device}-{_key(device, lines)}", f"lrnnx_{device}.so"
    try:
        return made(top, key, lambda part: _build_into(part, name, device, lines, top / f"{key}.log")) / name
    except CacheError as error:
        raise BuildError(str(error)) from error


def _build_into(part: Path, name: str, device: str, lines: tuple[str, str], report: Path) -> None:
    """Compile in a folder within `part`, and leave only the library in `part`."""
    started = time.monotonic()
    print(
        f"lrnnx: building {device.upper()} kernels, once for this machine ...",
        end="",
        file=sys.stderr,
        flush=True,
    )
    scratch = part / "objects"
    scratch.mkdir()
    (scratch / "build.ninja").write_text(_ninja_file(device, name, lines))
    code, said = _run([ninja(), "-C", str(scratch)], scratch)
    if code:
        print(" failed", file=sys.stderr)
        atomic.write(report, said)
        raise BuildError(f"the compiler failed, see {report}; check it with `lrnnx doctor --build`")
    shutil.move(scratch / name, part / name)
    shutil.rmtree(scratch)
    print(f" done in {time.monotonic() - started:.0f} s", file=sys.stderr)


def _run(command: Sequence[str], scratch: Path) -> tuple[int, str]:
    """Run ninja; returns its exit code and output. If this process ends, ninja and its compilers end too.

    Compilers put their temporary files into `scratch`, so that a killed build leaves nothing elsewhere.
    """
    launch = [sys.executable, "-I", "-S", "-c", LAUNCH, str(os.getpid()), *command]
    with subprocess.Popen(
        launch,
        env={**os.environ, "TMPDIR": str(scratch)},
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            said, _ = process.communicate()
        except BaseException:
            process.terminate()
            raise
    return process.returncode, said


def _ninja_file(device: str, name: str, commands: tuple[str, str]) -> str:
    compile_command, link_command = commands
    sources = [path for path in _sources(device) if path.suffix in (".cpp", ".cu")]
    objects = {path: path.relative_to(source_root()).as_posix().replace("/", "_") + ".o" for path in sources}
    lines = [
        "rule compile",
        f"  command = {compile_command} -c $in -o $out",
        "rule link",
        f"  command = {link_command}",
        *(f"build {obj}: compile {_escape(path)}" for path, obj in objects.items()),
        f"build {name}: link {' '.join(objects.values())}",
    ]
    return "\n".join(lines) + "\n"


def _escape(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def source_root() -> Path:
    """csrc inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    return next(
        (path for path in (package / "csrc", package.parent / "csrc") if path.is_dir()), package / "csrc"
    )


def _sources(device: str) -> list[Path]:
    root = source_root()
    shared = (path for path in root.iterdir() if path.suffix == ".h")
    return sorted(path for path in (*shared, *(root / device).rglob("*")) if path.is_file())


def _key(device: str, commands: tuple[str, str]) -> str:
    digest = hashlib.sha256()
    version = ".".join(torch.__version__.split(".")[:2])
    for text in (
        *commands,
        version,
        torch.version.cuda,
        platform.machine(),
        processor() if device == "cpu" else "",
    ):
        digest.update(f"{text}\0".encode())
    for path in _sources(device):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def processor() -> str:
    """The processor's instruction sets. -march=native uses them, and machines may share a home folder."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()
