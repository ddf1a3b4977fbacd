"""The one recurrence: h[t] = a[t]·h[t−1] + b[t], over (B, T, N) real or (B, T, 2, N) planar complex.

`linear_scan` is a PyTorch operator. Its everyday implementation is a blocked scan made of torch calls;
`reference` is the definition that tests compare with. The sums run in float32 for half-precision
storage, and the last state is returned in that precision.
"""

import torch
from torch import Tensor

from lrnnx_app.ops import planar

RADIX = 8  # steps of a block: about 2·RADIX·log(T)/log(RADIX) Python steps for a scan of length T


def linear_scan(
    a: Tensor,
    b: Tensor,
    h0: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Scan along time; every argument but `lengths` and `reset` is differentiable.

    Args:
        a: coefficients (B or 1, T or 1, N), or (B or 1, T or 1, 2, N) when complex.
        b: inputs (B, T, N), or (B, T, 2, N) when complex; T ≥ 1.
        h0: state before the first step, (B, N) or (B, 2, N); zero if None.
        lengths: (B,) integers; steps at and beyond a row's length hold the state.
        reset: (B, T) bool; true where a packed sequence starts, so that nothing crosses into it.
        reverse: run from the last step to the first.

    Returns:
        All states, shaped and typed like b; and the state after the last step taken, (B, N) or (B, 2, N),
        float32 where b is half precision.

    Raises:
        ValueError: the shapes do not fit; names them.
    """
    if b.ndim not in (3, 4) or (b.ndim == 4 and b.shape[2] != 2) or b.shape[1] < 1:
        raise ValueError(f"b must be (B, T, N) or (B, T, 2, N) with T ≥ 1, not {tuple(b.shape)}")
    batch, time, *state = b.shape
    if (
        a.ndim != b.ndim
        or a.shape[0] not in (1, batch)
        or a.shape[1] not in (1, time)
        or list(a.shape[2:]) != state
    ):
        raise ValueError(f"a {tuple(a.shape)} does not broadcast along batch and time to b {tuple(b.shape)}")
    if h0 is not None and list(h0.shape) != [batch, *state]:
        raise ValueError(f"h0 must be {(batch, *state)}, not {tuple(h0.shape)}")
    if lengths is not None and list(lengths.shape) != [batch]:
        raise ValueError(f"lengths must be {(batch,)}, not {tuple(lengths.shape)}")
    if reset is not None and list(reset.shape) != [batch, time]:
        raise ValueError(f"reset must be {(batch, time)}, not {tuple(reset.shape)}")
    return torch.ops.lrnnx.linear_scan(a, b, h0, lengths, reset, reverse)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Precision in which states are summed and handed on."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def reference(
    a: Tensor,
    b: Tensor,
    h0: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """The definition, one step at a time; arguments and results as in `linear_scan`."""

    def number(z: Tensor) -> Tensor:
        z = z.to(state_dtype(z.dtype))
        return torch.complex(*z.unbind(-2)) if b.ndim == 4 else z

    def planes(z: Tensor) -> Tensor:
        return torch.stack((z.real, z.imag), -2) if b.ndim == 4 else z

    batch, time, *state = b.shape
    h = number(b.new_zeros(batch, *state) if h0 is None else h0)
    coefficient, drive = number(a.expand(b.shape)), number(b)
    states = [h] * time
    for t in reversed(range(time)) if reverse else range(time):
        start = t + 1 if reverse else t
        before = h
        if reset is not None and start < time:
            before = torch.where(reset[:, start, None], 0, h)
        new = coefficient[:, t] * before + drive[:, t]
        h = new if lengths is None else torch.where((t < lengths)[:, None], new, h)
        states[t] = h
    return planes(torch.stack(states, 1)).to(b.dtype), planes(h)


# --- blocked implementation: everything below has planes, (B, T, P, N) with P = 1 or 2 -----------------


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


@torch.library.custom_op("lrnnx::linear_scan", mutates_args=())
def _linear_scan(
    a: Tensor,
    b: Tensor,
    h0: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
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


@_linear_scan.register_fake
def _(a, b, h0, lengths, reset, reverse):
    return b.new_empty(b.shape), b.new_empty((b.shape[0], *b.shape[2:]), dtype=state_dtype(b.dtype))


def _setup(ctx, inputs, output):
    a, b, h0, lengths, reset, ctx.reverse = inputs
    ctx.dtype = b.dtype
    ctx.save_for_backward(a, h0, lengths, reset, output[0])


def _backward(ctx, grad_states, grad_last):
    """The adjoint is the same scan run the other way: c[t] = g[t] + conj(a[t+1])·c[t+1]."""
    given, h0, lengths, reset, states = ctx.saved_tensors
    _, time, *state = states.shape
    dtype, reverse = state_dtype(ctx.dtype), ctx.reverse
    first, final = (-1, 0) if reverse else (0, -1)
    without = (lambda z: z.squeeze(-2)) if len(state) == 1 else (lambda z: z)

    a = planar.conj(_masked(_with_planes(given, state, dtype), lengths, reset, time, reverse))
    grad = grad_states.to(dtype, copy=True)
    grad[:, final] += grad_last
    # The coefficient that wraps around meets a zero state.
    behind = a if a.shape[1] == 1 else a.roll(1 if reverse else -1, 1)
    c, _ = torch.ops.lrnnx.linear_scan(without(behind), grad, None, None, None, not reverse)
    c = _with_planes(c, state, dtype)

    grad_h0 = None
    if ctx.needs_input_grad[2]:
        grad_h0 = without(planar.mul(a[:, first if a.shape[1] > 1 else 0], c[:, first])).to(h0.dtype)
    if lengths is not None:
        c = torch.where(_valid(lengths, time), c, 0)
    grad_a = None
    if ctx.needs_input_grad[0]:
        h = _with_planes(states, state, dtype)
        start = torch.zeros_like(h[:, 0]) if h0 is None else _with_planes(h0, state, dtype)
        before = torch.cat((h[:, 1:], start[:, None]) if reverse else (start[:, None], h[:, :-1]), 1)
        full = planar.mul(planar.conj(before), c)
        if reset is not None:
            full = torch.where(_cuts(reset, reverse), 0, full)
        grad_a = without(full).sum_to_size(given.shape).to(given.dtype)
    return grad_a, without(c).to(ctx.dtype), grad_h0, None, None, None


_linear_scan.register_autograd(_backward, setup_context=_setup)
