"""The compilers of this machine, and the command lines that they build csrc/ with."""

import functools
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch

OLDEST_TORCH = (2, 10)  # whose stable ABI csrc/ uses
SHARED_KB = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 110: 227, 120: 99, 121: 99}


class BuildError(Exception):
    """A build failed; the message says why and what to do, in one line."""


def commands(device: str, target: str = "") -> tuple[str, str]:
    """Command lines that compile and link, without their inputs and outputs.

    Args:
        device: "cpu" or "cuda".
        target: "" for this machine; for a wheel a level of processors, such as "x86-64-v3", or a kind of
            GPU, such as "sm_90", or "sm_120+PTX" for later ones too.
    """
    include, (major, minor) = Path(torch.__file__).parent / "include", OLDEST_TORCH
    stable = f'-std=c++17 -DTORCH_TARGET_VERSION=0x{major:02x}{minor:02x}{0:012x} -isystem "{include}"'
    cxx = host_compiler()
    if device == "cpu":
        native = "" if platform.machine() == "arm64" else f"-march={target or 'native'}"
        undefined = "-undefined dynamic_lookup" if sys.platform == "darwin" else ""
        return (
            f'"{cxx}" -O3 -fno-math-errno -fno-trapping-math {native} -fPIC -fvisibility=hidden {stable}',
            f'"{cxx}" -shared $in -o $out {_libraries(cxx, "torch_cpu c10", target)} {undefined}',
        )
    nvcc, archs = find_nvcc(), [int(re.sub(r"\D", "", target))] if target else architectures()
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    if not target or target.endswith("+PTX"):
        codes.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    shared = min(SHARED_KB.get(arch, 99) for arch in archs)
    host = f'-ccbin "{cxx}" -Xcompiler -fPIC,-fvisibility=hidden'
    flags = f"-O3 {host} {' '.join(codes)} -DUSE_CUDA -DLRNNX_SHARED_KB={shared}"
    flags += " --compress-mode=size" if target else ""  # less than half as large; nvcc has it from 12.8 on
    libraries = _libraries(cxx, "torch_cpu c10 torch_cuda c10_cuda", target)
    return (
        f'"{nvcc}" {flags} -diag-suppress 20012,20013,20014,20015 {stable}',
        f'"{nvcc}" -ccbin "{cxx}" -shared $in -o $out {libraries}',
    )


def _libraries(cxx: str, names: str, target: str) -> str:
    """Linker options for libraries of torch and for the C++ library.

    Those of torch are auxiliary to a library in a wheel: the dynamic linker takes the ones that torch has
    loaded, and auditwheel does not miss them.
    """
    folder = Path(torch.__file__).parent / "lib"
    for_all = "-Xlinker -s " + " ".join(f"-Xlinker -f -Xlinker lib{name}.so" for name in names.split())
    for_torch_here = f'-L"{folder}" ' + " ".join(f"-l{name}" for name in names.split())
    return f"{for_all if target else for_torch_here} {_shared_runtime(cxx)}"


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
    return capabilities() or [80, 90]


def capabilities() -> list[int]:
    """Compute capabilities of this machine's GPUs, in ascending order."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = {torch.cuda.get_device_capability(i) for i in range(count)}
    return sorted(10 * major + minor for major, minor in found)


def ninja() -> str:
    """Path of ninja: in this Python's folder of scripts, which may not be on PATH, or on PATH."""
    beside = Path(sysconfig.get_path("scripts"), "ninja")
    found = str(beside) if beside.exists() else shutil.which("ninja")
    if not found:
        raise BuildError("no ninja found; pip install ninja")
    return found
