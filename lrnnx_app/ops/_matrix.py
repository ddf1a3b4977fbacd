"""The scan with matrices as states by matmuls, inside chunks of time and between them.

    steps   0 1 2 3 | 4 5 6 7 |      chunks of 4
    within  ▙       |         |      y from v of the same chunk: a lower triangle of weights
    across          h         h      states between chunks, one after the other

The weight of step s in step t is q[t]·(Π a)∘k[s], with a product over s < r ≤ t. `_weights` makes all of them
by doubling blocks: decays are only multiplied, each at most 1, so that strong ones neither overflow nor take
digits of weak ones. A sequence that starts is a decay of 0. For the delta rule, w[t] = β(v[t] − h·a∘e) is
what is written (the UT transform of arXiv 2412.06464): w = W_v − W_k hᵀ for the state h before the chunk, by
the inverse of a triangular matrix.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lrnnx_app.ops._blocked import state_dtype
from lrnnx_app.ops._transforms import recomputed
from lrnnx_app.spec import unpadded, within

SIZE = 32  # most steps of a chunk, a power of 2
NUMBERS = {"cpu": 2**17}  # keys of a segment of chunks, which then fit a CPU's cache (measured)
NUMBERS_ELSEWHERE = 2**24  # more on a GPU, where each launch costs time
KEPT = 2**21  # up to so many keys, what a segment computes is kept for the backward pass; else done again


def matrix_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor | None,
    h: Tensor,
    *,
    erase: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step, by plain torch calls without checks: arguments of `matrix_scan` without T, and the state h.

    Returns:
        y (B, H, V) typed like v, and the new state (B, H, V, K) typed like h.
    """
    dtype, given = v.dtype, h.dtype
    q, k, v = (x.to(given) for x in (q, k, v))
    decay = log_decay.to(given).exp()
    h = h * (decay[..., None, None] if decay.ndim == 2 else decay[..., None, :])
    if beta is not None:
        e = k if erase is None else erase.to(given)
        v = beta.to(given)[..., None] * (v - (h * e[..., None, :]).sum(-1))
    h = torch.addcmul(h, v[..., None], k[..., None, :])
    return (h * q[..., None, :]).sum(-1).to(dtype), h


def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor | None,
    h0: Tensor | None,
    erase: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    whole: bool = False,
) -> tuple[Tensor, Tensor]:
    """The operator by torch calls, over segments of chunks or, if `whole`, at once; differentiable.

    Arguments and results are those of `matrix_scan`.
    """
    batch, time, heads, width = v.shape
    dtype = state_dtype(v.dtype)
    h = v.new_zeros(batch, heads, width, q.shape[-1], dtype=dtype) if h0 is None else h0.to(dtype)
    if reset is not None and lengths is not None:
        reset = reset & within(lengths, time, 2)
    inputs: list[Any] = [*(unpadded(x, lengths) for x in (q, k, v, log_decay, beta, erase)), reset]
    if reset is None:
        return _segment(h, *inputs) if whole else _segments(h, inputs)
    inputs, lost = _without_lost(inputs, reset)
    y, h = _segments(h, inputs)
    y, h = (torch.where(z[..., None, None], math.nan, x) for x, z in ((y, lost), (h, lost[:, -1:])))
    return y, h


def _without_lost(inputs: list[Any], reset: Tensor) -> tuple[list[Any], Tensor]:
    """The inputs with zeros at steps where one is not finite; and the steps (B, T) that those reach.

    A matmul would take them to the other sequences of a row, since a weight of 0 does not remove a NaN.
    """
    lost = torch.stack(
        [~x.isfinite().flatten(2).all(-1) for x in inputs if x is not None and x.ndim > 2]
    ).any(0)
    count = lost.cumsum(1)
    before = torch.where(reset, count - lost.long(), 0).cummax(1).values  # those of the sequences before
    cleared = [
        x if x is None or x.ndim == 2 else torch.where(lost[(...,) + (None,) * (x.ndim - 2)], 0, x)
        for x in inputs
    ]
    return cleared, count > before


