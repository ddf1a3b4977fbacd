"""CUDA graphs of what is timed, and the copy bandwidth that times are measured by."""

from collections.abc import Callable
from typing import Any

import torch

from lrnnx_app.console.terminal import say
from lrnnx_app.machine import median_ms
from lrnnx_app.ops.capture import CaptureError, capture


def captured(run: Callable[[], Any]) -> Callable[[], object]:
    """run() as a CUDA graph, so that its launches cost the host nothing; itself where none holds it."""
    try:
        graph, _ = capture(run, torch.device("cuda"))
    except CaptureError as error:
        say(f"timed without a CUDA graph: {error}", aside=True)
        return run
    return graph.replay


def copy_bandwidth(device: str) -> float:
    """Bytes read and written per second by a copy of 512 MiB, on a CPU 64 MiB, into touched memory."""
    if device == "cpu":
        source, target = torch.ones(2, 64 << 20, dtype=torch.uint8)
        return 2e3 * source.nbytes / median_ms(lambda: target.copy_(source), device)
    source, target = torch.ones(2, 512 << 20, dtype=torch.uint8, device=device)
    for _ in range(200):  # the clock of an idle GPU takes a while to rise
        target.copy_(source)
    return 2e3 * source.nbytes / median_ms(lambda: target.copy_(source), device)
