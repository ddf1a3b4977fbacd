"""The scan of the RG-LRU (arXiv 2402.19427), from the logits of its gates to its states.

    r, i = σ(gate), σ(input_gate);   log a = −rate∘r·δ;   h[t] = a∘h[t−1] + √(1 − a²)∘i∘u[t]

Kernels read the three inputs once and compute a and the input's factor in registers; without kernels, torch
calls do. Where `first` is true, the factor √(1 − a²) is 1. Its derivative is bounded, also for a near 1.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from lrnnx_app.ops import _blocked, _extension
from lrnnx_app.ops._blocked import cast
from lrnnx_app.ops._operands import check, check_steps, principal
from lrnnx_app.ops._transforms import transformed
from lrnnx_app.ops.linear_scan import linear_scan, state_dtype
from lrnnx_app.spec import unpadded

SLOPE = 1000.0  # the steepest derivative of a square root


def rglru_scan(
    gate: Tensor,
    input_gate: Tensor,
    u: Tensor,
    rate: Tensor,
    h0: Tensor | None = None,
    *,
    dt: Tensor | None = None,
    first: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scan along time; every argument but `first`, `lengths` and `reset` is differentiable.

    Args:
        gate, input_gate: logits of the recurrence gate r and of the input gate i, (B, T, N).
        u: inputs (B, T, N), T ≥ 1. The gates are cast to its dtype.
        rate: (N,) decay −log a for r = 1 and δ = 1; not negative.
        h0: state before the first step, (B, N); zero if None.
        dt: (B, T) elapsed time δ; None is 1.
        first: (B, T); true, or not 0, where a sequence starts. The input's factor √(1 − a²) is 1 there.
        lengths, reset: as of `linear_scan`.

    Returns:
        All states, shaped and typed like u, and the state after the last step (B, N), float32 or wider.

    Raises:
        ValueError: a shape, dtype or device does not fit; names it.
    """
    batch, _, channels = principal("u", u, "BTN")
    check("gate", gate, u.shape, u)
    check("input_gate", input_gate, u.shape, u)
    check("rate", rate, (channels,), u)
    check("h0", h0, (batch, channels), u)
    check_steps(u, lengths=lengths, reset=reset, dt=dt, first=first)
    gate, input_gate = cast(gate, u.dtype), cast(input_gate, u.dtype)
    if transformed():
        return reference(gate, input_gate, u, rate, h0, dt=dt, first=first, lengths=lengths, reset=reset)
    return torch.ops.lrnnx.rglru_scan(gate, input_gate, u, rate, dt, first, h0, lengths, reset)


def coefficients(
    gate: Tensor, input_gate: Tensor, u: Tensor, rate: Tensor, dt: Tensor | None, first: Tensor | None
) -> tuple[Tensor, Tensor]:
    """a and b (B, T, N) of h = a∘h + b, float32 or wider; arguments as of `rglru_scan`."""
    dtype = state_dtype(u.dtype)
    log_a = -rate.to(dtype) * torch.sigmoid(gate.to(dtype))
    log_a = log_a if dt is None else log_a * dt.to(dtype)[..., None]
    multiplier = bounded_sqrt(-torch.expm1(2 * log_a))
    if first is not None:
        multiplier = torch.where(first[..., None].bool(), 1, multiplier)
    return torch.exp(log_a), multiplier * torch.sigmoid(input_gate.to(dtype)) * u


def bounded_sqrt(x: Tensor, slope: float = SLOPE) -> Tensor:
    """√x for x ≥ 0, with its derivative 1/(2√x) limited to `slope`, so that it is finite at x = 0."""
    steep = x < 1 / (4 * slope * slope)
    held = torch.sqrt(x.detach()) + slope * (x - x.detach())
    return torch.where(steep, held, torch.sqrt(torch.where(steep, 1, x)))


def reference(
    gate, input_gate, u, rate, h0=None, *, dt=None, first=None, lengths=None, reset=None
) -> tuple[Tensor, Tensor]:
    """The definition, with coefficients of all steps in memory; arguments and results as in `rglru_scan`."""
    gate, input_gate, u, dt = (unpadded(x, lengths) for x in (gate, input_gate, u, dt))
    a, b = coefficients(gate, input_gate, u, rate, dt, first)
    states, last = linear_scan(a, b, h0, lengths=lengths, reset=reset)
    return states.to(u.dtype), last


