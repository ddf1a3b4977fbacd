"""How many threads of a CPU a stream takes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let torch use `count` threads, all if None.

    A chunk is little work: threads that wait for each other make it late, hundredfold where anything else
    wants a core, so that streams take one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
