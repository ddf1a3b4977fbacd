"""The kernels that a wheel brings, and which of them fit this machine.

A wheel built with `--config-settings kernels=cpu,cuda` holds a folder for each target, with all libraries:

    kernels/x86-64-v3/           for processors of this level
    kernels/cuda13-sm_90/        for GPUs of compute capability 9.0, made by CUDA 13
    kernels/cuda13-sm_120+PTX/   for later ones too, whose driver translates it at the first use

A checkout has no such folder, so what its csrc/ says counts there.
"""

import platform
import re
from pathlib import Path

import torch

from lrnnx_app.ops._build import processor
from lrnnx_app.ops._compilers import OLDEST_TORCH, SHARED_KB, capabilities

FOLDER = Path(__file__).parents[1] / "kernels"
# What /proc/cpuinfo calls the instruction sets of a level.
V2 = "cx16 lahf_lm pni popcnt sse4_1 sse4_2 ssse3"
V3 = f"{V2} abm avx avx2 bmi1 bmi2 f16c fma movbe xsave"
V4 = f"{V3} avx512bw avx512cd avx512dq avx512f avx512vl"
LEVELS = {  # of each kind of machine, the best first
    "x86_64": {"x86-64-v4": V4, "x86-64-v3": V3, "x86-64-v2": V2},
    "aarch64": {"armv8-a": "asimd fp"},
}
GPU = re.compile(r"cuda(\d+)-sm_(\d+)(\+PTX)?")


def library(device: str, name: str) -> tuple[Path | None, str]:
    """The library of a name that fits this machine best, and why.

    Or none, and why, which is "" if no kernels came.
    """
    held, fits = (_levels(), _fits_processor) if device == "cpu" else (_gpus(), _fits_gpus)
    if not held:
        return None, ""
    if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_TORCH:
        return None, "what came with lrnnx needs a later torch"
    for target in held:
        if fits(target):
            return FOLDER / target / f"{name}.so", f"which came with lrnnx, for {target}"
    return None, f"what came with lrnnx is for {', '.join(held)}, which does not fit this machine"


def _levels() -> list[str]:
    """The levels of processors that kernels came for, the best first."""
    return [level for level in LEVELS.get(platform.machine(), {}) if (FOLDER / level).is_dir()]


def _gpus() -> list[str]:
    """The targets among GPUs that kernels came for, the latest first."""
    return sorted((path.name for path in FOLDER.glob("cuda*")), key=_made_for, reverse=True)


def _fits_processor(level: str) -> bool:
    return set(LEVELS[platform.machine()][level].split()) <= set(processor().split())


def _fits_gpus(target: str) -> bool:
    """Whether all GPUs of this machine run it: they have its code, and the shared memory that it asks for.

    A driver that serves torch's CUDA also serves kernels of an older one.
    """
    (capability, cuda), gpus = _made_for(target), capabilities()
    of_torch = int((torch.version.cuda or "0").partition(".")[0])
    return bool(gpus) and all(
        cuda <= of_torch
        and capability <= gpu
        and (capability // 10 == gpu // 10 or target.endswith("+PTX"))
        and SHARED_KB.get(capability, 99) <= SHARED_KB.get(gpu, 99)
        for gpu in gpus
    )


def _made_for(target: str) -> tuple[int, int]:
    """Compute capability, such as 90, and CUDA's major version."""
    found = GPU.fullmatch(target)
    assert found, f"{FOLDER / target} is no folder of a wheel"
    return int(found[2]), int(found[1])
