"""Captures work as CUDA graphs, which launch all its kernels by one call; for streams, training, benchmarks.

Nothing says beforehand whether work can be captured: it is tried. The environment variable `LRNNX_GRAPHS=off`
switches graphs off.
"""

import os
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

OFF = "LRNNX_GRAPHS"  # environment variable that a user sets to "off" to switch graphs off
HARMLESS = (  # beginnings of warnings by which torch greets a first backward pass on another thread or stream
    "Attempting to run cuBLAS, but there was no current CUDA",
    "The AccumulateGrad node's stream does not match",
)
WARM_UPS = 2  # calls before the capture, in which kernels are built and plans, workspaces and constants made


class CaptureError(Exception):
    """Work could not be captured; the message says why, in one line."""


def capture(run: Callable[[], Tensor], device: torch.device) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """The graph of run(), and the tensor that holds its result after each replay.

    run() is called a few times, and each call changes its buffers as usual.

    Raises:
        CaptureError: run() waits for the device, or does something else that a graph cannot do; or graphs are
            switched off.
    """
    with _reported(), torch.cuda.device(device):
        stream = _tried(run)
        graph = torch.cuda.CUDAGraph()
        with _own_thread(), torch.cuda.graph(graph, stream=stream):
            result = run()
    return graph, result


def capture_passes(module: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """A function that returns module(x), by one graph for the forward and one for the backward pass.

    It takes tensors of the shape, dtype and device of x. Parameters that it uses get gradients, x does not.

    Raises:
        CaptureError: as of `capture`.
    """
    weights = [p for p in module.parameters() if p.requires_grad]

    def both() -> None:
        y = module(x)
        torch.autograd.grad(y, weights, torch.ones_like(y), allow_unused=True)

    with _reported(), torch.cuda.device(x.device), _own_thread(), warnings.catch_warnings():
        for message in HARMLESS:
            warnings.filterwarnings("ignore", message=message)
        _tried(both)
        replay: Any = torch.cuda.make_graphed_callables(module, (x.clone(),), allow_unused_input=True)
    return replay


def _tried(run: Callable[[], object]) -> torch.cuda.Stream:
    """Call run() a few times on a new stream, and return that stream.

    In the last call, waiting for the device is an error. So most failures come before the capture, since a
    capture that fails leaves the random generator unusable.
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
    """Turns errors of a capture into a CaptureError, except those for lack of memory."""
    if os.environ.get(OFF) == "off":
        raise CaptureError(f"switched off by {OFF}=off")
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        torch.cuda.synchronize()
        traceback.clear_frames(error.__traceback__)  # frees its tensors
        raise CaptureError(str(error).strip().partition("\n")[0]) from error


@contextmanager
def _own_thread() -> Iterator[None]:
    """While entered, a capture forbids calls by its own thread only: others may pin memory for a loader."""
    graph = torch.cuda.graph
    torch.cuda.graph = partial(graph, capture_error_mode="thread_local")  # pyright: ignore[reportAttributeAccessIssue]  (make_graphed_callables has no such option)
    try:
        yield
    finally:
        torch.cuda.graph = graph


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
