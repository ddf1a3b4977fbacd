"""State-expanded recurrence: N states per channel, discretized on the fly and contracted with C at once.

    h[t] = a[t]∘h[t−1] + gain[t]∘B[t]·u[t],   y[t] = Re(C[t]·h[t]) + D∘u[t],   (a, gain) = rule(A, Δ, δ)

for each channel, so that states (B, T, D, N) never exist as a whole: time is cut into chunks, and with
gradients each chunk is computed again in the backward pass from the state it began with, unless there are so
few states that keeping them is cheaper.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lrnnx_app.ops import planar
from lrnnx_app.ops.discretize import RULES
from lrnnx_app.ops.linear_scan import linear_scan, state_dtype

SHORTEST = 16  # steps of a chunk at least
ELEMENTS = {"cpu": 2**20}  # of the states of a chunk: a few fit a processor's cache (measured)
ELEMENTS_ELSEWHERE = 2**25  # where launching costs more than memory
KEPT = 2**23  # states of a sequence that are kept for the backward pass rather than computed again


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    dt: Tensor | None = None,
    rule: str = "euler",
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scan along time; every argument but `rule`, `lengths` and `reset` is differentiable.

    Args:
        u: input (B, T, D), T ≥ 1.
        delta: learned timescale Δ > 0, (B, T, D).
        A: eigenvalues (D, N), or planar complex (D, 2, N).
        B: input projection (B, T, G, N) or (B, T, G, 2, N); G divides D, a group shares it.
        C: output projection, shaped like B.
        D: skip (D,), or None.
        h0: state before the first step, (B, D, N) or (B, D, 2, N); zero if None.
        dt: elapsed time δ (B, T); None is 1.
        rule: name of a discretization.
        lengths: (B,) integers; steps at and beyond a row's length hold the state.
        reset: (B, T) bool; true where a packed sequence starts.

    Returns:
        y shaped and typed like u; and the state after the last step taken, shaped like h0, float32 or wider.

    Raises:
        ValueError: the shapes do not fit; names them.
    """
    _check(u, delta, A, B, C, h0, dt)
    batch, time, _ = u.shape
    dtype = state_dtype(u.dtype)
    real = A.ndim == 2

    def wide(z: Tensor) -> Tensor:
        return z.to(dtype).unsqueeze(-2) if real else z.to(dtype)

    A, h = wide(A), u.new_zeros(batch, *A.shape, dtype=dtype) if h0 is None else h0.to(dtype)
    h = h.unsqueeze(-2) if real else h

    if torch.compiler.is_exporting():  # of any batch, a short chunk
        recompute, size = False, time
    else:
        recompute = torch.is_grad_enabled() and time * h.numel() > KEPT
        size = max(SHORTEST, ELEMENTS.get(u.device.type, ELEMENTS_ELSEWHERE) // h.numel())
    outputs = []
    for start in range(0, time, size):
        cut = slice(start, start + size)
        inputs = (u[:, cut].to(dtype), delta[:, cut].to(dtype), A, wide(B[:, cut]), wide(C[:, cut]), h)
        masks = (
            None if dt is None else dt[:, cut].to(dtype),
            rule,
            None if lengths is None else lengths - start,
            None if reset is None else reset[:, cut],
        )
        if recompute:
            y, h = checkpoint(_chunk, *inputs, *masks, use_reentrant=False, preserve_rng_state=False)
        else:
            y, h = _chunk(*inputs, *masks)
        outputs.append(y)
    y = torch.cat(outputs, 1)
    y = y if D is None else y + D.to(dtype) * u
    return y.to(u.dtype), h.squeeze(-2) if real else h


def _chunk(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    h0: Tensor,
    dt: Tensor | None,
    rule: str,
    lengths: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Everything with planes: A (D, P, N), B and C (B, T, G, P, N), h0 (B, D, P, N)."""
    channels, planes, n = A.shape
    shape = (*u.shape, planes, n)
    a, gain = RULES[rule](A, delta[..., None], None if dt is None else dt[..., None])
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
    dt: Tensor | None = None,
    rule: str = "euler",
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition, one step at a time in a complex dtype; arguments and results as in `selective_scan`."""
    real = A.ndim == 2
    batch, time, channels = u.shape
    share = channels // B.shape[2]

    def number(z: Tensor) -> Tensor:
        return z if real else torch.complex(*z.unbind(-2))

    def coefficient(z: Tensor) -> Tensor:
        return number(z.squeeze(-2) if real else z.expand(batch, *A.shape))

    h = number(u.new_zeros(batch, *A.shape) if h0 is None else h0)
    outputs = []
    for t in range(time):
        elapsed = None if dt is None else dt[:, t, None]
        pair = RULES[rule](A.unsqueeze(-2) if real else A, delta[:, t, :, None], elapsed)
        a, gain = (coefficient(z) for z in pair)
        Bt, Ct = (number(z[:, t]).repeat_interleave(share, 1) for z in (B, C))
        before = h if reset is None else torch.where(reset[:, t, None, None], 0, h)
        new = a * before + gain * Bt * u[:, t, :, None]
        h = new if lengths is None else torch.where((t < lengths)[:, None, None], new, h)
        y = (Ct * h).sum(-1)
        outputs.append(y if real else y.real)
    y = torch.stack(outputs, 1)
    y = y if D is None else y + D * u
    return y, h if real else torch.stack((h.real, h.imag), -2)


def _check(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor | None, dt: Tensor | None
) -> None:
    if u.ndim != 3 or u.shape[1] < 1:
        raise ValueError(f"u must be (B, T, D) with T ≥ 1, not {tuple(u.shape)}")
    batch, time, channels = u.shape
    if delta.shape != u.shape:
        raise ValueError(f"delta must be {tuple(u.shape)}, not {tuple(delta.shape)}")
    if A.ndim not in (2, 3) or A.shape[0] != channels or (A.ndim == 3 and A.shape[1] != 2):
        raise ValueError(f"A must be ({channels}, N) or ({channels}, 2, N), not {tuple(A.shape)}")
    for name, z in (("B", B), ("C", C)):
        fits = z.ndim == A.ndim + 2 and z.shape[:2] == u.shape[:2] and z.shape[3:] == A.shape[1:]
        if not fits or channels % z.shape[2]:
            wanted = (batch, time, "G", *A.shape[1:])
            raise ValueError(f"{name} must be {wanted} with G dividing {channels}, not {tuple(z.shape)}")
    if h0 is not None and h0.shape != (batch, *A.shape):
        raise ValueError(f"h0 must be {(batch, *A.shape)}, not {tuple(h0.shape)}")
    if dt is not None and dt.shape != (batch, time):
        raise ValueError(f"dt must be {(batch, time)}, not {tuple(dt.shape)}")
