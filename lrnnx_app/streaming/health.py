"""Finds streams of a session whose outputs or states are not finite, without waiting for the device."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lrnnx_app.spec import unpadded

STATES_EVERY = 256  # reports between checks of the states, which may be bad while outputs are finite


class Health:
    """Attributes:

    restarts: for each stream, how often `told` has returned it.
    """

    def __init__(self, batch: int, device: torch.device) -> None:
        self.restarts = [0] * batch
        self._bad = torch.zeros(batch, dtype=torch.bool, device=device)
        self._cuda = device.type == "cuda"
        self._told = self._bad.cpu().pin_memory() if self._cuda else self._bad
        self._event = torch.cuda.Event() if self._cuda else None
        self._reports, self._asked = 0, False  # _asked: whether `told` has a report to read

    def seen(self, y: Tensor, active: Tensor, lengths: Tensor | None) -> Tensor:
        """Outputs (B, T, D) or (B, D), with zeros for active streams in which a number is not finite."""
        if not self._cuda and lengths is None and math.isfinite(y.sum(dtype=torch.float32)):
            return y
        if lengths is not None and y.ndim == 3:
            total = unpadded(y, lengths).flatten(1).sum(1, dtype=torch.float32)
        else:
            total = y.flatten(1).sum(1, dtype=torch.float32)
        self._asked |= not self._cuda  # on a GPU, `report` sets it
        bad = (total - total != 0) & active  # inf − inf and NaN − NaN are NaN
        self._bad.logical_or_(bad)
        return y.masked_fill(bad.view(-1, *[1] * (y.ndim - 1)), 0)

    def report(self, leaves: Sequence[Tensor]) -> None:
        """Start to copy the findings to the CPU. Every STATES_EVERY calls, check the states (B, …) too."""
        self._reports += 1
        states_too = self._reports % STATES_EVERY == 0
        if self._event is None and not states_too:
            return
        with torch.inference_mode():
            if states_too:
                for leaf in leaves:
                    total = leaf.reshape(len(leaf), -1).sum(1, dtype=torch.float32)
                    self._bad.logical_or_(total - total != 0)
            if self._event is not None:
                self._told.copy_(self._bad, non_blocking=True)
                self._event.record()
        self._asked = True

    def told(self) -> Tensor | None:
        """A mask (B,) of the streams found bad since the last call; None if none or not known yet."""
        if not self._asked or (self._event is not None and not self._event.query()):
            return None
        self._asked = False
        if not self._told.any():
            return None
        found = self._told.clone()
        self.restarts = [count + bad for count, bad in zip(self.restarts, found.tolist(), strict=True)]
        with torch.inference_mode():
            self._bad.zero_()
        return found
