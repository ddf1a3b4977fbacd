"""The linear scan and its adjoint from torch calls alone: runs on every device, few Python steps.

Inside, everything has planes: (B, T, P, N) with P = 1 (real) or 2 (complex).
"""

import torch
from torch import Tensor

from lrnnx_app.ops import planar

RADIX = 8  # steps of a block: about 2·RADIX·log(T)/log(RADIX) Python steps for a scan of length T


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Precision in which states are summed and handed on."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def scan(
    a: Tensor, b: Tensor, h0: Tensor | None, lengths: Tensor | None, reset: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Arguments and results of `linear_scan`."""
    batch, time, *state = b.shape
    dtype = state_dtype(b.dtype)
    drive = _with_planes(b, state, dtype)
    a = _masked(_with_planes(a, state, dtype), lengths, reset, time, reverse)
    if lengths is not None:
        drive = torch.where(_valid(lengths, time), drive, 0)
    h = drive.new_zeros(drive[:, 0].shape) if h0 is None else _with_planes(h0, state, dtype)
    out = torch.empty_like(drive, memory_format=torch.contiguous_format)
    last = _scan(a, drive, h, out, reverse)
    return out.reshape(b.shape).to(b.dtype), last.reshape(batch, *state).clone()


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
    """Gradients of a, b and h0, by the same scan run the other way: c[t] = g[t] + conj(a[t+1])·c[t+1].

    `run` is the scan to use: a differentiable one makes the gradients differentiable.
    """
    _, time, *state = states.shape
    dtype = state_dtype(states.dtype)
    first, final = (-1, 0) if reverse else (0, -1)
    without = (lambda z: z.squeeze(-2)) if len(state) == 1 else (lambda z: z)

    a = planar.conj(_masked(_with_planes(given, state, dtype), lengths, reset, time, reverse))
    grad = grad.to(dtype, copy=True)
    grad[:, final] += grad_last
    # The coefficient that wraps around meets a zero state.
    behind = a if a.shape[1] == 1 else a.roll(1 if reverse else -1, 1)
    c, _ = run(without(behind), grad, None, None, None, not reverse)
    c = _with_planes(c, state, dtype)
    grad_h0 = without(planar.mul(a[:, first if a.shape[1] > 1 else 0], c[:, first]))
    if lengths is not None:
        c = torch.where(_valid(lengths, time), c, 0)
    h = _with_planes(states, state, dtype)
    start = torch.zeros_like(h[:, 0]) if h0 is None else _with_planes(h0, state, dtype)
    before = torch.cat((h[:, 1:], start[:, None]) if reverse else (start[:, None], h[:, :-1]), 1)
    full = planar.mul(planar.conj(before), c)
    if reset is not None:
        full = torch.where(_cuts(reset, reverse), 0, full)
    grad_a = without(full).sum_to_size(given.shape).to(given.dtype)
    return grad_a, without(c).to(states.dtype), grad_h0


def _affine(a: Tensor, h: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """Write a·h + b to out, which must not overlap h."""
    (ar, ai), (hr, hi), (br, bi), (re, im) = (planar.planes(z) for z in (a, h, b, out))
    torch.addcmul(br, ar, hr, out=re)
    if ai is not None and hi is not None and bi is not None and im is not None:
        re.addcmul_(ai, hi, value=-1)
        torch.addcmul(bi, ar, hi, out=im).addcmul_(ai, hr)
    return out


def _scan(a: Tensor, b: Tensor, h: Tensor, out: Tensor, reverse: bool) -> Tensor:
    """Scan (B or 1, T or 1, P, N), (B, T, P, N) from state h into out; returns the last state.

    Blocks of RADIX steps are reduced to one affine map each, side by side; the scan of those maps gives
    every block its initial state; then the blocks are replayed from there.
    """
    time = b.shape[1]
    blocks = time // RADIX if time > 2 * RADIX else 0
    main = blocks * RADIX
    a = a.expand(-1, time, -1, -1)

    def order(first: int, last: int) -> range:
        return range(last - 1, first - 1, -1) if reverse else range(first, last)

    def walk(h: Tensor) -> Tensor:
        """The steps that fill no block."""
        for t in order(main, time):
            h = _affine(a[:, t], h, b[:, t], out[:, t])
        return h

    h = walk(h) if reverse else h
    if blocks:
        a_, b_, out_ = (x[:, :main].unflatten(1, (blocks, RADIX)).unbind(2) for x in (a, b, out))
        if a.stride(1) == 0:
            a_ = [x[:, :1] for x in a_]
        inside = order(0, RADIX)
        slope, offset, spare = a_[inside[0]], b_[inside[0]].clone(), torch.empty_like(b_[0])
        for k in inside[1:]:
            slope = planar.mul(a_[k], slope)
            offset, spare = _affine(a_[k], offset, b_[k], spare), offset
        last = _scan(slope, offset, h, spare, reverse)
        ends = spare
        inner = torch.cat((ends[:, 1:], h[:, None]) if reverse else (h[:, None], ends[:, :-1]), 1)
        for k in inside:
            inner = _affine(a_[k], inner, b_[k], out_[k])
        h = last
    return h if reverse else walk(h)


def _cuts(reset: Tensor, reverse: bool) -> Tensor:
    """(B, T, 1, 1) bool: the steps whose incoming state is dropped; backwards, those before a start."""
    if reverse:
        reset = torch.cat((reset[:, 1:], torch.zeros_like(reset[:, :1])), 1)
    return reset[:, :, None, None]


def _valid(lengths: Tensor, time: int) -> Tensor:
    """(B, T, 1, 1) bool: the steps before a row's end."""
    return (torch.arange(time, device=lengths.device) < lengths[:, None])[:, :, None, None]


def _masked(a: Tensor, lengths: Tensor | None, reset: Tensor | None, time: int, reverse: bool) -> Tensor:
    """`a` with 0 where a packed sequence starts and 1 where a row has ended."""
    if reset is not None:
        a = torch.where(_cuts(reset, reverse), 0, a)
    if lengths is not None:
        a = torch.where(_valid(lengths, time), a, planar.one(a))
    return a


def _with_planes(x: Tensor, state: list[int], dtype: torch.dtype) -> Tensor:
    """x (..., *state) as (..., P, N) in the given precision."""
    x = x.to(dtype)
    return x.unsqueeze(-2) if len(state) == 1 else x
