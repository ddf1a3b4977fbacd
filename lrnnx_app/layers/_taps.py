"""States by rules of two taps: h[t] = a[t]∘h[t−1] + gain[t]∘b[t] + gain₁[t]∘b[t−1].

What drove a state at the step before, b[t−1], is a part of what a layer carries from step to step.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lrnnx_app.ops import planar
from lrnnx_app.ops._blocked import cast
from lrnnx_app.ops.linear_scan import linear_scan, state_dtype
from lrnnx_app.ops.rules import Rule


class TappedState(NamedTuple):
    """h as of `DiagonalState`; before: what drove it at the last step."""

    h: Tensor
    before: Tensor


class Tapped(NamedTuple):
    """Coefficients by a rule of two taps, all in memory: see `_coefficients.Coefficients`."""

    lam: Tensor  # (2, N) planar eigenvalue λ
    delta: Tensor  # (N,) or (B, T, N) timescale Δ
    dt: Tensor | None  # (B, T) elapsed time δ; None is 1
    rule: Rule

    def scan(
        self,
        b: Tensor,
        h0: Tensor | None,
        before: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        reverse: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The states h, and h and b after each row's last step; `before` is b before the first one."""
        a, gain, late = self.rule(self.lam, self.delta, self.dt)
        a = a if a.ndim == b.ndim else a[None, None]
        driven = planar.mul(gain, b) + planar.mul(late, earlier(b, before, reset, reverse))
        h, last = linear_scan(a, driven, h0, lengths=lengths, reset=reset, reverse=reverse)
        return cast(h, b.dtype), last, latest(b, before, lengths)

    def step(self, b: Tensor, h: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        states, *after = self.scan(b.unsqueeze(1), h, before)
        return states.squeeze(1), after[0], after[1]


def earlier(
    x: Tensor, before: Tensor | None = None, reset: Tensor | None = None, reverse: bool = False
) -> Tensor:
    """x (B, T, …) of the step before: at the first step `before` (B, …), None for 0; at a reset 0.

    In `reverse` it is that of the step after, and 0 where a sequence ends.
    """
    first = torch.zeros_like(x[:, :1]) if before is None else cast(before, x.dtype).unsqueeze(1)
    moved = torch.cat((x, first), 1)[:, 1:] if reverse else torch.cat((first, x), 1)[:, :-1]
    if reset is None:
        return moved
    cut = F.pad(reset, (0, 1))[:, 1:] if reverse else reset
    return torch.where(cut[(...,) + (None,) * (x.ndim - 2)], 0, moved)


def latest(x: Tensor, before: Tensor | None, lengths: Tensor | None = None) -> Tensor:
    """x (B, T, …) at each row's last step, in the precision of a state; in a row of length 0 `before`."""
    x = cast(x, state_dtype(x.dtype))
    if lengths is None:
        return x[:, -1]
    first = torch.zeros_like(x[:, :1]) if before is None else cast(before, x.dtype).unsqueeze(1)
    index = lengths.long()[(...,) + (None,) * (x.ndim - 1)]
    return torch.cat((first, x), 1).gather(1, index.expand(-1, 1, *x.shape[2:])).squeeze(1)
