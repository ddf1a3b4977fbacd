"""Numbers that a stream keeps away from: subnormal ones, which are slow, and sound far beyond full scale."""

import sys

import torch
from torch import Tensor

from lrnnx_app.spec import DataSpec

LOUDEST = 16.0  # full scales; a sample beyond is taken for that


class Flushing:  # by a class, since it is entered for each hop
    """Let this thread, and those that it starts meanwhile, take subnormal numbers (below 1.2e-38) for zero.

    In silence the state of a stream decays into them, and a CPU is many times slower with them. What the
    thread did before is restored.
    """

    def __enter__(self) -> None:
        self._before = sys.float_info.min * 0.5 == 0  # torch has no function that tells
        torch.set_flush_denormal(True)

    def __exit__(self, *error: object) -> None:
        torch.set_flush_denormal(self._before)


def bounded(x: Tensor, spec: DataSpec) -> Tensor:
    """x with every sample of sound within ±LOUDEST; other inputs as they are."""
    return x.clamp(-LOUDEST, LOUDEST) if spec.sample_rate and not spec.tokens else x
