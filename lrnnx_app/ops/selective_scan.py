"""The selective scan: N states for each channel, discretized at each step and read out by C.

    h[t] = a[t]∘h[t−1] + gain[t]∘B[t]·u[t],   y[t] = (Re(C[t]·h[t]) + D∘u[t])·SiLU(z[t])

for each channel, with (a, gain) = rule(A, Δ, δ) and Δ = softplus(delta + bias) or delta.

The states (B, T, D, N) are never stored as a whole. Kernels compute them again in the backward pass. On a GPU
the forward pass keeps every 8th state to start from, unless there are too many. Without kernels, torch calls
work through chunks of time; the backward pass computes a chunk again if its states are too many to keep.
"""

import math
from typing import Any

import torch
from torch import Tensor

from lrnnx_app.ops import _extension
from lrnnx_app.ops._operands import check, check_steps, principal
from lrnnx_app.ops._selective import blocked, reference
from lrnnx_app.ops._transforms import transformed
from lrnnx_app.ops.linear_scan import leaf, recording, state_dtype, wants_gradient
from lrnnx_app.ops.rules import Rule, find

__all__ = ["blocked", "reference", "selective_scan"]

MOST_STATES = 256  # states of a channel that CUDA kernels take
KEPT_EVERY = 8  # steps between two states that CUDA kernels keep for the backward pass
KEPT_BYTES = 2**30  # most memory for kept states; a scan that needs more computes them again


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
    rule: Rule | str = "euler",
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scan along time; every argument but `rule`, `softplus`, `lengths` and `reset` is differentiable.

    Args:
        u: input (B, T, D), T ≥ 1.
        delta: learned timescale Δ > 0, (B, T, D); or Δ before `bias` and `softplus`.
        A: eigenvalues (D, N), or planar complex (D, 2, N).
        B: input projection (B, T, G, N) or (B, T, G, 2, N), or (1, 1, G, …) if constant. G divides D, and
            each is shared by D/G channels.
        C: output projection, shaped like B.
        D: skip (D,), or None.
        h0: state before the first step, (B, D, N) or (B, D, 2, N); zero if None.
        z: gate (B, T, D); the output is multiplied by SiLU(z). Or None.
        bias: (D,) added to delta; or None.
        softplus: take the softplus of delta, after the bias.
        dt: elapsed time δ (B, T); None is 1.
        rule: discretization, or its name.
        lengths: (B,) integers. Steps at and beyond a row's length are not read, keep the state, and have
            output 0.
        reset: (B, T) bool; true where a packed sequence starts.

    Returns:
        y shaped and typed like u; and the state after the last step taken, shaped like h0, float32 or wider.

    Raises:
        ValueError: a shape, dtype or device does not fit; names it.
        RecipeError: there is no such rule, or it has more taps than one.
    """
    _check(u, delta, A, B, C, D, h0, z, bias)
    check_steps(u, lengths=lengths, reset=reset, dt=dt)
    B, C = (_whole(w, u) for w in (B, C))
    rule = find(rule)
    given = (u, delta, A, B, C, D, z, bias, dt, h0, lengths, reset, softplus)
    if transformed() or rule.code is None:
        return blocked(*given, rule, whole=torch.compiler.is_exporting())
    given = (*given, rule.code)
    needed = wants_gradient(u, delta, A, B, C, D, z, bias, dt, h0)
    if needed and _taken(u, A) and 4 * math.prod(_kept(u, A, B)) <= KEPT_BYTES:
        y, last, _ = torch.ops.lrnnx.selective_scan_kernel(*given, True)
        return y, last
    return torch.ops.lrnnx.selective_scan(*given)


def _kept(u: Tensor, A: Tensor, B: Tensor) -> tuple[int, int, int, int]:
    """Shape of the states that kernels keep: in slices of 16, each group padded to a multiple of 64."""
    batch, time, channels = u.shape
    groups, numbers = B.shape[2], A.shape[1:].numel()
    return batch, -(-time // KEPT_EVERY), -(-numbers // 16) * 16, groups * -(-channels // groups // 64) * 64


def _whole(weight: Tensor, u: Tensor) -> Tensor:
    """B or C, expanded along time and batch unless it is the same along both."""
    alike = weight.shape[0] == 1 and weight.shape[1] == 1
    return weight if alike else weight.expand(*u.shape[:2], *weight.shape[2:])


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    h0: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
) -> None:
    batch, time, channels = principal("u", u, "BTD")
    states = A.shape
    if (
        len(states) not in (2, 3)
        or states[0] != channels
        or (len(states) == 3 and states[1] != 2)
        or states[-1] == 0
    ):
        raise ValueError(f"A must be ({channels}, N) or ({channels}, 2, N) with N ≥ 1, not {tuple(states)}")
    check("A", A, states, u)
    for name, x in (("B", B), ("C", C)):
        sizes = x.shape
        fits = len(sizes) == len(states) + 2 and sizes[3:] == states[1:]
        fits = fits and sizes[0] in (1, batch) and sizes[1] in (1, time)
        if not fits or sizes[2] == 0 or channels % sizes[2]:
            wanted = (batch, time, "G", *states[1:])
            raise ValueError(f"{name} must be {wanted} with G dividing {channels}, not {tuple(sizes)}")
        check(name, x, sizes, u)
    if B.shape[2] != C.shape[2]:
        raise ValueError(f"C must have as many groups as B, {B.shape[2]}, not {C.shape[2]}")
    check("delta", delta, u.shape, u)
    check("z", z, u.shape, u)
    check("D", D, (channels,), u)
    check("bias", bias, (channels,), u)
    check("h0", h0, (batch, *states), u)


_ARGUMENTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? bias, Tensor? dt,"
    " Tensor? h0, Tensor? lengths, Tensor? reset, bool softplus, int rule"
)
_TENSORS = 12  # tensors among the arguments
_library = torch.library.Library("lrnnx", "FRAGMENT")
_library.define(f"selective_scan({_ARGUMENTS}) -> (Tensor, Tensor)")
# Gradients of the first ten arguments. Where an argument is None its gradient is empty, except that of h0.
# Those of u, delta, B, C and z have the dtype of their argument, the others are float32 or wider.
_library.define(
    f"selective_scan_backward(Tensor grad, Tensor grad_last, {_ARGUMENTS})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
# The CUDA kernels are operators of their own, since they take no float64. The third output holds the states
# kept for the backward pass; it is empty unless `keep` is true.
_library.define(f"selective_scan_kernel({_ARGUMENTS}, bool keep) -> (Tensor, Tensor, Tensor)")
_library.define(
    f"selective_scan_kernel_backward(Tensor grad, Tensor grad_last, Tensor kept, {_ARGUMENTS})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


@torch.library.impl(_library, "selective_scan", "CompositeExplicitAutograd")
def _forward_anywhere(u, delta, A, *rest):
    if _taken(u, A):
        return torch.ops.lrnnx.selective_scan_kernel(u, delta, A, *rest, False)[:2]
    compiled = u.device.type != "cuda" and _extension.first_use(u.device.type, "selective_scan")
    run: Any = torch.ops.lrnnx.selective_scan if compiled else blocked
    return run(u, delta, A, *rest)


@torch.library.impl(_library, "selective_scan_backward", "CompositeExplicitAutograd")
def _backward_anywhere(grad, grad_last, u, delta, A, *rest):
    if _taken(u, A):
        kept = A.new_empty(0, dtype=torch.float32)  # empty: states are computed again
        return torch.ops.lrnnx.selective_scan_kernel_backward(grad, grad_last, kept, u, delta, A, *rest)
    compiled = u.device.type != "cuda" and _extension.first_use(u.device.type, "selective_scan")
    run: Any = torch.ops.lrnnx.selective_scan_backward if compiled else _adjoint
    return run(grad, grad_last, u, delta, A, *rest)


def _taken(u: Tensor, A: Tensor) -> bool:
    """Whether the CUDA kernels take these arguments and can be loaded."""
    fits = u.device.type == "cuda" and u.dtype != torch.float64 and A.shape[-1] <= MOST_STATES
    return fits and _extension.load("cuda", "selective_scan")


def _adjoint(grad, grad_last, *arguments):
    """Gradients by differentiating `blocked`. If autograd records, they can be differentiated again."""
    tensors, rest = list(arguments[:10]), arguments[10:]
    again, wide = wants_gradient(grad, grad_last, *tensors), state_dtype(tensors[0].dtype)
    tensors[9] = torch.zeros_like(grad_last) if tensors[9] is None else tensors[9]
    with recording():
        leaves = [None if x is None else leaf(x) for x in tensors]
        run: Any = blocked
        outputs = run(*leaves, *rest)
        found = torch.autograd.grad(
            outputs,
            [x for x in leaves if x is not None],
            (grad.to(outputs[0].dtype), grad_last),
            create_graph=again,
            materialize_grads=True,
        )
    each = iter(found)
    grads = [grad.new_empty(0, dtype=wide) if x is None else next(each) for x in tensors]
    return tuple((g if i in _NARROW else g.to(wide)).contiguous() for i, g in enumerate(grads))


_NARROW = (0, 1, 3, 4, 6)  # gradients in the dtype of their argument


@torch.library.register_fake("lrnnx::selective_scan", lib=_library)
def _(u, delta, A, *rest):
    return u.new_empty(u.shape), u.new_empty((u.shape[0], *A.shape), dtype=state_dtype(u.dtype))


@torch.library.register_fake("lrnnx::selective_scan_kernel", lib=_library)
def _(u, delta, A, B, *rest):
    y, last = u.new_empty(u.shape), u.new_empty((u.shape[0], *A.shape), dtype=torch.float32)
    return y, last, last.new_empty(_kept(u, A, B) if rest[-1] else 0)


def _fake_backward(grad, grad_last, *arguments):
    wide = state_dtype(arguments[0].dtype)
    found = [
        grad.new_empty(0 if x is None else x.shape, dtype=x.dtype if x is not None and i in _NARROW else wide)
        for i, x in enumerate(arguments[:9])
    ]
    return *found, torch.empty_like(grad_last)


@torch.library.register_fake("lrnnx::selective_scan_backward", lib=_library)
def _(*arguments):
    return _fake_backward(*arguments)


@torch.library.register_fake("lrnnx::selective_scan_kernel_backward", lib=_library)
def _(grad, grad_last, kept, *arguments):
    return _fake_backward(grad, grad_last, *arguments)


def _setup(ctx, inputs, output):
    ctx.softplus, ctx.rule = inputs[_TENSORS : _TENSORS + 2]
    ctx.save_for_backward(*inputs[:_TENSORS], *output[2:])  # and the kept states, if any
    ctx.set_materialize_grads(False)  # no tensor of zeros as the gradient of kept states


def _backward(ctx, grad, grad_last, *_):
    saved = ctx.saved_tensors  # read once: under activation checkpointing each read computes them again
    tensors, kept = saved[:_TENSORS], saved[_TENSORS:]
    u, A = tensors[0], tensors[2]
    grad = torch.zeros_like(u) if grad is None else grad
    if grad_last is None:
        grad_last = A.new_zeros((u.shape[0], *A.shape), dtype=state_dtype(u.dtype))
    run: Any = torch.ops.lrnnx.selective_scan_backward
    if torch.is_grad_enabled():  # for second derivatives, by operations that can be differentiated
        run, kept = _adjoint, ()
    elif kept:
        run = torch.ops.lrnnx.selective_scan_kernel_backward
    found = run(grad, grad_last, *kept, *tensors, ctx.softplus, ctx.rule)
    gradients = [
        g.to(x.dtype) if x is not None and need else None
        for g, x, need in zip(found, tensors, ctx.needs_input_grad, strict=False)
    ]
    return *gradients, *[None] * (len(ctx.needs_input_grad) - len(gradients))


for _name in ("selective_scan", "selective_scan_kernel"):
    torch.library.register_autograd(f"lrnnx::{_name}", _backward, setup_context=_setup, lib=_library)