def _segments(h: Tensor, inputs: list[Any]) -> tuple[Tensor, Tensor]:
    """y and the last state, segment by segment."""
    q, time = inputs[0], inputs[0].shape[1]
    numbers = q[:, :SIZE].numel()
    steps = SIZE * max(1, NUMBERS.get(q.device.type, NUMBERS_ELSEWHERE) // max(1, numbers))
    again = torch.is_grad_enabled() and time > steps and q.numel() > KEPT
    ys, segments = [], -(-time // steps)
    for parts in zip(*([x] * segments if x is None else x.split(steps, 1) for x in inputs), strict=True):
        y, h = recomputed(_segment, h, *parts) if again else _segment(h, *parts)
        ys.append(y)
    return torch.cat(ys, 1), h


def _segment(
    h: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor | None,
    erase: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y and the last state from some steps (B, T, H, …) at once, after the state h (B, H, V, K)."""
    batch, time, heads, _ = v.shape
    if time == 1:
        h = _uncut(h, None if reset is None else reset[..., None, None])
        *given, erase = (x if x is None else x[:, 0] for x in (q, k, v, log_decay, beta, erase))
        y, h = matrix_step(*given, h, erase=erase)  # type: ignore[arg-type]
        return y.unsqueeze(1), h
    size = min(SIZE, 1 << (time - 1).bit_length())

    def cut(x: Tensor) -> Tensor:
        """(B, T, H, …) as (chunks, B·H, size, …), with zeros beyond the end: they keep the state."""
        x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, -time % size)) if time % size else x
        return x.to(h.dtype).unflatten(1, (-1, size)).permute(1, 0, 3, 2, 4).flatten(1, 2)

    rows = torch.stack([cut(x) for x in ((q,) if beta is None else (q, k if erase is None else erase))], -2)
    k, values, a = cut(k), cut(v), cut(log_decay if log_decay.ndim == 4 else log_decay[..., None]).exp()
    seen = None
    if reset is not None:
        starts = cut(reset[..., None, None].expand(-1, -1, heads, 1)) > 0
        a, seen = torch.where(starts, 0, a), starts.cumsum(-2) > 0

    if a.shape[-1] == k.shape[-1]:
        weights, rows, k, through = _weights(rows, k, a)
    else:
        one = torch.ones_like(a)
        decays, enter, leave, through = _weights(one[..., None], one, a)
        products = (rows.flatten(-3, -2) @ k.mT).unflatten(-2, rows.shape[-3:-1])
        weights, rows, k = products * decays, rows * enter, k * leave
    (reading, *of_erase), (outputs, *inside) = rows.unbind(-2), weights.unbind(-2)
    erased = None
    if beta is not None:
        share = cut(beta[..., None])
        solve = _inverse(share * inside[0]) * share.mT
        values, erased = solve @ values, solve @ of_erase[0]
        reading = reading - outputs @ erased
    states = _across(h.flatten(0, 1), k, values, erased, through, None if seen is None else seen[..., -1:, :])
    y = _uncut(reading @ torch.stack(states[:-1]).mT, seen) + outputs @ values
    y = y.unflatten(1, (batch, heads)).permute(1, 0, 3, 2, 4).flatten(1, 2)
    return y[:, :time].to(v.dtype), states[-1].unflatten(0, (batch, heads))


def _across(
    h: Tensor, k: Tensor, values: Tensor, erased: Tensor | None, through: Tensor, cuts: Tensor | None
) -> list[Tensor]:
    """The states before each chunk, and the last one."""
    states, none = [h], [None] * len(k)
    erasing, cutting = (none if x is None else x for x in (erased, cuts))
    for key, new, decay, read, cut in zip(k, values, through.unsqueeze(-2), erasing, cutting, strict=True):
        h = _uncut(h, cut)
        new = new if read is None else new - read @ h.mT
        h = torch.addcmul(new.mT @ key, h, decay)
        states.append(h)
    return states


def _uncut(x: Tensor, cuts: Tensor | None) -> Tensor:
    """x, with 0 where a sequence has started. To multiply by 0 would not remove a NaN."""
    return x if cuts is None else torch.where(cuts, 0, x)


def _weights(rows: Tensor, k: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of m kinds of rows (…, L, m, K), and k and decays a (…, L, K), with L a power of 2:

    the weights (…, L, m, L) of steps s ≤ t; rows and k with the decays from the chunk's start and to its end;
    and the decays of the whole chunk (…, K).
    """
    kinds = rows.shape[-2]
    weights = (rows * k.unsqueeze(-2)).sum(-1)[..., None, :, None]  # (…, blocks, steps, m, steps)
    rows, through = rows * a.unsqueeze(-2), a
    while (blocks := through.shape[-2]) > 1:
        halves = rows.unflatten(-3, (blocks // 2, 2, -1)).unbind(-4)
        ks = k.unflatten(-2, (blocks // 2, 2, -1)).unbind(-3)
        corner = (halves[1].flatten(-3, -2) @ ks[0].mT).unflatten(-2, (-1, kinds))
        weights = _joined(weights, corner, -3)
        first, second = through.unflatten(-2, (-1, 2)).unbind(-2)
        rows = torch.stack((halves[0], halves[1] * first[..., None, None, :]), -4).flatten(-5, -3)
        k = torch.stack((ks[0] * second.unsqueeze(-2), ks[1]), -3).flatten(-4, -2)
        through = first * second
    return weights.squeeze(-4), rows, k, through.squeeze(-2)


def _joined(blocks: Tensor, corner: Tensor, steps: int) -> Tensor:
    """Pairs of lower triangles as half as many, with what lies between them; `steps` is the axis of rows."""
    first, second = blocks.unflatten(steps - 1, (-1, 2)).unbind(steps - 1)
    return torch.cat((F.pad(first, (0, first.shape[-1])), torch.cat((corner, second), -1)), steps)


def _inverse(triangle: Tensor) -> Tensor:
    """The inverse of I + what lies below the diagonal of `triangle` (…, L, L), with L a power of 2."""
    size = triangle.shape[-1]
    found = torch.ones_like(triangle[..., :1, None]).expand(*triangle.shape[:-2], size, 1, 1)
    while (step := found.shape[-1]) < size:
        parts = triangle.unflatten(-1, (-1, 2, step)).unflatten(-4, (-1, 2, step))
        corner = parts[..., 1, :, :, 0, :].diagonal(0, -4, -2).movedim(-1, -3)
        first, second = found.unflatten(-3, (-1, 2)).unbind(-3)
        found = _joined(found, -second @ corner @ first, -2)
    return found.squeeze(-3)
