"""How much memory a process has taken."""

import sys

import torch


def peaks(device: torch.device) -> dict[str, float]:
    """Peak memory in MiB, of this process and on its GPU."""
    found = {}
    if sys.platform != "win32":
        import resource

        unit = 2**20 if sys.platform == "darwin" else 2**10
        found["peak_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)
    if device.type == "cuda":
        found["peak_gpu_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return found
