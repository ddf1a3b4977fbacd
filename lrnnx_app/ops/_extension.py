"""Builds csrc/ at the first use of an operator, into the user's cache, and loads it.

A build that fails gives a warning, and torch code is used instead. `lrnnx docs kernels` lists the environment
variables that choose what is built, for which GPUs and where.

A build belongs to its sources, torch, compiler, processor and GPU architectures; if one changes, it is made
again. If several processes start at once, one builds while the others wait at a file lock. A library that
another user owns or may write to is not loaded.
"""

import contextlib
import functools
import hashlib
import logging
import mmap
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lrnnx_app.disk import atomic
from lrnnx_app.disk.cache import made, root
from lrnnx_app.errors import CacheError
from lrnnx_app.ops import rules

log = logging.getLogger("lrnnx")
_lock = threading.RLock()
_failures: dict[str, str] = {}
_loaded: dict[str, Path] = {}

# SIGTERM comes when the process that started this one ends; ninja hands it on to its compilers.
LAUNCH = """import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""
MARK = b"lrnnx rules: "  # comes before the list of rules that csrc/by_rule.h puts into a library
SHARED_KB = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 110: 227, 120: 99, 121: 99}


class BuildError(Exception):
    """A build failed; the message says why and what to do, in one line."""


def first_use(device: str) -> bool:
    """Load the kernels if that was not tried yet. True if this call made them available."""
    return device not in _loaded and load(device)


def without_kernels(
    library: torch.library.Library,
    name: str,
    run: Callable[..., Any],
    devices: Sequence[str] = ("cpu", "cuda"),
) -> None:
    """Let `run` be an operator where none of its kernels is registered.

    On `devices`, which have kernels, that is so until the first call, which builds and loads them, or if they
    cannot be loaded.
    """

    def anywhere(*arguments: Any) -> Any:
        device = next(x.device.type for x in arguments if isinstance(x, torch.Tensor))
        loaded = device in devices and first_use(device)
        return (getattr(torch.ops.lrnnx, name) if loaded else run)(*arguments)

    library.impl(name, anywhere, "CompositeExplicitAutograd")


def load(device: str) -> bool:
    """Load the kernels for "cpu" or "cuda", and build them first if necessary; False if that fails."""
    if device in _loaded:
        return True
    if device in _failures or device not in wanted():
        return False
    with _lock:
        if device not in _loaded and device not in _failures:
            try:
                library = build(device)
                check_rules(library)
                torch.ops.load_library(library)
                _loaded[device] = library
            except (BuildError, OSError) as error:
                _failures[device] = str(error)
                log.warning(
                    "%s kernels are not available, so operators run on slower torch code: %s",
                    device.upper(),
                    error,
                )
    return device in _loaded


def check_rules(library: Path) -> None:
    """Refuse a library whose rules of discretization have other numbers than in Python, before it is loaded.

    Raises:
        BuildError: the library lists other rules than `rules.RULES`.
    """
    with open(library, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        start = text.find(MARK) + len(MARK)
        built = text[start : text.find(b"\0", start)].decode().strip(", ") if start >= len(MARK) else "none"
    if built != rules.kernels():
        raise BuildError(
            f"its rules are {built}, those of lrnnx_app/ops/rules.py {rules.kernels()}; "
            "make csrc/rules.h list the same"
        )


def wanted() -> tuple[str, ...]:
    """The devices that LRNNX_BUILD allows kernels for."""
    choices = {"off": (), "cpu": ("cpu",), "cuda": ("cpu", "cuda")}
    return choices.get(os.environ.get("LRNNX_BUILD", "cuda"), ("cpu", "cuda"))


def status(device: str) -> str:
    """One line on the kernels of a device."""
    if device in _loaded:
        return f"loaded from {_loaded[device]}"
    if device not in wanted():
        return f"switched off by LRNNX_BUILD={os.environ['LRNNX_BUILD']}"
    return _failures.get(device, "not needed so far")


def build(device: str) -> Path:
    """The library for a device, from the cache or built now; raises BuildError if that fails."""
    commands = _commands(device)
    top, key, name = root(), f"{device}-{_key(device, commands)}", f"lrnnx_{device}.so"
    try:
        return (
            made(top, key, lambda part: _build_into(part, name, device, commands, top / f"{key}.log")) / name
        )
    except CacheError as error:
        raise BuildError(str(error)) from error


def _build_into(part: Path, name: str, device: str, commands: tuple[str, str], report: Path) -> None:
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
    (scratch / "build.ninja").write_text(_ninja_file(device, name, commands))
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


def _commands(device: str) -> tuple[str, str]:
    """Command lines that compile and link, without their inputs and outputs."""
    root = Path(torch.__file__).parent
    stable = f'-std=c++17 -DTORCH_TARGET_VERSION=0x020a000000000000 -isystem "{root / "include"}"'
    cxx = host_compiler()
    libraries = f'-L"{root / "lib"}" -ltorch_cpu -lc10 {_shared_runtime(cxx)}'
    if device == "cpu":
        native = "" if platform.machine() == "arm64" else "-march=native"
        undefined = "-undefined dynamic_lookup" if sys.platform == "darwin" else ""
        return (
            f'"{cxx}" -O3 -fno-math-errno -fno-trapping-math {native} -fPIC -fvisibility=hidden {stable}',
            f'"{cxx}" -shared $in -o $out {libraries} {undefined}',
        )
    nvcc, archs = find_nvcc(), architectures()
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    codes.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    shared = min(SHARED_KB.get(arch, 99) for arch in archs)
    host = f'-ccbin "{cxx}" -Xcompiler -fPIC,-fvisibility=hidden'
    flags = f"-O3 {host} {' '.join(codes)} -DUSE_CUDA -DLRNNX_SHARED_KB={shared}"
    return (
        f'"{nvcc}" {flags} -diag-suppress 20012,20013,20014,20015 {stable}',
        f'"{nvcc}" -ccbin "{cxx}" -shared $in -o $out {libraries} -ltorch_cuda -lc10_cuda',
    )


@functools.cache
def _shared_runtime(cxx: str) -> str:
    """Linker option for the shared C++ library, which torch uses.

    Some compilers link a static one instead. Torch could then not catch an exception of a kernel, which would
    end the process.
    """
    command = [cxx, "-print-file-name=libstdc++.so.6"]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return f'-Xlinker "{found}"' if os.path.isabs(found) else ""  # as g++ and nvcc both take it


def host_compiler() -> str:
    """The C++ compiler: the one that CXX names, or one on PATH."""
    named = os.environ.get("CXX", "")
    found = (
        shutil.which(named)
        if named
        else next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
    )
    if not found:
        raise BuildError(
            f"no C++ compiler {named or 'g++ or clang++'} on PATH; install one (apt install g++)"
        )
    return found


def find_nvcc() -> str:
    """CUDA's compiler: in CUDA_HOME, on PATH, in /usr/local/cuda, or in pip's nvidia packages."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    packages = Path(sysconfig.get_paths()["purelib"], "nvidia")
    candidates = [
        *(Path(home, "bin/nvcc") for home in homes if home),
        *map(Path, filter(None, [shutil.which("nvcc")])),
        Path("/usr/local/cuda/bin/nvcc"),
        *sorted(packages.glob("*/bin/nvcc")),
    ]
    for path in candidates:
        if path.exists():
            return str(path)
    raise BuildError("no CUDA compiler nvcc found; install the CUDA toolkit or set CUDA_HOME")


def architectures() -> list[int]:
    """Compute capabilities to build for, in ascending order; 90 is an H100."""
    if named := os.environ.get("LRNNX_ARCH"):
        return sorted(int(part.replace(".", "")) for part in named.split(";"))
    if not torch.cuda.is_available():
        return [80, 90]
    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return sorted(10 * major + minor for major, minor in found)


def ninja() -> str:
    """Path of ninja: in this Python's folder of scripts, which may not be on PATH, or on PATH."""
    beside = Path(sysconfig.get_path("scripts"), "ninja")
    found = str(beside) if beside.exists() else shutil.which("ninja")
    if not found:
        raise BuildError("no ninja found; pip install ninja")
    return found


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
        _processor() if device == "cpu" else "",
    ):
        digest.update(f"{text}\0".encode())
    for path in _sources(device):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def _processor() -> str:
    """The processor's instruction sets. -march=native uses them, and machines may share a home folder."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()
