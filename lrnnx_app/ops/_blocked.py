"""The linear scan and its adjoint by torch calls alone: for every device, with few steps in Python.

The functions for parts of it take numbers with planes: (B, T, P, N) with P = 1 (real) or 2 (complex).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lrnnx_app.ops import planar
from lrnnx_app.spec import unpadded, within

RADIX = 8  # steps of a block: about 2·RADIX·log(T)/log(RADIX) Python steps for a scan of length T


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of states for values of `dtype`: float32 for half precision, else `dtype` itself."""
    return torch.float32 if dtype is torch.bfloat16 or dtype is torch.float16 else dtype


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x.to(dtype)`, but faster if x has that dtype already: `to` then takes a microsecond for nothing."""
    return x if x.dtype is dtype else x.to(dtype)


def cut(x: Tensor, size: int) -> Tensor:
    """(B, T, …) as (B, chunks, size, …), with zeros that fill the last chunk."""
    return F.pad(x, (0, 0) * (x.ndim - 2) + (0, -x.shape[1] % size)).unflatten(1, (-1, size))


def scan(
    a: Tensor, b: Tensor, h0: Tensor | None, lengths: Tensor | None, reset: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    """The scan; arguments and results as of the operator `linear_scan`."""
    if _grouped(a, b):
        return _by_group(scan, a, b, h0, lengths, reset, reverse)
    batch, time, *state = b.shape
    dtype = state_dtype(b.dtype)
    cuts = _cuts(_starts(lengths, reset, reverse), reverse)
    drive = unpadded(_with_planes(b, state, dtype), lengths)
    a = _masked(_with_planes(a, state, dtype), lengths, cuts, time)
    h = drive.new_zeros(drive[:, 0].shape) if h0 is None else _with_planes(h0, state, dtype)
    out = torch.empty_like(drive, memory_format=torch.contiguous_format)
    last = _scan(a, drive, h, cuts, out, reverse)
    return out.reshape(b.shape).to(b.dtype), last.reshape(batch, *state).clone()


def composed(
    a: Tensor, b: Tensor, h0: Tensor | None, lengths: Tensor | None, reset: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    """`scan` without writes in place, so that torch can batch, trace and differentiate it in every mode.

    It works by doubling: after k rounds, the sum at each step covers the 2^k steps up to that step.
    """
    if _grouped(a, b):
        return _by_group(composed, a, b, h0, lengths, reset, reverse)
    batch, time, *state = b.shape
    dtype = state_dtype(b.dtype)
    cuts = _cuts(_starts(lengths, reset, reverse), reverse)
    h = unpadded(_with_planes(b, state, dtype), lengths)
    a = _masked(_with_planes(a, state, dtype), lengths, cuts, time)
    if reverse:
        a, h, cuts = a.flip(1), h.flip(1), None if cuts is None else cuts.flip(1)
    if h0 is not None:
        start = _uncut(_with_planes(h0, state, dtype)[:, None], None if cuts is None else cuts[:, :1])
        h = torch.cat((h[:, :1] + planar.mul(a[:, :1], start), h[:, 1:]), 1)
    number = None if cuts is None else cuts.cumsum(1)
    distance = 1
    while distance < time:
        other = None if number is None else number[:, distance:] != number[:, :-distance]
        even = a.shape[1] == 1
        reached = planar.mul(a if even else a[:, distance:], _uncut(h[:, :-distance], other))
        h = torch.cat((h[:, :distance], h[:, distance:] + reached), 1)
        further = planar.mul(a, a) if even else planar.mul(a[:, distance:], _uncut(a[:, :-distance], other))
        a = further if even else torch.cat((a[:, :distance], further), 1)
        distance *= 2
    last = h[:, -1].reshape(batch, *state)
    return (h.flip(1) if reverse else h).reshape(b.shape).to(b.dtype), last.clone()


def adjoint(
    grad: Tensor,
    grad_last: Tensor,
    given: Tensor,
    states: Tensor,
    h0: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
    run=scan,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, b and h0, by the same scan in the other direction: c[t] = g[t] + conj(a[t+1])·c[t+1].

    `run` is the scan to use. If it is differentiable, the gradients are differentiable too.
    """
    if _grouped(given, states):
        return _adjoint_by_group(grad, grad_last, given, states, h0, lengths, reset, reverse, run)
    _, time, *state = states.shape
    dtype = state_dtype(states.dtype)
    first, final = (-1, 0) if reverse else (0, -1)
    without = (lambda z: z.squeeze(-2)) if len(state) == 1 else (lambda z: z)

    starts = _starts(lengths, reset, reverse)
    cuts = _cuts(starts, reverse)
    a = planar.conj(_masked(_with_planes(given, state, dtype), lengths, cuts, time))
    grad = grad.to(dtype, copy=True)
    grad[:, final] += grad_last
    behind, zero = a, torch.zeros_like(a[:, :1])
    if a.shape[1] > 1:
        behind = torch.cat((zero, a[:, :-1]) if reverse else (a[:, 1:], zero), 1)
    c, _ = run(without(behind), grad, None, None, starts, not reverse)
    c = _with_planes(c, state, dtype)
    grad_h0 = planar.mul(a[:, first if a.shape[1] > 1 else 0], c[:, first])
    grad_h0 = without(_uncut(grad_h0, None if cuts is None else cuts[:, first]))
    c = unpadded(c, lengths)
    h = _with_planes(states, state, dtype)
    start = torch.zeros_like(h[:, 0]) if h0 is None else _with_planes(h0, state, dtype)
    before = torch.cat((h[:, 1:], start[:, None]) if reverse else (start[:, None], h[:, :-1]), 1)
    full = planar.mul(planar.conj(_uncut(before, cuts)), c)
    grad_a = without(full).sum_to_size(given.shape).to(given.dtype).contiguous()
    return grad_a, without(c).to(states.dtype), grad_h0


def _grouped(a: Tensor, b: Tensor) -> bool:
    """Whether each coefficient is for a group of neighbouring states: not for one, and not for all."""
    return a.shape[-1] not in (1, b.shape[-1])


def _fold(x: Tensor, groups: int) -> Tensor:
    """(B, …, groups·n) as (B·groups, …, n): each group becomes a row of the batch."""
    return x.unflatten(-1, (groups, -1)).movedim(-2, 1).flatten(0, 1)


def _unfold(x: Tensor, groups: int) -> Tensor:
    """The inverse of `_fold`."""
    return x.unflatten(0, (-1 if x.shape[0] else 0, groups)).movedim(1, -2).flatten(-2)


def _rows(groups: int, *of_rows: Tensor | None) -> list[Tensor | None]:
    """Tensors (B, …), with each row repeated for each of its groups."""
    return [None if x is None else x.repeat_interleave(groups, 0) for x in of_rows]


def _by_group(run, a, b, h0, lengths, reset, reverse) -> tuple[Tensor, Tensor]:
    groups = a.shape[-1]
    a = _fold(a.expand(b.shape[0], -1, -1), groups)
    h0 = None if h0 is None else _fold(h0, groups)
    states, last = run(a, _fold(b, groups), h0, *_rows(groups, lengths, reset), reverse)
    return _unfold(states, groups), _unfold(last, groups)


def _adjoint_by_group(
    grad, grad_last, given, states, h0, lengths, reset, reverse, run
) -> tuple[Tensor, Tensor, Tensor]:
    groups = given.shape[-1]
    a = _fold(cast(given, state_dtype(given.dtype)).expand(states.shape[0], -1, -1), groups)  # for exact sums
    grad, grad_last, states = (_fold(x, groups) for x in (grad, grad_last, states))
    h0 = None if h0 is None else _fold(h0, groups)
    lengths, reset = _rows(groups, lengths, reset)
    found = adjoint(grad, grad_last, a, states, h0, lengths, reset, reverse, run)
    grad_a, grad_b, grad_h0 = (_unfold(x, groups) for x in found)
    return grad_a.sum_to_size(given.shape).to(given.dtype).contiguous(), grad_b, grad_h0


def _affine(a: Tensor, h: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """Write a·h + b to `out`, which must not share memory with h."""
    (ar, ai), (hr, hi), (br, bi), (re, im) = (planar.planes(z) for z in (a, h, b, out))
    torch.addcmul(br, ar, hr, out=re)
    if ai is not None and hi is not None and bi is not None and im is not None:
        re.addcmul_(ai, hi, value=-1)
        torch.addcmul(bi, ar, hi, out=im).addcmul_(ai, hr)
    return out


def _scan(a: Tensor, b: Tensor, h: Tensor, cuts: Tensor | None, out: Tensor, reverse: bool) -> Tensor:
    """Scan a (B or 1, T or 1, P, N) and b (B, T, P, N) from state h; writes to `out`, returns the last state.

    First, each block of RADIX steps is reduced to one affine map, all blocks at once. A scan over these maps
    gives the state that enters each block. Then all blocks run through their steps from that state.
    """
    time = b.shape[1]
    blocks = time // RADIX if time > 2 * RADIX else 0
    main = blocks * RADIX
    a = a.expand(-1, time, -1, -1)

    def order(first: int, last: int) -> range:
        return range(last - 1, first - 1, -1) if reverse else range(first, last)

    def walk(h: Tensor) -> Tensor:
        """Run through the last steps, which do not fill a block."""
        for t in order(main, time):
            h = _affine(a[:, t], _uncut(h, None if cuts is None else cuts[:, t]), b[:, t], out[:, t])
        return h

    h = walk(h) if reverse else h
    if blocks:
        a_, b_, out_ = (x[:, :main].unflatten(1, (blocks, RADIX)).unbind(2) for x in (a, b, out))
        if a.stride(1) == 0:
            a_ = [x[:, :1] for x in a_]
        cut: Any = [None] * RADIX
        if cuts is not None:
            cut = cuts[:, :main].unflatten(1, (blocks, RADIX)).unbind(2)
        inside = order(0, RADIX)
        slope, offset = _uncut(a_[inside[0]], cut[inside[0]]), b_[inside[0]].clone()
        spare = torch.empty_like(offset)
        for k in inside[1:]:
            slope = _uncut(planar.mul(a_[k], slope), cut[k])
            offset, spare = _affine(a_[k], _uncut(offset, cut[k]), b_[k], spare), offset
        any_cut = None if cuts is None else torch.stack(cut).any(0)
        last = _scan(slope, offset, h, any_cut, spare, reverse)
        ends = spare
        inner = torch.cat((ends[:, 1:], h[:, None]) if reverse else (h[:, None], ends[:, :-1]), 1)
        for k in inside:
            inner = _affine(a_[k], _uncut(inner, cut[k]), b_[k], out_[k])
        h = last
    return h if reverse else walk(h)


def _starts(lengths: Tensor | None, reset: Tensor | None, reverse: bool) -> Tensor | None:
    """The starts (B, T) that count: a start among padded steps does not, since these keep the state."""
    if reset is None or lengths is None:
        return reset
    return reset & (torch.arange(reset.shape[1], device=reset.device) - int(reverse) < lengths[:, None])


def _cuts(starts: Tensor | None, reverse: bool) -> Tensor | None:
    """(B, T, 1, 1) bool: the steps that drop the state before them. In reverse, these precede a start."""
    if starts is None:
        return None
    if reverse:
        starts = torch.cat((starts[:, 1:], torch.zeros_like(starts[:, :1])), 1)
    return starts[:, :, None, None]


def _uncut(z: Tensor, cuts: Tensor | None) -> Tensor:
    """z, with 0 where `cuts` is true. To multiply the state by 0 would not remove a NaN."""
    return z if cuts is None else torch.where(cuts, 0, z)


def _masked(a: Tensor, lengths: Tensor | None, cuts: Tensor | None, time: int) -> Tensor:
    """`a` with 1 beyond a row's length and, if it varies along time, 0 where a packed sequence starts."""
    a = _uncut(a, cuts) if a.shape[1] > 1 else a
    return a if lengths is None else torch.where(within(lengths, time, a.ndim), a, planar.one(a))


def _with_planes(x: Tensor, state: list[int], dtype: torch.dtype) -> Tensor:
    """x (..., *state) as (..., P, N) in the given precision."""
    x = x.to(dtype)
    return x.unsqueeze(-2) if len(state) == 1 else x
