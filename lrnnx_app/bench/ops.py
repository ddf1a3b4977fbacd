"""Times the operators alone, as shares of the copy bandwidth of the same run over minimal bytes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrnnx_app import machine
from lrnnx_app.bench import _timing
from lrnnx_app.ops import _blocked, _extension, rglru_scan, selective_scan, short_conv  # noqa: F401 (define operators)
from lrnnx_app.ops.discretized_scan import CODES
from lrnnx_app.ops.linear_scan import linear_scan, reference
from lrnnx_app.ops.step import CODES as CODES_OF_STEPS

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


@dataclass(frozen=True)
class Discretization:
    """A scan that discretizes as it goes, complex; a gain of 1 (dirac) needs its input no more afterwards."""

    batch: int
    time: int
    channels: int
    rule: str
    dtype: str = "fp32"


@dataclass(frozen=True)
class Gates:
    """The RG-LRU's scan from the logits of its gates."""

    batch: int
    time: int
    channels: int
    dtype: str = "fp32"


@dataclass(frozen=True)
class Conv:
    """A short convolution of width 4 with SiLU, as before a selective scan."""

    batch: int
    time: int
    channels: int
    dtype: str = "fp32"


@dataclass(frozen=True)
class Selective:
    """A selective scan with 16 states a channel, softplus and bias inside, and the gate if asked for."""

    batch: int
    time: int
    channels: int
    rule: str = "euler"
    planes: int = 1
    dtype: str = "fp32"
    gated: bool = False


RULES = ("dirac", "zoh", "bilinear")
SHAPES = ((8, 2048, 2048), (8, 4096, 1536), (1, 16384, 2048), (1, 65536, 1024))
SELECTIVE = [
    *(Selective(*shape, dtype=dtype, gated=True) for dtype in DTYPES for shape in (*SHAPES, (8, 2049, 2048))),
    *(Selective(8, 2048, 2048, rule) for rule in RULES),
    *(Selective(8, 2048, 2048, rule, 2) for rule in ("euler", *RULES)),
]
CASES = {
    "cuda": [
        *(Case(*shape, dtype=dtype) for dtype in DTYPES for shape in SHAPES),
        *(Case(8, time, 2048) for time in (1000, 2049)),
        Case(1, 65537, 1024),
        Case(1, 65536, 64),
        *(Case(8, 16384, 256, 2, constant, dtype) for constant in (False, True) for dtype in DTYPES),
        *(Discretization(8, 16384, 256, rule, dtype) for rule in RULES for dtype in DTYPES),
        *(kind(8, 2048, 2048, dtype=dtype) for kind in (Gates, Conv) for dtype in DTYPES),
        *SELECTIVE,
    ],
    "cpu": [
        *(
            Case(4, 16000, 128, planes, constant, dtype)
            for dtype in DTYPES
            for planes in (1, 2)
            for constant in (False, True)
        ),
        *(Discretization(4, 16000, 128, rule) for rule in RULES),
        Gates(4, 16000, 128),
        Conv(4, 16000, 128),
        Selective(2, 4096, 256),
        Selective(2, 4096, 256, "zoh"),
        Selective(2, 4096, 256, "euler", 2),
    ],
}


def rows(device: str, cases: list[Any] | None = None) -> list[dict[str, Any]]:
    """One dictionary for each case: op, shape, dtype, ms and share of copy bandwidth forward and backward.

    On a CPU, a linear scan also as multiples: of it, the torch code that runs without kernels, and one step
    at a time. There the copy is timed again beside every case, since other programs take bandwidth too.
    """
    _extension.load(device)
    bandwidth = _timing.copy_bandwidth(device)
    kinds = {Case: _linear, Discretization: _discretized, Gates: _gates, Conv: _conv, Selective: _selective}
    return [
        kinds[type(case)](case, device, _timing.copy_bandwidth(device) if device == "cpu" else bandwidth)
        for case in cases or CASES[device]
    ]


def _linear(case: Case, device: str, bandwidth: float) -> dict[str, Any]:
    a, b = case.inputs(device)
    states, last = linear_scan(a, b)
    args = (a, b, None, None, None, False)
    back = (torch.randn_like(b), torch.zeros_like(last), a, states, None, None, None, False)
    name = f"linear_scan {('real', 'complex')[case.planes - 1]}{' constant a' if case.constant else ''}"
    sizes = (a.nbytes + 2 * b.nbytes, 2 * a.nbytes + 3 * b.nbytes)
    row = _row(case, name, "linear_scan", args, back, sizes, device, bandwidth)
    if device == "cpu":
        row["torch × forward"] = (
            machine.median_ms(lambda: _blocked.scan(*args), device, 3) / row["forward ms"]
        )
        row["torch × backward"] = (
            machine.median_ms(lambda: _blocked.adjoint(*back), device, 3) / row["backward ms"]
        )
        row["steps × forward"] = machine.median_ms(lambda: reference(a, b), device, 1) / row["forward ms"]
    return row


