"""A bank of complex systems with decays that are constant in time, by matmuls inside chunks of time.

    h[t] = exp(log a)∘h[t−1] + gain∘v[t],   w[t] = Re Σ_n c_n h_n[t] + direct∘v[t]

for G groups of n states, each with one input and one output, as in S4D (arXiv 2206.11893). Inside a chunk of
L steps the outputs are a triangular Toeplitz matrix times the inputs; between chunks only states go, one for
L steps, so that memory holds 2·n/L as many states as inputs. All but the scan of these is arithmetic that
tensor cores and a CPU's vector units do best. For decays that vary see `matrix_scan`.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lrnnx_app.ops import planar
from lrnnx_app.ops._blocked import cast, unpadded
from lrnnx_app.ops._operands import check, check_steps, principal
from lrnnx_app.ops._transforms import transformed
from lrnnx_app.ops.linear_scan import linear_scan, state_dtype

# Steps of a chunk, and from how many samples B·T on they are the fastest on a kind of device (measured).
STEPS = {"cpu": ((32, 0),), "cuda": ((32, 0), (64, 2**14), (128, 2**17))}


def bank_scan(
    v: Tensor,
    log_a: Tensor,
    gain: Tensor,
    c: Tensor,
    direct: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the bank along time; every argument but `lengths` is differentiable, any number of times.

    Args:
        v: the input of each group (B, T, G), T ≥ 1.
        log_a: logarithms of decays, planar (2, G·n) with n ≥ 1 and the states of a group side by side. For an
            eigenvalue λ and a timescale Δ it is λ·Δ.
        gain: factors of the input, shaped as log_a.
        c: weights of the output, shaped as log_a.
        direct: (G,) skip from each group's input to its output; None is 0.
        h0: state before the first step, (B, 2, G·n); zero if None.
        lengths: (B,) integers. Steps at and beyond a row's length are not read, keep the state, and have
            output 0.
        size: steps of a chunk; None is what was measured to be the fastest, see `steps`.

    Returns:
        w shaped and typed like v, with the steps of a group side by side in memory; and the state after the
        last step taken (B, 2, G·n), float32 or wider.

    Raises:
        ValueError: a shape, dtype or device does not fit; names it.
    """
    batch, time, groups = principal("v", v, "BTG")
    states = log_a.shape[-1] if log_a.ndim == 2 else 0
    if not states or states % groups:
        raise ValueError(f"log_a must be (2, {groups}·n) with n ≥ 1, not {tuple(log_a.shape)}")
    for name, x in (("log_a", log_a), ("gain", gain), ("c", c)):
        check(name, x, (2, states), v)
    check("direct", direct, (groups,), v)
    check("h0", h0, (batch, 2, states), v)
    check_steps(v, lengths=lengths)
    dtype = state_dtype(v.dtype)
    if lengths is not None:
        lengths = lengths.long().clamp(0, time)
    log_a, gain, c = (cast(x, dtype) for x in (log_a, gain, c))
    direct = None if direct is None else cast(direct, dtype)
    made = chunks(log_a, gain, c, direct, groups, min(size or steps(v), time))
    w, last = bank_scan_unchecked(made, cast(unpadded(v, lengths), dtype), h0, lengths)
    return cast(unpadded(w, lengths), v.dtype), last


def steps(v: Tensor) -> int:
    """The number of steps of a chunk that is the fastest for inputs v (B, T, G)."""
    samples = v.shape[0] * v.shape[1]
    return max(size for size, least in STEPS.get(v.device.type, STEPS["cuda"]) if samples >= least)


class Chunks(NamedTuple):
    """The matrices of a bank of G groups of n modes, S = G·n, for chunks of L steps."""

    inside: Tensor  # (G, L, L): inputs to outputs
    entering: Tensor  # (G, L, 2n): inputs to what they add to the state after the chunk
    leaving: Tensor  # (G, 2n, L): the state before the chunk to outputs
    log_a: Tensor  # (2, S)

    @property
    def size(self) -> int:
        return self.inside.shape[-1]


def chunks(log_a: Tensor, gain: Tensor, c: Tensor, direct: Tensor | None, groups: int, size: int) -> Chunks:
    """The matrices of the bank, for chunks of `size` steps; other arguments as of `bank_scan`."""
    times = torch.arange(size + 1, device=log_a.device, dtype=log_a.dtype)
    powers = planar.exp(log_a * times[:, None, None])
    weight = planar.mul(c, gain)
    kernel = (weight[0] * powers[:-1, 0] - weight[1] * powers[:-1, 1]).unflatten(-1, (groups, -1)).sum(-1)
    if direct is not None:
        kernel = torch.cat((kernel[:1] + direct, kernel[1:]))
    inside = F.pad(kernel.T, (size - 1, 0)).unfold(-1, size, 1).flip(1)  # row s, column t: kernel[t − s]
    entering = modes_last(planar.mul(gain, powers[:-1].flip(0)), groups)
    leaving = modes_last(planar.conj(planar.mul(c, powers[1:])), groups).mT.contiguous()
    return Chunks(inside, entering, leaving, log_a)


