"""Times layers, forward and forward plus backward, with the memory that training takes.

Unless layers are named, a GPU runs the sizes at which published implementations were measured (`PUBLISHED`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from lrnnx_app import machine
from lrnnx_app.bench import _timing
from lrnnx_app.layers._base import Layer
from lrnnx_app.layers._build import build_layer
from lrnnx_app.registry import LAYERS

PRECISIONS = {"cuda": ("fp32", "tf32", "bf16"), "cpu": ("fp32",)}
SHAPES = {"cuda": (8, 16384, 256), "cpu": (4, 2000, 64)}


@dataclass(frozen=True)
class Case:
    """A layer by its name in a recipe, with an input (B, T, d_model) and options other than the defaults."""

    layer: str
    shape: tuple[int, int, int]
    settings: dict[str, Any] = field(default_factory=dict)

    def build(self) -> Layer:
        config = LAYERS.find(self.layer).Config(**self.settings)
        layer = build_layer(self.layer, self.shape[-1], config)
        assert isinstance(layer, Layer)
        return layer


LENGTHS = (4096, 16384, 65536)
PUBLISHED = (
    *(Case("lru", (8, time, 256), {"d_state": 256}) for time in LENGTHS),
    *(Case("s5", (8, time, 256), {"d_state": 128}) for time in LENGTHS),  # of each conjugate pair one
    Case("s4d", (8, 16384, 256), {"d_state": 64}),
    *(
        Case("centaurus", (8, 16384, 256), {"mode": mode, "d_state": 8, "repeats": repeats})
        for mode, repeats in (("neck", 64), ("dws", 1), ("pointwise", 64))
    ),
    Case("s6", (8, 2048, 1024)),
    Case("rglru", (8, 2048, 1024)),
)


def rows(
    device: str,
    names: list[str] | None = None,
    shape: tuple[int, int, int] | None = None,
    d_state: int | None = None,
    cases: tuple[Case, ...] | None = None,
) -> list[dict[str, Any]]:
    """One dictionary for each layer and precision: ms forward and forward + backward, MiB of both.

    On a GPU both are replayed from CUDA graphs if the layer can be captured.

    Args:
        device: "cpu" or "cuda".
        names: layers to time. None is all; on a GPU it is `PUBLISHED`, unless `shape` or `d_state` is given.
        shape: (B, T, d_model).
        d_state: number of states, for layers with such an option.
        cases: time these instead.
    """
    if cases is None and device == "cuda" and not (names or shape or d_state):
        cases = PUBLISHED
    found = []
    for case in cases or [_case(name, shape or SHAPES[device], d_state) for name in names or sorted(LAYERS)]:
        layer, x = case.build().to(device), torch.randn(case.shape, device=device, requires_grad=True)
        words = " ".join(f"{key}={value}" for key, value in case.settings.items())
        for precision in PRECISIONS[device]:
            row = {"layer": case.layer, "settings": words, "shape": str(case.shape), "precision": precision}
            found.append(row | _times(layer, x, precision, device))
    return found


def _case(name: str, shape: tuple[int, int, int], d_state: int | None) -> Case:
    takes = d_state and hasattr(LAYERS.find(name).Config(), "d_state")
    return Case(name, shape, {"d_state": d_state} if takes else {})


def _times(layer: Layer, x: torch.Tensor, precision: str, device: str) -> dict[str, float]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")

    def forward() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            return layer(x)[0]

    leaves = [x, *layer.parameters()]
    cotangents = {dtype: torch.ones_like(x, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}

    def both() -> None:
        y = forward()
        torch.autograd.grad(y, leaves, cotangents[y.dtype], allow_unused=True)

    def ready(run: Callable[[], object]) -> Callable[[], object]:
        return _timing.captured(run) if device == "cuda" else run

    try:
        with torch.no_grad():
            alone = machine.median_ms(ready(forward), device, 7)
        row = {"forward ms": alone, "forward + backward ms": machine.median_ms(ready(both), device, 7)}
    finally:
        torch.set_float32_matmul_precision(before)
    if device == "cuda":
        kept = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        both()
        row["peak MiB"] = (torch.cuda.max_memory_allocated() - kept) / 2**20
    return row
