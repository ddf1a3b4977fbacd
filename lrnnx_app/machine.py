"""This process's rank in a job, its device, and the memory and time that it uses.

Torch is imported inside functions, so that a command that does not need it starts faster.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from lrnnx_app.errors import UserError

if TYPE_CHECKING:
    import torch

FLUSH_BYTES = 2 << 30  # more than any cache; takes a GPU 0.7 ms, in which the host enqueues the run
DEVICES = ("cpu", "cuda")


def rank() -> int:
    """The number of this process in its job, as Lightning finds it."""
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
    return int(next((os.environ[name] for name in names if name in os.environ), 0))


def chosen_device(device: str | None, devices: tuple[str, ...] = DEVICES) -> str:
    """The device that the user names, or the best one of this machine.

    Raises:
        UserError: there is no such device, or torch cannot use it.
    """
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device not in devices:
        raise UserError(f"--device: unknown device '{device}'; expected one of: {', '.join(devices)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: no GPU that torch can use; expected cpu, or see `lrnnx doctor`")
    return device


def peaks(device: "torch.device") -> dict[str, float]:
    """Peak memory of this process and on its GPU, in MiB."""
    found = {}
    if sys.platform != "win32":
        import resource

        unit = 2**20 if sys.platform == "darwin" else 2**10
        found["peak_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)
    if device.type == "cuda":
        import torch

        found["peak_gpu_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return found


def median_ms(run: Callable[[], object], device: str, repeats: int = 15) -> float:
    """Median time of run() in ms. On a GPU, without host time, and with a flushed cache before each run."""
    clock = _cuda_ms if device == "cuda" else once_ms
    for _ in range(2):
        run()
    return statistics.median(clock(run) for _ in range(repeats))


def once_ms(run: Callable[[], object]) -> float:
    """Time of one run() on a CPU in ms."""
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) * 1e3


def _cuda_ms(run: Callable[[], object]) -> float:
    import torch

    torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda").fill_(1)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)
