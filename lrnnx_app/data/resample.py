"""Converts the sampling rate of a stream, with the same result as for the whole signal at once."""

import math

import torch
from torch import Tensor

WIDTH = 6  # zero crossings of the windowed sinc on either side, as torchaudio's default has
ROLLOFF = 0.99  # its cut-off relative to half the lower rate
AT_ONCE = 1 << 14  # outputs that are computed together; all their windows of inputs are in memory
LARGEST_TABLE = 2**25  # most coefficients of the table


class Resampler:
    """Takes samples (T,) at `source` Hz, and returns the samples at `target` Hz that are complete.

    Output n lies at input position n·source/target, and is a weighted sum of the inputs around it. The
    weights depend only on the fraction of that position, so a table has all of them. An output is complete
    when the last input of its window has arrived. `finish` returns the last outputs.

    Attributes:
        delay: longest time from an output's position to the last input of its window, in seconds.
    """

    def __init__(self, source: int, target: int) -> None:
        common = math.gcd(source, target)
        self.source, self.target = source // common, target // common
        self.reach = reach(source, target)
        self.delay = 0.0 if source == target else (self.reach + 1) / source
        if source != target:
            self._table = _table(self.source, self.target, self.reach)
        self._pending = torch.zeros(self.reach - 1)  # inputs from number `_first` on
        self._first, self._given, self._taken = 1 - self.reach, 0, 0

    def push(self, x: Tensor) -> Tensor:
        if self.source == self.target:
            return x
        self._pending = torch.cat((self._pending, x))
        self._taken += len(x)
        ready = -(-(self._taken - self.reach) * self.target // self.source)
        return self._until(max(ready, self._given))

    def finish(self) -> Tensor:
        """The last outputs: ⌈T·target/source⌉ in all."""
        if self.source == self.target:
            return torch.zeros(0)
        self._pending = torch.cat((self._pending, torch.zeros(self.reach)))
        return self._until(-(-self._taken * self.target // self.source))

    def _until(self, end: int) -> Tensor:
        """Compute outputs up to number `end`, and drop inputs that no later output needs."""
        parts = [self._outputs(n, min(n + AT_ONCE, end)) for n in range(self._given, end, AT_ONCE)]
        self._given = end
        spare = end * self.source // self.target - self.reach + 1 - self._first
        self._pending = self._pending[spare:].clone()
        self._first += spare
        return torch.cat(parts) if parts else torch.zeros(0)

    def _outputs(self, start: int, end: int) -> Tensor:
        place = torch.arange(start, end) * self.source
        first = place // self.target - self.reach + 1 - self._first
        windows = self._pending.unfold(0, 2 * self.reach, 1)[first]
        return (windows * self._table[place % self.target]).sum(1)


def reach(source: int, target: int) -> int:
    """Inputs on either side that an output depends on."""
    return math.ceil(WIDTH * source / (min(source, target) * ROLLOFF))


def fits(source: int, target: int) -> bool:
    """Whether the table of weights for two rates is small enough."""
    return 2 * reach(source, target) * (target // math.gcd(source, target)) <= LARGEST_TABLE


def _table(source: int, target: int, reach: int) -> Tensor:
    """Weights (target, 2·reach): a sinc below a squared cosine, by the fraction of an output's place."""
    fraction = torch.arange(target, dtype=torch.float64)[:, None] / target
    offset = torch.arange(1 - reach, reach + 1, dtype=torch.float64)
    scale = min(source, target) * ROLLOFF / source
    t = ((offset - fraction) * scale).clamp(-WIDTH, WIDTH)
    window = torch.cos(t * math.pi / WIDTH / 2).square()
    return (torch.sinc(t) * window * scale).float()
