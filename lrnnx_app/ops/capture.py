"""Work on fixed buffers as CUDA graphs, whose kernels one call launches: streams, training and benchmarks.

Whether a graph can hold the work is tried, not asked. `LRNNX_GRAPHS=off` in the environment lets none be
made.
"""

import os
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

OFF = "LRNNX_GRAPHS"  # environment variable; its value off is every user's way out
WARM_UPS = 2  # builds of kernels, plans of transforms, workspaces and constants all happen before the capture


class CaptureError(Exception):
    """Why no graph holds the work, in one line."""


def capture(run: Callable[[], Tensor], device: torch.device) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """The graph of run(), and the tensor that holds its result after each replay.

    run() is called a few times; what it does to its buffers is done.

    Raises:
        CaptureError: run() waits for the device, or does something else that a graph cannot hold; or graphs
            are switched off.
    """
    with _reported(), torch.cuda.device(device):
        stream = _tried(run)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            result = run()
    return graph, result


def capture_passes(module: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """A function with the values and gradients of module(x), by one graph forward and one backward.

    It takes tensors of the shape and place of x, and gives gradients to the parameters, not to x.

    Raises:
        CaptureError: as of `capture`.
    """
    weights = [p for p in module.parameters() if p.requires_grad]

    def both() -> None:
        y = module(x)
        torch.autograd.grad(y, weights, torch.ones_like(y), allow_unused=True)

    with _reported(), torch.cuda.device(x.device), warnings.catch_warnings():
        # of torch's own warm-up, which says so of any module
        warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream does not match")
        warnings.filterwarnings("ignore", message="Attempting to run cuBLAS, but there was no current CUDA")
        _tried(both)
        replay: Any = torch.cuda.make_graphed_callables(module, (x.clone(),))
    return replay


def _tried(run: Callable[[], object]) -> torch.cuda.Stream:
    """A stream on which run() has been called, the last time with an error where it waits for the device.

    That comes before the capture, since a capture that fails leaves the random generator unusable.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            run()
        with _waiting_forbidden():
            run()
    torch.cuda.current_stream().wait_stream(stream)
    return stream


@contextmanager
def _reported() -> Iterator[None]:
    """Turns what a capture stumbles over into a CaptureError."""
    if os.environ.get(OFF) == "off":
        raise CaptureError(f"switched off by {OFF}=off")
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        torch.cuda.synchronize()
        traceback.clear_frames(error.__traceback__)  # what they hold belongs to the stream of the attempt
        raise CaptureError(str(error).strip().partition("\n")[0]) from error


@contextmanager
def _waiting_forbidden() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode calls itself a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
