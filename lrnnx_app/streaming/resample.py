"""Sample-rate conversion of a stream, equal to converting the whole signal at once."""

import math

import torch
from torch import Tensor
from torchaudio.functional import resample

FILTER_WIDTH = 6  # zero crossings of torchaudio's default filter
ROLLOFF = 0.99  # its cut-off relative to Nyquist


class Resampler:
    """Push (T,) at `source` Hz, get what is complete at `target` Hz; `finish` gives the rest.

    Blocks are converted with enough context on both sides that every output sees what it would see in
    the whole signal.
    """

    def __init__(self, source: int, target: int) -> None:
        common = math.gcd(source, target)
        self.source, self.target = source // common, target // common
        reach = math.ceil(FILTER_WIDTH * self.source / (min(self.source, self.target) * ROLLOFF))
        self.periods = math.ceil(reach / self.source) + 1  # of context on each side
        self.delay = 0.0 if source == target else (self.periods + 1) * self.source / source  # s, at the most
        self._pending = torch.zeros(self.periods * self.source)
        self._taken = self._given = 0

    def push(self, x: Tensor) -> Tensor:
        if self.source == self.target:
            return x
        self._taken += len(x)
        y = self._convert(x)
        self._given += len(y)
        return y

    def finish(self) -> Tensor:
        """The last outputs: ⌈T·target/source⌉ in all."""
        if self.source == self.target:
            return torch.zeros(0)
        rest = math.ceil(self._taken * self.target / self.source) - self._given
        silence = torch.zeros((2 * self.periods + 1) * self.source)
        return self._convert(silence)[:rest]

    def _convert(self, x: Tensor) -> Tensor:
        self._pending = torch.cat((self._pending, x))
        ready = len(self._pending) // self.source - 2 * self.periods
        if ready < 1:
            return torch.zeros(0)
        block = self._pending[: (ready + 2 * self.periods) * self.source]
        self._pending = self._pending[ready * self.source :].clone()
        y = resample(block, self.source, self.target)
        return y[self.periods * self.target : (self.periods + ready) * self.target]