def _discretized(case: Discretization, device: str, bandwidth: float) -> dict[str, Any]:
    z = torch.rand(2, case.channels, device=device) * torch.tensor([[-0.5], [3.0]], device=device)
    dt = torch.rand(case.batch, case.time, device=device)
    v = torch.randn(case.batch, case.time, 2, case.channels, device=device).to(DTYPES[case.dtype])
    rest = (None, None, None, False, CODES[case.rule])
    states, last = torch.ops.lrnnx.discretized_scan(z, dt, v, *rest)
    kept = v if CODES[case.rule] else None
    back = (torch.randn_like(v), torch.zeros_like(last), z, dt, kept, states, *rest)
    sizes = (2 * v.nbytes + dt.nbytes, (3 if kept is None else 4) * v.nbytes + 2 * dt.nbytes)
    name = f"discretized_scan complex {case.rule}"
    return _row(case, name, "discretized_scan", (z, dt, v, *rest), back, sizes, device, bandwidth)


def _gates(case: Gates, device: str, bandwidth: float) -> dict[str, Any]:
    inputs = torch.randn(3, case.batch, case.time, case.channels, device=device).to(DTYPES[case.dtype])
    given, rest = (*inputs, torch.rand(case.channels, device=device), None, None), (None, None, None)
    states, last = torch.ops.lrnnx.rglru_scan(*given, *rest)
    back = (torch.randn_like(states), torch.zeros_like(last), *given, states, *rest)
    sizes = (4 * states.nbytes, 8 * states.nbytes)
    return _row(case, "rglru_scan", "rglru_scan", (*given, *rest), back, sizes, device, bandwidth)


def _conv(case: Conv, device: str, bandwidth: float) -> dict[str, Any]:
    shape = (case.batch, case.time, case.channels)
    x = torch.randn(shape, device=device).to(DTYPES[case.dtype])
    given = (x, torch.randn(case.channels, 4, device=device), torch.randn(case.channels, device=device))
    rest = (None, None, None, True)
    y, last = torch.ops.lrnnx.short_conv(*given, *rest)
    back = (torch.randn_like(y), torch.zeros_like(last), *given, *rest)
    return _row(
        case,
        "short_conv",
        "short_conv",
        (*given, *rest),
        back,
        (2 * x.nbytes, 3 * x.nbytes),
        device,
        bandwidth,
    )


def _selective(case: Selective, device: str, bandwidth: float) -> dict[str, Any]:
    shape, number = (case.batch, case.time, case.channels), (16,) if case.planes == 1 else (2, 16)
    u, delta = torch.randn(2, *shape, device=device).to(DTYPES[case.dtype])
    A = torch.randn(case.channels, *number, device=device)
    (A if case.planes == 1 else A[:, 0]).abs_().neg_()
    B, C = torch.randn(2, *shape[:2], 1, *number, device=device).to(u.dtype)
    bias = torch.full((case.channels,), -4.0, device=device)  # steps of about 0.02
    z = torch.randn_like(u) if case.gated else None
    args = (u, delta, A, B, C, bias, z, bias, None, None, None, None, True, CODES_OF_STEPS[case.rule])
    y, last = torch.ops.lrnnx.selective_scan(*args)
    grads = (torch.randn_like(y), torch.zeros_like(last))
    sizes = (
        (3 + case.gated) * u.nbytes + 2 * B.nbytes,
        (5 + 2 * case.gated) * u.nbytes + 4 * B.nbytes,
    )
    name = (
        f"selective_scan {('real', 'complex')[case.planes - 1]} {case.rule}{' gated' if case.gated else ''}"
    )
    row = _row(case, name, "selective_scan", args, (*grads, *args), sizes, device, bandwidth)
    if device == "cuda":  # where the forward pass keeps states that the backward pass would else make again

        def train() -> None:
            *_, kept = torch.ops.lrnnx.selective_scan_kernel(*args, True)
            torch.ops.lrnnx.selective_scan_kernel_backward(*grads, kept, *args)

        row["training ms"] = machine.median_ms(train, device)
    if device == "cpu":
        times = {"torch": lambda: selective_scan.blocked(*args), "steps": lambda: _by_steps(case.rule, *args)}
        for words, run in times.items():
            row[f"{words} × forward"] = min(machine.once_ms(run) for _ in range(2)) / row["forward ms"]
    return row


def _by_steps(rule: str, u, delta, A, B, C, D, z, bias, *_: Any) -> object:
    return selective_scan.reference(u, delta, A, B, C, D, z=z, bias=bias, softplus=True, rule=rule)


def _row(
    case: Any,
    name: str,
    op: str,
    args: tuple[Any, ...],
    back: tuple[Any, ...],
    sizes: tuple[int, int],
    device: str,
    bandwidth: float,
) -> dict[str, Any]:
    """Times of an operator and its backward, which move at least `sizes` bytes."""
    run, run_back = getattr(torch.ops.lrnnx, op), getattr(torch.ops.lrnnx, f"{op}_backward")
    forward = machine.median_ms(lambda: run(*args), device)
    backward = machine.median_ms(lambda: run_back(*back), device)
    return {
        "op": name,
        "shape": f"({case.batch}, {case.time}, {case.channels})",
        "dtype": case.dtype,
        "forward ms": forward,
        "backward ms": backward,
        "forward MB": sizes[0] / 1e6,
        "backward MB": sizes[1] / 1e6,
        "forward / copy": sizes[0] / bandwidth / forward * 1e3,
        "backward / copy": sizes[1] / bandwidth / backward * 1e3,
        "copy GB/s": bandwidth / 1e9,
    }


if __name__ == "__main__":
    from lrnnx_app.console.tables import table

    print(table(rows("cuda" if torch.cuda.is_available() else "cpu")))
