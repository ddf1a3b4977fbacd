"""The number of CPU threads for a stream."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """While entered, torch uses `count` threads; None leaves their number as it is.

    Streams use one thread. A chunk is little work, and threads wait for each other at its end: on a busy
    machine that makes a chunk a hundred times slower.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