def bank_scan_unchecked(
    made: Chunks, v: Tensor, h0: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`bank_scan` from matrices that may be kept, without checks; v must be finite beyond a row's length.

    There w is not defined. v is copied unless it lies in memory as w does: a matmul can read and write that.
    """
    batch, time, groups = v.shape
    size, numbers = made.size, made.entering.shape[-1]  # of a group's state
    count = -(-time // size)
    rows = by_group(v)
    padded = F.pad(rows, (0, count * size - time)) if time % size else rows
    u = padded.view(groups, batch * count, size)
    added = (u @ made.entering).view(groups, batch, count, 2, numbers // 2).permute(1, 2, 3, 0, 4)
    first = torch.zeros_like(added[:, 0]) if h0 is None else h0.to(added.dtype).unflatten(-1, (groups, -1))
    through = planar.exp(made.log_a * size)
    inputs = torch.cat((first[:, None], added[:, :-1]), 1).flatten(3)
    before, _ = linear_scan(through[None, None], inputs)
    states = before.unflatten(-1, (groups, -1)).permute(3, 0, 1, 2, 4).reshape(groups, batch * count, numbers)
    w = states @ made.leaving
    w = torch.baddbmm(w, u, made.inside) if transformed() else w.baddbmm_(u, made.inside)
    w = w.view(groups, batch, count * size)[..., :time].permute(1, 2, 0)
    if lengths is None and time % size == 0:
        return w, planar.mul(through, before[:, -1]) + added[:, -1].flatten(2)
    return w, _last(made, v, before, time if lengths is None else lengths)


class _Turned(torch.autograd.Function):
    """x.permute(order) with its elements in that order, and the gradient's in that of x: one copy each way.

    Left to autograd, every matmul that reads the gradient would copy it for itself.
    """

    @staticmethod
    def forward(x, order):
        return x.permute(order).contiguous()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.order = inputs[1]

    @staticmethod
    def backward(ctx, g):  # pyright: ignore[reportIncompatibleMethodOverride]  (of any gradients)
        inverse = [ctx.order.index(d) for d in range(g.ndim)]
        return g.permute(inverse).contiguous(), None


def by_group(v: Tensor) -> Tensor:
    """(B, T, G) as (G, B, T) with the steps of a group side by side in memory."""
    return v.permute(2, 0, 1) if v.permute(2, 0, 1).is_contiguous() else _turned(v, (2, 0, 1))


def by_step(w: Tensor) -> Tensor:
    """w (B, T, G) of `bank_scan` with the groups of a step side by side in memory."""
    return w if w.is_contiguous() else _turned(w.permute(2, 0, 1), (1, 2, 0))


def _turned(x: Tensor, order: tuple[int, ...]) -> Tensor:
    if torch.compiler.is_compiling() or transformed() or not (torch.is_grad_enabled() and x.requires_grad):
        return x.permute(order).contiguous()  # a compiler lays gradients out by itself
    wanted: Any = _Turned.apply(x, order)
    return wanted


def _last(c: Chunks, v: Tensor, before: Tensor, lengths: Tensor | int) -> Tensor:
    """States (B, 2, S) after each row's last step, from that before its last chunk and the inputs since."""
    batch, _, groups = v.shape
    if isinstance(lengths, int):
        lengths = torch.full((batch,), lengths, dtype=torch.int64, device=v.device)
    start = (lengths - 1).clamp_min(0) // c.size  # the chunk of the last step
    rest = lengths - start * c.size
    h = before.gather(1, start.view(-1, 1, 1, 1).expand(-1, 1, *before.shape[2:]))[:, 0]
    index = lengths[:, None] + torch.arange(-c.size, 0, device=v.device)
    window = v.gather(1, index.clamp_min(0)[..., None].expand(-1, -1, groups))
    window = torch.where((index >= (start * c.size)[:, None])[..., None], window, 0)
    added = (window.permute(2, 0, 1) @ c.entering).unflatten(-1, (2, -1)).permute(1, 2, 0, 3).flatten(2)
    return planar.mul(planar.exp(c.log_a * rest[:, None, None].to(c.log_a.dtype)), h) + added


def modes_last(z: Tensor, groups: int) -> Tensor:
    """(K, 2, groups·modes) to (groups, K, 2·modes)."""
    return z.unflatten(-1, (groups, -1)).permute(2, 0, 1, 3).flatten(-2)


def reference(
    v: Tensor,
    log_a: Tensor,
    gain: Tensor,
    c: Tensor,
    direct: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition, one step at a time in a complex dtype; arguments and results as in `bank_scan`."""
    batch, time, groups = v.shape

    def number(z: Tensor) -> Tensor:
        return torch.complex(*z.unbind(-2)).unflatten(-1, (groups, -1))

    a, gain, c = number(log_a).exp(), number(gain), number(c)
    h = number(log_a.new_zeros(batch, *log_a.shape) if h0 is None else h0)
    ws = []
    for t in range(time):
        new = a * h + gain * v[:, t, :, None]
        valid = None if lengths is None else (t < lengths)[:, None, None]
        h = new if valid is None else torch.where(valid, new, h)
        w = (c * h).sum(-1).real
        ws.append(w if direct is None else w + direct * v[:, t])
    last = h.flatten(1)
    return unpadded(torch.stack(ws, 1), lengths), torch.stack((last.real, last.imag), 1)
