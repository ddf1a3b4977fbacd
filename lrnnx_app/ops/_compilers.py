"""The compilers of this machine, and the command lines that they build csrc/ with."""

import functools
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from lrnnx_app.ops._ninja import processors

OLDEST_TORCH = (2, 10)  # whose stable ABI csrc/ uses
SHARED_KB = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 110: 227, 120: 99, 121: 99}
TOOLKIT = Path("/usr/local/cuda")
CORE_SECONDS = 650  # for all CUDA kernels and one architecture


class BuildError(Exception):
    """A build failed; the message says why and what to do, in one line."""


class Commands(NamedTuple):
    """Command lines: compile … -c SOURCE -o OBJECT, and link … OBJECTS -o LIBRARY libraries …"""

    compile: list[str]
    link: list[str]
    libraries: list[str]


def commands(device: str, target: str = "") -> Commands:
    """How to compile and link.

    Args:
        device: "cpu" or "cuda".
        target: "" for this machine; for a wheel a level of processors, such as "x86-64-v3", or a kind of
            GPU, such as "sm_90", or "sm_120+PTX" for later ones too.

    Raises:
        BuildError: a compiler is missing.
    """
    include, (major, minor) = Path(torch.__file__).parent / "include", OLDEST_TORCH
    version = f"-DTORCH_TARGET_VERSION=0x{major:02x}{minor:02x}{0:012x}"
    stable = ["-std=c++17", version, "-isystem", str(include)]
    cxx = host_compiler()
    if device == "cpu":
        native = [] if platform.machine() == "arm64" else [f"-march={target or 'native'}"]
        undefined = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
        flags = ["-O3", "-fno-math-errno", "-fno-trapping-math", *native, "-fPIC", "-fvisibility=hidden"]
        libraries = _libraries(cxx, ["torch_cpu", "c10"], target)
        return Commands([cxx, *flags, *stable], [cxx, "-shared"], [*libraries, *undefined])
    nvcc, archs = find_nvcc(bool(target)), [int(re.sub(r"\D", "", target))] if target else architectures()
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    if not target or target.endswith("+PTX"):
        codes.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    shared = min(SHARED_KB.get(arch, 99) for arch in archs)
    flags = ["-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-DUSE_CUDA", f"-DLRNNX_SHARED_KB={shared}"]
    flags += ["--compress-mode=size"] if target else []  # less than half as large; nvcc has it from 12.8 on
    quiet = ["-diag-suppress", "20012,20013,20014,20015"]
    own = Path(nvcc).parents[1] / "lib"  # of pip's packages, where nvcc looks for lib64
    cudart = [f"-L{own}"] if (own / "libcudart_static.a").exists() else []
    return Commands(
        [nvcc, "-ccbin", cxx, *flags, *codes, *quiet, *stable],
        [nvcc, "-ccbin", cxx, "-shared"],
        [*_libraries(cxx, ["torch_cpu", "c10", "torch_cuda", "c10_cuda"], target), *cudart],
    )


def _libraries(cxx: str, names: list[str], target: str) -> list[str]:
    """Linker options for libraries of torch and for the C++ library.

    Those of torch are auxiliary to a library in a wheel: the dynamic linker takes the ones that torch has
    loaded, and auditwheel does not miss them.
    """
    if target:
        auxiliary = (("-f", f"lib{name}.so") for name in names)
        found = [word for each in ("-s", *sum(auxiliary, ())) for word in ("-Xlinker", each)]
    else:
        found = [f"-L{Path(torch.__file__).parent / 'lib'}", *(f"-l{name}" for name in names)]
    return [*found, *_shared_runtime(cxx)]


@functools.cache
def _shared_runtime(cxx: str) -> list[str]:
    """Linker options for the shared C++ library, which torch uses.

    Some compilers link a static one instead. Torch could then not catch an exception of a kernel, which would
    end the process.
    """
    command = [cxx, "-print-file-name=libstdc++.so.6"]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return ["-Xlinker", found] if os.path.isabs(found) else []  # as g++ and nvcc both take it


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


def find_nvcc(older: bool = False) -> str:
    """CUDA's compiler, of the CUDA version that torch was built with, up to its minor version.

    It is looked for in CUDA_HOME, in pip's packages, on PATH and in /usr/local/cuda.

    Args:
        older: any that is not later than torch's will do, as for a wheel, which is for later ones too.

    Raises:
        BuildError: there is none, or only of another version; says how to install one.
    """
    cuda = torch.version.cuda
    if not cuda:
        raise BuildError(f"torch {torch.__version__} is built without CUDA; install one built with it")
    others = []
    for path in _nvccs():
        version = _version(path)
        if version and (_major(version) == _major(cuda) or (older and _major(version) < _major(cuda))):
            return str(path)
        others.append(f"{path} is of CUDA {version or 'unknown'}")
    have = "; ".join(others) or "no CUDA compiler nvcc found"
    raise BuildError(f"{have}, and torch is built with CUDA {cuda}; {_install(cuda)}")


def _nvccs() -> Iterator[Path]:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    candidates = [
        *(Path(home, "bin/nvcc") for home in homes if home),
        *(path for place in _packages() for path in sorted(place.glob("*/bin/nvcc"))),
        *map(Path, filter(None, [shutil.which("nvcc")])),
        TOOLKIT / "bin/nvcc",
    ]
    return (path for path in candidates if path.exists())


def _packages() -> list[Path]:
    """Folders of pip's nvidia packages."""
    found = importlib.util.find_spec("nvidia")
    return [*map(Path, found.submodule_search_locations or ())] if found else []


@functools.cache
def _version(nvcc: Path) -> str:
    try:
        said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    except OSError:
        said = ""
    found = re.search(r"release (\d+\.\d+)", said)
    return found[1] if found else ""


def _major(version: str) -> int:
    return int(version.split(".")[0])


def _install(cuda: str) -> str:
    """How to get the nvcc of a CUDA version, and what that costs."""
    minutes = -(-CORE_SECONDS // 60 // processors())
    cost = f"a build of all kernels then takes about {minutes} min here, once"
    if _major(cuda) < 13:  # pip's packages of CUDA 12 lack nvcc itself
        return f"install the CUDA toolkit {cuda} or set CUDA_HOME ({cost})"
    return f'pip install "cuda-toolkit[nvcc,cccl]=={cuda}.*" ({cost})'


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
