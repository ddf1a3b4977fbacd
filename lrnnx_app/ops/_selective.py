"""The selective scan by torch calls: `blocked`, for use without kernels, and the definition, `reference`."""

import torch
from torch import Tensor
from torch.nn import functional as F

from lrnnx_app.ops import planar
from lrnnx_app.ops._transforms import recomputed
from lrnnx_app.ops.linear_scan import linear_scan, state_dtype
from lrnnx_app.ops.rules import Rule, find, numbered
from lrnnx_app.spec import unpadded

SHORTEST = 16  # least number of steps in a chunk
ELEMENTS = {"cpu": 2**20}  # numbers in the states of a chunk, which then fit a CPU's cache (measured)
ELEMENTS_ELSEWHERE = 2**25  # more on a GPU, where each launch costs time
KEPT = 2**23  # up to so many numbers, states are kept for the backward pass; beyond, they are computed again


def blocked(
    u, delta, A, B, C, D, z, bias, dt, h0, lengths, reset, softplus, rule, whole=False
) -> tuple[Tensor, Tensor]:
    """The operator by torch calls, over chunks of time or, if `whole`, at once; differentiable.

    It scans every step, with no matmuls as `matrix_scan` has: chunks only let the states fit a cache.
    Arguments and results are those of `selective_scan`; `rule` may also be a rule's number.
    """
    batch, time, _ = u.shape
    dtype = state_dtype(u.dtype)
    real = A.ndim == 2
    u, delta, z, dt, B, C = (unpadded(w, lengths) for w in (u, delta, z, dt, B, C))
    step = delta.to(dtype) if bias is None else delta.to(dtype) + bias.to(dtype)
    step = F.softplus(step) if softplus else step

    def wide(z: Tensor) -> Tensor:
        return z.to(dtype).unsqueeze(-2) if real else z.to(dtype)

    A, h = wide(A), u.new_zeros(batch, *A.shape, dtype=dtype) if h0 is None else h0.to(dtype)
    h = h.unsqueeze(-2) if real else h
    B, C = (wide(w.expand(batch, time, *w.shape[2:])) for w in (B, C))

    if whole:
        recompute, size = False, time
    else:
        recompute = torch.is_grad_enabled() and time * h.numel() > KEPT
        size = max(SHORTEST, ELEMENTS.get(u.device.type, ELEMENTS_ELSEWHERE) // max(1, h.numel()))
    outputs = []
    for start in (0,) if whole else range(0, time, size):
        cut = slice(start, start + size)
        inputs = (u[:, cut].to(dtype), step[:, cut], A, B[:, cut], C[:, cut], h)
        masks = (
            None if dt is None else dt[:, cut].to(dtype),
            numbered(rule),
            None if lengths is None else (lengths - start).clamp(0, inputs[0].shape[1]),
            None if reset is None else reset[:, cut],
        )
        if recompute:
            y, h = recomputed(_chunk, *inputs, *masks)
        else:
            y, h = _chunk(*inputs, *masks)
        outputs.append(y)
    y = torch.cat(outputs, 1)
    y = y if D is None else y + D.to(dtype) * u
    y = y if z is None else y * F.silu(z.to(dtype))
    y = unpadded(y, lengths)
    return y.to(u.dtype), (h.squeeze(-2) if real else h).contiguous()


def _chunk(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    h0: Tensor,
    dt: Tensor | None,
    rule: Rule,
    lengths: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y and the last state of a chunk, with planes: A (D, P, N), B and C (B, T, G, P, N), h0 (B, D, P, N)."""
    channels, planes, n = A.shape
    shape = (*u.shape, planes, n)
    a, gain = rule(A, delta[..., None], None if dt is None else dt[..., None])
    drive = planar.mul(gain * u[..., None, None], _per_channel(B, channels))
    states, last = linear_scan(
        _flat(a.expand(shape)), _flat(drive.expand(shape)), _flat(h0), lengths=lengths, reset=reset
    )
    h = states.unflatten(-1, (channels, n))
    h = h.unsqueeze(-2) if planes == 1 else h.movedim(2, -2)
    last = last.unflatten(-1, (channels, n))
    last = last.unsqueeze(-2) if planes == 1 else last.movedim(1, -2)
    # Re(C h) = Cr hr − Ci hi: the planes of conj(C) times those of h, summed.
    y = (planar.conj(_per_channel(C, channels)) * h).sum((-2, -1))
    return y, last


def _per_channel(z: Tensor, channels: int) -> Tensor:
    """(B, T, G, P, N) -> (B, T, D, P, N): channel d belongs to group d // (D/G)."""
    groups = z.shape[2]
    return z.unsqueeze(3).expand(-1, -1, -1, channels // groups, -1, -1).flatten(2, 3)


def _flat(z: Tensor) -> Tensor:
    """(…, D, P, N) -> (…, D·N) if real, (…, 2, D·N) if complex, as `linear_scan` takes them."""
    return z.squeeze(-2).flatten(-2) if z.shape[-2] == 1 else z.movedim(-2, -3).flatten(-2)


def reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    z: Tensor | None = None,
    bias: Tensor | None = None,
    softplus: bool = False,
    dt: Tensor | None = None,
    rule: Rule | str = "euler",
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition, one step at a time in a complex dtype; arguments and results as in `selective_scan`."""
    real = A.ndim == 2
    batch, time, channels = u.shape
    share = channels // B.shape[2]
    B, C = (w.expand(batch, time, *w.shape[2:]) for w in (B, C))
    delta = delta if bias is None else delta + bias
    delta = F.softplus(delta) if softplus else delta

    def number(x: Tensor) -> Tensor:
        return x if real else torch.complex(*x.unbind(-2))

    def coefficient(x: Tensor) -> Tensor:
        return number(x.squeeze(-2) if real else x.expand(batch, *A.shape))

    h = number(u.new_zeros(batch, *A.shape) if h0 is None else h0)
    outputs = []
    for t in range(time):
        elapsed = None if dt is None else dt[:, t, None]
        pair = find(rule)(A.unsqueeze(-2) if real else A, delta[:, t, :, None], elapsed)
        a, gain = (coefficient(x) for x in pair)
        Bt, Ct = (number(x[:, t]).repeat_interleave(share, 1) for x in (B, C))
        before = h if reset is None else torch.where(reset[:, t, None, None], 0, h)
        new = a * before + gain * Bt * u[:, t, :, None]
        h = new if lengths is None else torch.where((t < lengths)[:, None, None], new, h)
        y = (Ct * h).sum(-1)
        outputs.append(y if real else y.real)
    y = torch.stack(outputs, 1)
    y = y if D is None else y + D * u
    y = y if z is None else y * F.silu(z)
    return unpadded(y, lengths), h if real else torch.stack((h.real, h.imag), -2)
