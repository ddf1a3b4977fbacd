"""A recurrence with matrices as states, by matmuls inside chunks of time and a scan between the chunks.

    h[t] = a[t]∘h[t−1] + B[t] ⊗ x[t],   y[t] = C[t]·h[t]

for each head, with h (N, P), B and C (N,) and x (P,). With one decay for each head this is Mamba-2 (arXiv
2405.21060), with one for each of N states gated linear attention (arXiv 2312.06635). Only one state for each
chunk is stored.

    steps   0 1 2 3 | 4 5 6 7 |      chunks of 4
    within  ▙       |         |      y from x of the same chunk: a lower triangle of weights, one matmul
    across          h         h      states between chunks, by `linear_scan`
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from lrnnx_app.ops._blocked import unpadded
from lrnnx_app.ops._operands import check, check_steps, principal
from lrnnx_app.ops.linear_scan import linear_scan, state_dtype

SIZE, SIZE_OF_STATES = 64, 8  # steps of a chunk, for one decay a head and for one a state (fastest, measured)


def chunked_scan(
    x: Tensor,
    log_a: Tensor,
    B: Tensor,
    C: Tensor,
    h0: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Scan along time; every argument but `lengths` and `reset` is differentiable, any number of times.

    Args:
        x: inputs (B, T, H, P), T ≥ 1. Factors of the input, such as Δ or a gate, are multiplied into x or B.
        log_a: logarithms of decays, finite and at most 0: (B, T, H), or (B, T, H, N) for each state. For a
            decay λ it is λ·Δ·δ, with timescale Δ and elapsed time δ.
        B: input projection (B, T, G, N). G divides H, and each is shared by H/G heads.
        C: output projection, shaped as B.
        h0: state before the first step, (B, H, N, P); zero if None.
        lengths: (B,) integers. Steps at and beyond a row's length are not read, keep the state, and have
            output 0.
        reset: (B, T) bool; true where a packed sequence starts, which drops the state before.
        size: steps of a chunk; None is 64, or 8 with a decay for each state.

    Returns:
        y shaped and typed like x; and the state after the last step taken (B, H, N, P), float32 or wider.

    Raises:
        ValueError: a shape, dtype or device does not fit; names it.
    """
    batch, time, heads, width = principal("x", x, "BTHP")
    groups = B.shape[2] if B.ndim == 4 else 0
    if not groups or heads % groups or not B.shape[3]:
        raise ValueError(f"B must be {(batch, time)} + (G, N) with G dividing {heads}, not {tuple(B.shape)}")
    n = B.shape[3]
    check("B", B, (batch, time, groups, n), x)
    check("C", C, B.shape, x)
    check("log_a", log_a, (batch, time, heads, *((n,) if log_a.ndim == 4 else ())), x)
    check("h0", h0, (batch, heads, n, width), x)
    check_steps(x, lengths=lengths, reset=reset)
    dtype = state_dtype(x.dtype)
    if reset is not None and lengths is not None:
        reset = reset & (torch.arange(time, device=x.device) < lengths[:, None])
    size = min(size or (SIZE if log_a.ndim == 3 else SIZE_OF_STATES), time)

    parts = (cut(unpadded(z, lengths).to(dtype), size) for z in (x, log_a, B, C))
    y, last = _chunks(*parts, h0=h0, reset=None if reset is None else cut(reset, size))
    return y[:, :time].to(x.dtype), last


def cut(z: Tensor, size: int) -> Tensor:
    """(B, T, …) as (B, chunks, size, …). Zeros fill the last chunk: log a = 0 and x = 0 keep the state."""
    return F.pad(z, (0, 0) * (z.ndim - 2) + (0, -z.shape[1] % size)).unflatten(1, (-1, size))


def _chunks(
    x: Tensor, log_a: Tensor, B: Tensor, C: Tensor, h0: Tensor | None, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """y (B, K·L, H, P) and the last state, from tensors cut into K chunks of L steps, (B, K, L, …)."""
    share = x.shape[3] // B.shape[3]
    x, log_a, B, C = (z.transpose(2, 3) for z in (x, log_a, B, C))  # (B, K, H, L, …)
    B, C = (z.repeat_interleave(share, 2) for z in (B, C))
    number = None if reset is None else reset.cumsum(-1)[:, :, None]  # of the sequence in its chunk
    decay = _decays(log_a, number)
    within = (C @ B.mT) * decay if log_a.ndim == 4 else torch.einsum("bkhtn,bkhtsn,bkhsn->bkhts", C, decay, B)
    to_end, entering = decay[:, :, :, -1], log_a.cumsum(3).exp()
    if log_a.ndim == 4:
        to_end, entering = to_end[..., None], entering[..., None]
    added = (B * to_end).mT @ x
    through = entering[:, :, :, -1, :, None]
    starts = None if number is None else number[:, :, 0, -1] > 0
    states, last = linear_scan(through, added, h0, reset=starts)
    first = torch.zeros_like(states[:, :1]) if h0 is None else h0[:, None].to(states.dtype)
    across = (C * entering) @ torch.cat((first, states[:, :-1]), 1)
    if number is not None:
        across = torch.where((number == 0)[..., None], across, 0)
    return (within @ x + across).transpose(2, 3).flatten(1, 2), last


def _decays(log_a: Tensor, number: Tensor | None) -> Tensor:
    """Π a[r] over s < r ≤ t, (B, K, H, t, s) or (B, K, H, t, s, N); 0 for s > t and across sequences.

    log a is summed over the steps between s and t. Differences of sums from the chunk's start would lose
    digits.
    """
    size = log_a.shape[3]
    after = torch.ones(size, size, dtype=torch.bool, device=log_a.device).tril(-1)  # r > s
    seen = after.T.logical_not()  # s ≤ t
    wide = log_a.unsqueeze(4).expand(*log_a.shape[:4], size, *log_a.shape[4:])
    if log_a.ndim == 5:
        after, seen = after[..., None], seen[..., None]
    sums = torch.where(after, wide, 0).cumsum(3)
    if number is not None:
        same = number[..., :, None] == number[..., None, :]
        seen = seen & (same if log_a.ndim == 4 else same[..., None])
    return torch.where(seen, sums, float("-inf")).exp()


def reference(
    x: Tensor,
    log_a: Tensor,
    B: Tensor,
    C: Tensor,
    h0: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition, one step at a time; arguments and results as in `chunked_scan`."""
    batch, time, heads, width = x.shape
    a = log_a.exp().view(batch, time, heads, -1, 1)
    B, C = (z.repeat_interleave(heads // z.shape[2], 2) for z in (B, C))
    h = x.new_zeros(batch, heads, B.shape[3], width) if h0 is None else h0
    ys = []
    for t in range(time):
        before = h if reset is None else torch.where(reset[:, t, None, None, None], 0, h)
        new = a[:, t] * before + B[:, t, :, :, None] * x[:, t, :, None]
        valid = None if lengths is None else (t < lengths)[:, None, None, None]
        h = new if valid is None else torch.where(valid, new, h)
        y = (C[:, t, :, :, None] * h).sum(2)
        ys.append(y if valid is None else torch.where(valid[..., 0], y, 0))
    return torch.stack(ys, 1), h