_library = torch.library.Library("lrnnx", "FRAGMENT")
_library.define(
    "rglru_scan(Tensor gate, Tensor input_gate, Tensor u, Tensor rate, Tensor? dt, Tensor? first, Tensor? h0,"
    " Tensor? lengths, Tensor? reset) -> (Tensor, Tensor)"
)
# Gradients of gate, input_gate, u, rate, dt (empty if it is None) and h0.
_library.define(
    "rglru_scan_backward(Tensor grad, Tensor grad_last, Tensor gate, Tensor input_gate, Tensor u,"
    " Tensor rate, Tensor? dt, Tensor? first, Tensor states, Tensor? h0, Tensor? lengths, Tensor? reset)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _forward(gate, input_gate, u, rate, dt, first, h0, lengths, reset):
    return reference(gate, input_gate, u, rate, h0, dt=dt, first=first, lengths=lengths, reset=reset)


def _adjoint(grad, grad_last, gate, input_gate, u, rate, dt, first, states, h0, lengths, reset, run):
    """Gradients from those of a linear scan, which `run` computes."""
    dtype = state_dtype(u.dtype)
    gate, input_gate, u, dt = (unpadded(x, lengths) for x in (gate, input_gate, u, dt))
    wide = rate.to(dtype)
    r, i, u_ = torch.sigmoid(gate.to(dtype)), torch.sigmoid(input_gate.to(dtype)), u.to(dtype)
    span = 1 if dt is None else dt.to(dtype)[..., None]
    log_a = -wide * r * span
    a, root = torch.exp(log_a), bounded_sqrt(-torch.expm1(2 * log_a))
    by_log_a = -2 * a * a / (2 * root).clamp_min(1 / SLOPE)
    if first is not None:
        first = first.bool()
        root, by_log_a = torch.where(first[..., None], 1, root), torch.where(first[..., None], 0, by_log_a)
    da, c, dh0 = run(grad.to(dtype), grad_last, a, states.to(dtype), h0, lengths, reset, False)
    d_log = da * a + c * i * u_ * by_log_a
    d_gate = -d_log * wide * span * r * (1 - r)
    d_input = c * root * u_ * i * (1 - i)
    ddt = u.new_empty(0) if dt is None else (-d_log * wide * r).sum(-1).to(dt.dtype)
    narrow = [x.to(u.dtype) for x in (d_gate, d_input, c * root * i)]
    return *narrow, (-d_log * r * span).sum((0, 1)).to(rate.dtype), ddt, dh0


_extension.without_kernels(_library, "rglru_scan", _forward)
_extension.without_kernels(
    _library, "rglru_scan_backward", partial(_adjoint, run=torch.ops.lrnnx.linear_scan_backward)
)


@torch.library.register_fake("lrnnx::rglru_scan", lib=_library)
def _(gate, input_gate, u, rate, dt, first, h0, lengths, reset):
    return u.new_empty(u.shape), u.new_empty((u.shape[0], u.shape[2]), dtype=state_dtype(u.dtype))


@torch.library.register_fake("lrnnx::rglru_scan_backward", lib=_library)
def _(grad, grad_last, gate, input_gate, u, rate, dt, first, states, h0, lengths, reset):
    ddt = u.new_empty(0) if dt is None else dt.new_empty(dt.shape)
    return (
        *(u.new_empty(u.shape) for _ in range(3)),
        rate.new_empty(rate.shape),
        ddt,
        torch.empty_like(grad_last),
    )


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs, output[0])


def _backward(ctx, *grads):
    *inputs, h0, lengths, reset, states = ctx.saved_tensors
    run: Any = torch.ops.lrnnx.rglru_scan_backward
    if torch.is_grad_enabled():  # for second derivatives
        run = partial(_adjoint, run=partial(_blocked.adjoint, run=torch.ops.lrnnx.linear_scan))
    d_gate, d_input, du, d_rate, ddt, dh0 = run(*grads, *inputs, states, h0, lengths, reset)
    ddt = ddt if ctx.needs_input_grad[4] else None
    dh0 = dh0.to(h0.dtype) if ctx.needs_input_grad[6] else None
    return d_gate, d_input, du, d_rate, ddt, None, dh0, None, None


torch.library.register_autograd("lrnnx::rglru_scan", _backward, setup_context=_setup, lib=_library)
