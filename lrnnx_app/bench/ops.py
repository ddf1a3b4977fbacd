"""Times the operators alone, as shares of the copy bandwidth of the same run over minimal bytes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrnnx_app.bench import _timing
from lrnnx_app.ops import _blocked, _extension
from lrnnx_app.ops.linear_scan import linear_scan

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """One scan: `planes` 1 real or 2 complex; `constant` coefficients are the same at every step."""

    batch: int
    time: int
    channels: int
    planes: int = 1
    constant: bool = False
    dtype: str = "fp32"

    def inputs(self, device: str) -> tuple[Tensor, Tensor]:
        state = (self.channels,) if self.planes == 1 else (2, self.channels)
        shape = (self.batch, self.time, *state)
        a = torch.rand((1, 1, *state) if self.constant else shape, device=device) * (
            0.99 if self.planes == 1 else 0.7
        )
        return a.to(DTYPES[self.dtype]), torch.randn(shape, device=device).to(DTYPES[self.dtype])


SHAPES = ((8, 2048, 2048), (8, 4096, 1536), (1, 16384, 2048), (1, 65536, 1024))
CASES = {
    "cuda": [
        *(Case(*shape, dtype=dtype) for dtype in DTYPES for shape in SHAPES),
        *(Case(8, time, 2048) for time in (1000, 2049)),
        Case(1, 65537, 1024),
        Case(1, 65536, 64),
        *(Case(8, 16384, 256, 2, constant, dtype) for constant in (False, True) for dtype in DTYPES),
    ],
    "cpu": [
        Case(4, 16000, 128, planes, constant, dtype)
        for dtype in DTYPES
        for planes in (1, 2)
        for constant in (False, True)
    ],
}


def rows(device: str, cases: list[Case] | None = None) -> list[dict[str, Any]]:
    """One dictionary for each case: op, shape, dtype, ms and share of copy bandwidth forward and backward.

    On a CPU also the time of the torch code that runs without kernels.
    """
    _extension.load(device)
    bandwidth = _timing.copy_bandwidth(device)
    return [_row(case, device, bandwidth) for case in cases or CASES[device]]


def _row(case: Case, device: str, bandwidth: float) -> dict[str, Any]:
    a, b = case.inputs(device)
    states, last = linear_scan(a, b)
    args = (a, b, None, None, None, False)
    back = (torch.randn_like(b), torch.zeros_like(last), a, states, None, None, None, False)
    forward_bytes = a.nbytes + 2 * b.nbytes
    backward_bytes = 2 * a.nbytes + 3 * b.nbytes
    forward = _timing.median_ms(lambda: torch.ops.lrnnx.linear_scan(*args), device)
    backward = _timing.median_ms(lambda: torch.ops.lrnnx.linear_scan_backward(*back), device)
    row = {
        "op": f"linear_scan {('real', 'complex')[case.planes - 1]}{' constant a' if case.constant else ''}",
        "shape": f"({case.batch}, {case.time}, {case.channels})",
        "dtype": case.dtype,
        "forward ms": forward,
        "backward ms": backward,
        "forward MB": forward_bytes / 1e6,
        "backward MB": backward_bytes / 1e6,
        "forward / copy": forward_bytes / bandwidth / forward * 1e3,
        "backward / copy": backward_bytes / bandwidth / backward * 1e3,
        "copy GB/s": bandwidth / 1e9,
    }
    if device == "cpu":
        row["torch forward ms"] = _timing.median_ms(lambda: _blocked.scan(*args), device, 3)
        row["torch backward ms"] = _timing.median_ms(lambda: _blocked.adjoint(*back), device, 3)
    return row


if __name__ == "__main__":
    from lrnnx_app.bench.report import table

    print(table(rows("cuda" if torch.cuda.is_available() else "cpu")))
