"""A bank of time-invariant systems as matmuls over chunks of time, joined by a scan over the chunks' states.

Inside a chunk of L steps the outputs are a triangular Toeplitz matrix times the inputs; between chunks only
states go, one for L steps, so that memory holds 2·modes/L as many states as inputs. All but the scan is
arithmetic that tensor cores and a CPU's vector units do best.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lrnnx_app.ops import planar
from lrnnx_app.ops._transforms import transformed
from lrnnx_app.ops.linear_scan import linear_scan


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
    """From h = exp(log_a)∘h + gain∘v and w = Re Σ c·h + direct∘v: log_a, gain, c (2, S), direct (G,)."""
    steps = torch.arange(size + 1, device=log_a.device, dtype=log_a.dtype)
    powers = planar.exp(log_a * steps[:, None, None])
    weight = planar.mul(c, gain)
    kernel = (weight[0] * powers[:-1, 0] - weight[1] * powers[:-1, 1]).unflatten(-1, (groups, -1)).sum(-1)
    if direct is not None:
        kernel = torch.cat((kernel[:1] + direct, kernel[1:]))
    inside = F.pad(kernel.T, (size - 1, 0)).unfold(-1, size, 1).flip(1)  # row s, column t: kernel[t − s]
    entering = modes_last(planar.mul(gain, powers[:-1].flip(0)), groups)
    leaving = modes_last(planar.conj(planar.mul(c, powers[1:])), groups).mT.contiguous()
    return Chunks(inside, entering, leaving, log_a)


def run(c: Chunks, v: Tensor, h0: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """w (B, T, G) from v (B, T, G), zero beyond a row's length; and the states (B, 2, S) after each row.

    w lies in memory as (G, B, T), and v is copied unless it does so too: a matmul can read and write that.
    """
    batch, time, groups = v.shape
    count = -(-time // c.size)
    rows = by_group(v)
    padded = F.pad(rows, (0, count * c.size - time)) if time % c.size else rows
    u = padded.view(groups, batch * count, c.size)
    added = (u @ c.entering).view(groups, batch, count, 2, -1).permute(1, 2, 3, 0, 4)
    first = torch.zeros_like(added[:, 0]) if h0 is None else h0.to(added.dtype).unflatten(-1, (groups, -1))
    through = planar.exp(c.log_a * c.size)
    inputs = torch.cat((first[:, None], added[:, :-1]), 1).flatten(3)
    before, _ = linear_scan(through[None, None], inputs)
    states = before.unflatten(-1, (groups, -1)).permute(3, 0, 1, 2, 4).reshape(groups, batch * count, -1)
    w = states @ c.leaving
    w = torch.baddbmm(w, u, c.inside) if transformed() else w.baddbmm_(u, c.inside)
    w = w.view(groups, batch, count * c.size)[..., :time].permute(1, 2, 0)
    if lengths is None and time % c.size == 0:
        return w, planar.mul(through, before[:, -1]) + added[:, -1].flatten(2)
    return w, _last(c, v, before, time if lengths is None else lengths)


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
    """(B, T, G), such as `run` returns it, with the groups of a step side by side in memory."""
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
