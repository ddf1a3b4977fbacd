"""CUDA graphs of what is timed, and the copy bandwidth that times are measured by."""

from collections.abc import Callable

import torch

from lrnnx_app.machine import median_ms


def captured(run: Callable[[], object]) -> Callable[[], object]:
    """run() as a CUDA graph, so that its launches cost the host nothing; itself if it cannot be captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except RuntimeError:  # a layer that looks at values on the host
        torch.cuda.synchronize()
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
