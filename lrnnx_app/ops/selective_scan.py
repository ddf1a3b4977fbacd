"""State-expanded recurrence: N states per channel, discretized on the fly and contracted with C at once.

    h[t] = a[t]∘h[t−1] + gain[t]∘B[t]·u[t],   y[t] = (Re(C[t]·h[t]) + D∘u[t])·SiLU(z[t])

for each channel, with (a, gain) = rule(A, Δ, δ) and Δ = softplus(delta + bias) or delta, so that states
(B, T, D, N) never exist as a whole: kernels make them again in the backward pass. The torch code for machines
without kernels cuts time into chunks, each of which is computed again unless keeping its states is cheaper.
"""

import os
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lrnnx_app.ops import _extension, planar
from lrnnx_app.ops.discretize import RULES
from lrnnx_app.ops.linear_scan import linear_scan, state_dtype
from lrnnx_app.ops.step import CODES, NAMES

# Whether tensors on a GPU take the CUDA kernels, which are compiled with the others but have not run so far:
# only where LRNNX_SELECTIVE_CUDA=1. Nothing else decides it.
CUDA_KERNELS = os.environ.get("LRNNX_SELECTIVE_CUDA") == "1"
MOST_STATES = 256  # of a channel, that these take

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
    z: Tensor | None = None,
    bias: Tensor | None = None,
    softplus: bool = False,
    dt: Tensor | None = None,
    rule: str = "euler",
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scan along time; every argument but `rule`, `softplus`, `lengths` and `reset` is differentiable.

    Args:
        u: input (B, T, D), T ≥ 1.
        delta: learned timescale Δ > 0, (B, T, D); or what makes it, see `bias` and `softplus`.
        A: eigenvalues (D, N), or planar complex (D, 2, N).
        B: input projection (B, T, G, N) or (B, T, G, 2, N), or the same for all, (1, 1, G, …); G divides D, a
            group shares it.
        C: output projection, as B.
        D: skip (D,), or None.
        h0: state before the first step, (B, D, N) or (B, D, 2, N); zero if None.
        z: gate (B, T, D), by whose SiLU the output is multiplied; or None.
        bias: (D,) added to delta; or None.
        softplus: take the softplus of delta, after the bias.
        dt: elapsed time δ (B, T); None is 1.
        rule: name of a discretization.
        lengths: (B,) integers; steps at and beyond a row's length are not read and hold the state; their
            output is 0.
        reset: (B, T) bool; true where a packed sequence starts.

    Returns:
        y shaped and typed like u; and the state after the last step taken, shaped like h0, float32 or wider.

    Raises:
        ValueError: the shapes do not fit; names them.
        KeyError: there is no such rule.
    """
    _check(u, delta, A, B, C, h0, dt, z)
    B, C = (_whole(w, u) for w in (B, C))
    return torch.ops.lrnnx.selective_scan(
        u, delta, A, B, C, D, z, bias, dt, h0, lengths, reset, softplus, CODES[rule]
    )


def _whole(weight: Tensor, u: Tensor) -> Tensor:
    """B or C that vary along time and batch, or along neither."""
    alike = weight.shape[0] == 1 and weight.shape[1] == 1
    return weight if alike else weight.expand(*u.shape[:2], *weight.shape[2:])


def blocked(
    u, delta, A, B, C, D, z, bias, dt, h0, lengths, reset, softplus, rule, whole=False
) -> tuple[Tensor, Tensor]:
    """The operator by torch calls, chunk by chunk of time or in one; differentiable."""
    batch, time, _ = u.shape
    dtype = state_dtype(u.dtype)
    real = A.ndim == 2
    valid = None
    if lengths is not None:
        valid = (torch.arange(time, device=u.device) < lengths[:, None])[..., None]
        u, delta = torch.where(valid, u, 0), torch.where(valid, delta, 0)
        z = None if z is None else torch.where(valid, z, 0)
        dt = None if dt is None else torch.where(valid[..., 0], dt, 0)
        B, C = (torch.where(valid[(...,) + (None,) * (w.ndim - 3)], w, 0) for w in (B, C))
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
        size = max(SHORTEST, ELEMENTS.get(u.device.type, ELEMENTS_ELSEWHERE) // h.numel())
    outputs = []
    for start in range(0, time, size):
        cut = slice(start, start + size)
        inputs = (u[:, cut].to(dtype), step[:, cut], A, B[:, cut], C[:, cut], h)
        masks = (
            None if dt is None else dt[:, cut].to(dtype),
            NAMES[rule],
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
    y = y if z is None else y * F.silu(z.to(dtype))
    y = y if valid is None else torch.where(valid, y, 0)
    return y.to(u.dtype), (h.squeeze(-2) if real else h).contiguous()


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
    z: Tensor | None = None,
    bias: Tensor | None = None,
    softplus: bool = False,
    dt: Tensor | None = None,
    rule: str = "euler",
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
        pair = RULES[rule](A.unsqueeze(-2) if real else A, delta[:, t, :, None], elapsed)
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
    if lengths is not None:
        y = torch.where((torch.arange(time, device=u.device) < lengths[:, None])[..., None], y, 0)
    return y, h if real else torch.stack((h.real, h.imag), -2)


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    h0: Tensor | None,
    dt: Tensor | None,
    z: Tensor | None,
) -> None:
    if u.ndim != 3 or u.shape[1] < 1:
        raise ValueError(f"u must be (B, T, D) with T ≥ 1, not {tuple(u.shape)}")
    batch, time, channels = u.shape
    for name, x in (("delta", delta), ("z", z)):
        if x is not None and x.shape != u.shape:
            raise ValueError(f"{name} must be {tuple(u.shape)}, not {tuple(x.shape)}")
    if A.ndim not in (2, 3) or A.shape[0] != channels or (A.ndim == 3 and A.shape[1] != 2):
        raise ValueError(f"A must be ({channels}, N) or ({channels}, 2, N), not {tuple(A.shape)}")
    for name, x in (("B", B), ("C", C)):
        fits = x.ndim == A.ndim + 2 and x.shape[3:] == A.shape[1:]
        if not fits or x.shape[0] not in (1, batch) or x.shape[1] not in (1, time) or channels % x.shape[2]:
            wanted = (batch, time, "G", *A.shape[1:])
            raise ValueError(f"{name} must be {wanted} with G dividing {channels}, not {tuple(x.shape)}")
    if B.shape[2] != C.shape[2]:
        raise ValueError(f"C must have as many groups as B, {B.shape[2]}, not {C.shape[2]}")
    if h0 is not None and h0.shape != (batch, *A.shape):
        raise ValueError(f"h0 must be {(batch, *A.shape)}, not {tuple(h0.shape)}")
    if dt is not None and dt.shape != (batch, time):
        raise ValueError(f"dt must be {(batch, time)}, not {tuple(dt.shape)}")


_ARGUMENTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? bias, Tensor? dt,"
    " Tensor? h0, Tensor? lengths, Tensor? reset, bool softplus, int rule"
)
_library = torch.library.Library("lrnnx", "FRAGMENT")
_library.define(f"selective_scan({_ARGUMENTS}) -> (Tensor, Tensor)")
# Gradients of the first ten arguments, without elements where one is None (but that of h0), in float32 or
# wider but for those of u, delta, B, C and z.
_library.define(
    f"selective_scan_backward(Tensor grad, Tensor grad_last, {_ARGUMENTS})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
# The kernels for CUDA, beside the operators and not in their place, since they take no float64.
_library.define(f"selective_scan_kernel({_ARGUMENTS}) -> (Tensor, Tensor)")
_library.define(
    f"selective_scan_kernel_backward(Tensor grad, Tensor grad_last, {_ARGUMENTS})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


@torch.library.impl(_library, "selective_scan", "CompositeExplicitAutograd")
def _forward_anywhere(u, delta, A, *rest):
    run: Any = blocked
    if u.device.type == "cuda":
        run = torch.ops.lrnnx.selective_scan_kernel if _taken(u, A) else run
    elif _extension.first_use(u.device.type):
        run = torch.ops.lrnnx.selective_scan
    return run(u, delta, A, *rest)


@torch.library.impl(_library, "selective_scan_backward", "CompositeExplicitAutograd")
def _backward_anywhere(grad, grad_last, u, delta, A, *rest):
    run: Any = _adjoint
    if u.device.type == "cuda":
        run = torch.ops.lrnnx.selective_scan_kernel_backward if _taken(u, A) else run
    elif _extension.first_use(u.device.type):
        run = torch.ops.lrnnx.selective_scan_backward
    return run(grad, grad_last, u, delta, A, *rest)


def _taken(u: Tensor, A: Tensor) -> bool:
    """Whether the CUDA kernels are wanted, take this and are there."""
    return (
        CUDA_KERNELS and u.dtype != torch.float64 and A.shape[-1] <= MOST_STATES and _extension.load("cuda")
    )


def _adjoint(grad, grad_last, *arguments):
    """Gradients by differentiating `blocked`; under autograd they can be differentiated themselves."""
    tensors, rest = list(arguments[:10]), arguments[10:]
    again, wide = torch.is_grad_enabled(), state_dtype(tensors[0].dtype)
    tensors[9] = torch.zeros_like(grad_last) if tensors[9] is None else tensors[9]
    with torch.enable_grad():
        leaves = [
            x if x is None or (again and x.requires_grad) else x.detach().requires_grad_() for x in tensors
        ]
        run: Any = blocked
        outputs = run(*leaves, *rest)
        found = torch.autograd.grad(
            outputs,
            [x for x in leaves if x is not None],
            (grad.to(outputs[0].dtype), grad_last),
            create_graph=again,
            materialize_grads=True,
        )
    each, none = iter(found), grad.new_empty(0, dtype=wide)
    grads = [none if x is None else next(each) for x in tensors]
    return tuple(g if i in _NARROW else g.to(wide) for i, g in enumerate(grads))


_NARROW = (0, 1, 3, 4, 6)  # of the gradients: those in the dtype of their argument


@torch.library.register_fake("lrnnx::selective_scan", lib=_library)
def _(u, delta, A, *rest):
    return u.new_empty(u.shape), u.new_empty((u.shape[0], *A.shape), dtype=state_dtype(u.dtype))


@torch.library.register_fake("lrnnx::selective_scan_backward", lib=_library)
def _(grad, grad_last, *arguments):
    wide = state_dtype(arguments[0].dtype)
    found = [
        grad.new_empty(0 if x is None else x.shape, dtype=x.dtype if x is not None and i in _NARROW else wide)
        for i, x in enumerate(arguments[:9])
    ]
    return *found, torch.empty_like(grad_last)


def _setup(ctx, inputs, output):
    *tensors, ctx.softplus, ctx.rule = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, *grads):
    tensors = ctx.saved_tensors
    # Under autograd, for second derivatives, the gradients are made by operations that can be differentiated.
    run: Any = _adjoint if torch.is_grad_enabled() else torch.ops.lrnnx.selective_scan_backward
    found = run(*grads, *tensors, ctx.softplus, ctx.rule)
    kept = [
        g.to(x.dtype) if x is not None and need else None
        for g, x, need in zip(found, tensors, ctx.needs_input_grad, strict=False)
    ]
    return *kept, None, None, None, None


torch.library.register_autograd("lrnnx::selective_scan", _backward, setup_context=_setup, lib=_library)
