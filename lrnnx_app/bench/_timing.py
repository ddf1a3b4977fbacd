"""Medians of device time, with warm-up and cold caches, and the copy bandwidth that they are measured by."""

import statistics
import time
from collections.abc import Callable

import torch

FLUSH_BYTES = 2 << 30  # beyond any cache; and keeps a GPU busy for 0.7 ms, while the host enqueues the run


def median_ms(run: Callable[[], object], device: str, repeats: int = 15) -> float:
    """Median time of run() in ms. On a GPU the cache is flushed before each run and host time kept out."""
    clock = _cuda_ms if device == "cuda" else once_ms
    for _ in range(2):
        run()
    return statistics.median(clock(run) for _ in range(repeats))


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


def once_ms(run: Callable[[], object]) -> float:
    """Time of one run() on a CPU in ms."""
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) * 1e3


def _cuda_ms(run: Callable[[], object]) -> float:
    torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda").fill_(1)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def copy_bandwidth(device: str) -> float:
    """Bytes read and written per second by a copy of 512 MiB, on a CPU 64 MiB, into touched memory."""
    if device == "cpu":
        source, target = torch.ones(2, 64 << 20, dtype=torch.uint8)
        return 2e3 * source.nbytes / median_ms(lambda: target.copy_(source), device)
    source, target = torch.ones(2, 512 << 20, dtype=torch.uint8, device=device)
    for _ in range(200):  # the clock of an idle GPU takes a while to rise
        target.copy_(source)
    return 2e3 * source.nbytes / median_ms(lambda: target.copy_(source), device)
