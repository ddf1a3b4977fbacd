"""Pooling of events between the stages of a model (Event-SSM, Schöne et al. 2024, arXiv 2404.18508)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lrnnx_app.spec import Rows

POOLS_BY = ("mean", "time", "last")


class EventPoolState(NamedTuple):
    """Events that wait for their group to be full: x (B, stride − 1, d), dt (B, stride − 1), number (B,)."""

    x: Tensor
    dt: Tensor
    waiting: Tensor


class EventPool(nn.Module):
    """`stride` successive events become one: the features' mean, their mean weighted by dt, or the last ones;
    the elapsed times add up. A pooled event stands at the time of the last one of its group, so that a stage
    after it is causal; events of an unfinished group wait in the state, and are without effect at the end.
    """

    def __init__(self, d_model: int, stride: int, by: str = "mean") -> None:
        super().__init__()
        self.d_model, self.stride, self.by = d_model, stride, by

    def init_state(self, like: Tensor, batch: int) -> EventPoolState:
        wait = self.stride - 1
        zeros = like.new_zeros(batch, wait, self.d_model)
        return EventPoolState(zeros, like.new_zeros(batch, wait), like.new_zeros(batch, dtype=torch.int64))

    def forward(
        self, x: Tensor, state: EventPoolState | None, rows: Rows
    ) -> tuple[Tensor, EventPoolState, Rows]:
        """x (B, T, d), one sequence a row.

        Returns:
            Groups (B, T', d), the state, and the groups' rows: how many each has, and their dt if events have
            one. T' follows from T; from a fresh start ⌈T / stride⌉, else one more may be needed for what has
            waited.
        """
        dt, lengths, p = rows.dt, rows.counts(x), self.stride
        gaps = x.new_zeros(x.shape[:2]) if dt is None else dt
        count = lengths
        if state is not None:
            x = _joined(state.x.to(x.dtype), x, state.waiting)
            gaps = _joined(state.dt.to(gaps.dtype), gaps, state.waiting)
            count = state.waiting + lengths
        extra = -x.shape[1] % p
        x, gaps = nn.functional.pad(x, (0, 0, 0, extra)), nn.functional.pad(gaps, (0, extra))
        groups = count // p
        ahead = torch.arange(p - 1, device=x.device)
        at = (groups[:, None] * p + ahead).clamp_max(x.shape[1] - 1)
        after = EventPoolState(
            x.gather(1, at[..., None].expand(-1, -1, x.shape[2])), gaps.gather(1, at), count - groups * p
        )
        parts, spans = x.unflatten(1, (-1, p)), gaps.unflatten(1, (-1, p))
        total = spans.sum(-1)
        if self.by == "last":
            y = parts[:, :, -1]
        elif self.by == "mean" or dt is None:
            y = parts.mean(2)
        else:  # events of one instant count alike
            weight = torch.where(total[..., None] > 0, spans / total.clamp_min(1e-9)[..., None], 1 / p)
            y = (weight.to(parts.dtype)[..., None] * parts).sum(2)
        return y, after, Rows(None if dt is None else total, groups)


def _joined(before: Tensor, x: Tensor, count: Tensor) -> Tensor:
    """Row by row the first `count` steps of `before` (B, W, …), then x (B, T, …): (B, W + T, …)."""
    wide = torch.cat((before, x), 1)
    wait, steps = before.shape[1], torch.arange(wide.shape[1], device=x.device)
    source = torch.where(steps < count[:, None], steps, steps - count[:, None] + wait)
    source = source.clamp_max(wide.shape[1] - 1)
    if x.ndim == 3:
        source = source[..., None].expand(-1, -1, x.shape[2])
    return wide.gather(1, source)
