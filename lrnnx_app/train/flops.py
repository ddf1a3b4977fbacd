"""How much of a device's peak a training uses: the model's own operations, each counted once.

Counted are matrix products, convolutions, attention, and scans that are selective or of matrices: of the
forward pass once and of the backward pass twice as often, as for model FLOP utilization (Chowdhery et al.
2022, arXiv 2204.02311). What is run again to save memory, and what is done for padding, does not count.
"""

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import lrnnx_app.ops.matrix_scan
import lrnnx_app.ops.selective_scan  # noqa: F401  (both define operators)
from lrnnx_app.spec import Batch, Rows

PASSES = 3  # of the forward pass's operations: the backward pass derives by inputs and by weights
HALVES = ("bf16-mixed", "16-mixed", "bf16-true", "16-true")
TERA = 10**12
PEAKS = {  # dense TFLOP/s as their makers state them: in half precision, and in float32 without tensor cores
    "H200": (989, 67),
    "H100 PCIe": (756, 51),
    "H100": (989, 67),
    "A100": (312, 19.5),
    "L40S": (362, 91.6),
    "L4": (121, 30.3),
    "V100": (125, 15.7),
    "T4": (65, 8.1),
}


def peak(device: torch.device, precision: str) -> float | None:
    """FLOP/s of a GPU in a precision as Lightning names it; None for other devices and precisions."""
    if device.type != "cuda" or precision not in (*HALVES, "32-true"):
        return None
    words = torch.cuda.get_device_name(device).replace("-", " ")
    found = [peaks for name, peaks in PEAKS.items() if f" {name} " in f" {words} "]
    return found[0][precision == "32-true"] * TERA if found else None


def of_step(model: nn.Module, batch: Batch) -> float:
    """FLOP of a training for each time step, counted on the first row of a batch."""
    x, rows = batch.x[:1], Rows(*(z if z is None else z[:1] for z in batch.rows))
    counter = FlopCounterMode(display=False, custom_mapping=SCANS)
    devices = [batch.x.device] if batch.x.is_cuda else []
    with torch.random.fork_rng(devices), torch.no_grad(), counter:
        model(x, **rows._asdict())
    return PASSES * counter.get_total_flops() / max(1, int(rows.counts(x).sum()))


def _selective(u: Any, delta: Any, A: Any, *_: Any, **__: Any) -> int:
    """A decay, an input and an output for each state; u (B, T, D), A (D, …, N)."""
    return 6 * torch.Size(u).numel() * torch.Size(A[1:]).numel()


def _matrix(q: Any, k: Any, v: Any, log_decay: Any, beta: Any, *_: Any, **__: Any) -> int:
    """The same, and by the delta rule what is read to be overwritten; q (B, T, H, K), v (B, T, H, V)."""
    return (6 if beta is None else 8) * torch.Size(q).numel() * v[-1]


SCANS = {
    torch.ops.lrnnx.selective_scan: _selective,
    torch.ops.lrnnx.selective_scan_kernel: _selective,
    torch.ops.lrnnx.matrix_scan: _matrix,
}
