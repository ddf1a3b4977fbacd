"""Keeps subnormal numbers, which are slow, and sound far above full scale out of a stream."""

import sys

import torch
from torch import Tensor

from lrnnx_app.spec import DataSpec

LOUDEST = 16.0  # in full scales; samples are clipped to it


class Flushing:  # a class is entered faster than a generator, and each hop enters it
    """While entered, this thread and those that it starts treat subnormal numbers (below 1.2e-38) as zero.

    In silence the state of a stream decays to such numbers, and a CPU is many times slower with them. At the
    end the thread's earlier mode is restored.
    """

    def __enter__(self) -> None:
        self._before = sys.float_info.min * 0.5 == 0  # torch has no function to ask for the mode
        torch.set_flush_denormal(True)

    def __exit__(self, *error: object) -> None:
        torch.set_flush_denormal(self._before)


def bounded(x: Tensor, spec: DataSpec) -> Tensor:
    """x clipped to ±LOUDEST if it is sound, else x itself."""
    return x.clamp(-LOUDEST, LOUDEST) if spec.sample_rate and not spec.tokens else x
