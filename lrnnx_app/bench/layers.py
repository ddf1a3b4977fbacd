"""Times every registered layer, forward and forward plus backward, with the memory that training takes."""

from collections.abc import Callable
from typing import Any

import torch

from lrnnx_app.bench import _timing
from lrnnx_app.layers._base import Layer
from lrnnx_app.layers._build import build_layer
from lrnnx_app.registry import LAYERS

PRECISIONS = {"cuda": ("fp32", "tf32", "bf16"), "cpu": ("fp32",)}
SHAPES = {"cuda": (8, 16384, 256), "cpu": (4, 2000, 64)}


def rows(
    device: str,
    names: list[str] | None = None,
    shape: tuple[int, int, int] | None = None,
    d_state: int | None = None,
) -> list[dict[str, Any]]:
    """One dictionary for each layer and precision: ms forward and forward + backward, MiB of both.

    On a GPU both are replayed from CUDA graphs where a layer can be captured.

    Args:
        device: "cpu" or "cuda".
        names: layers to time; all if None.
        shape: (B, T, d_model).
        d_state: states, for the layers that have such a setting.
    """
    batch, time, d_model = shape or SHAPES[device]
    found = []
    for name in names or sorted(LAYERS):
        layer = _build(name, d_model, d_state).to(device)
        x = torch.randn(batch, time, d_model, device=device, requires_grad=True)
        for precision in PRECISIONS[device]:
            row = {"layer": name, "shape": f"({batch}, {time}, {d_model})", "precision": precision}
            found.append(row | _times(layer, x, precision, device))
    return found


def _build(name: str, d_model: int, d_state: int | None) -> Layer:
    config = LAYERS.find(name).Config()
    if d_state and hasattr(config, "d_state"):
        config.d_state = d_state
    layer = build_layer(name, d_model, config)
    assert isinstance(layer, Layer)
    return layer


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
            alone = _timing.median_ms(ready(forward), device, 7)
        row = {"forward ms": alone, "forward + backward ms": _timing.median_ms(ready(both), device, 7)}
    finally:
        torch.set_float32_matmul_precision(before)
    if device == "cuda":
        kept = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        both()
        row["peak MiB"] = (torch.cuda.max_memory_allocated() - kept) / 2**20
    return row


if __name__ == "__main__":
    from lrnnx_app.bench.report import table

    print(table(rows("cuda" if torch.cuda.is_available() else "cpu")))
