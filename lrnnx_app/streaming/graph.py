"""A function of fixed buffers as a CUDA graph: its kernels are launched by one call."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

WARM_UPS = 2  # builds of kernels, plans of transforms, workspaces and constants all happen before the capture


class CaptureError(Exception):
    """Why the function cannot be a graph, in one line."""


def capture(run: Callable[[], Tensor], device: torch.device) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """The graph of run(), and the tensor that holds its result after each replay.

    run() is called a few times; what it does to its buffers is done.

    Raises:
        CaptureError: it waits for the device, or does something else that a graph cannot hold.
    """
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    run()
                with _waiting_forbidden():
                    run()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                result = run()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            torch.cuda.synchronize()
            raise CaptureError(str(error).strip().splitlines()[0]) from error
    return graph, result


@contextmanager
def _waiting_forbidden() -> Iterator[None]:
    """An error where the host would wait for the device.

    It comes before the capture, since a capture that fails leaves the random generator unusable.
    """
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode calls itself a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
