"""A recurrence with matrices as states, which forgets by decay and by the delta rule.

    h[t] = h[t−1]·diag(a)·(I − β e kᵀ) + β v kᵀ,   y[t] = h[t]·q

for each head, with h (V, K), a = exp(log_decay) for a head or for each of K channels, and e = k unless given.
Without β it is h[t] = h[t−1]·diag(a) + v kᵀ. So one decay for a head is Mamba-2 (arXiv 2405.21060), one for a
channel gated linear attention (arXiv 2312.06635), and β the gated delta rule (arXiv 2412.06464). RWKV-7's
h·(diag(w) − c bᵀ) + v kᵀ is two steps: β = 1, e = c/w, k = b, v = 0, then log_decay = 0, e = 0 and its v, k.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from lrnnx_app.ops._extension import wanted
from lrnnx_app.ops._matrix import chunked, matrix_step
from lrnnx_app.ops._operands import check, check_steps, principal
from lrnnx_app.ops._transforms import transformed
from lrnnx_app.ops.linear_scan import leaf, recording, state_dtype, wants_gradient

__all__ = ["matrix_scan", "matrix_step", "reference"]


def matrix_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    erase: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scan along time; every argument but `lengths` and `reset` is differentiable, any number of times.

    Args:
        q: what reads the state (B, T, H, K), T ≥ 1. Heads may share memory, as `expand` gives it.
        k: what the state is written under, shaped like q; with β of norm 1, or h may grow without bound.
        v: what is written (B, T, H, V).
        log_decay: logarithms of decays, finite and at most 0: (B, T, H), or (B, T, H, K) for each channel.
        beta: (B, T, H) share of what was written under k that gives way to v; stable from 0 to 2. None: all
            of it stays, and v is added to it.
        h0: state before the first step, (B, H, V, K); zero if None.
        erase: direction e that is read and taken away under k, shaped like q; None is k. Needs β.
        lengths: (B,) integers. Steps at and beyond a row's length are not read, keep the state, and have
            output 0.
        reset: (B, T) bool; true where a packed sequence starts, which drops the state before.

    Returns:
        y (B, T, H, V) typed like v; and the state after the last step taken (B, H, V, K), float32 or wider.

    Raises:
        ValueError: a shape, dtype or device does not fit; names it.
    """
    batch, time, heads, n = principal("q", q, "BTHK")
    *_, width = principal("v", v, "BTHV")
    check("v", v, (batch, time, heads, width), q)
    check("k", k, q.shape, q)
    check("erase", erase, q.shape, q)
    check("log_decay", log_decay, (batch, time, heads, *((n,) if log_decay.ndim == 4 else ())), q)
    check("beta", beta, (batch, time, heads), q)
    check("h0", h0, (batch, heads, width, n), q)
    check_steps(q, lengths=lengths, reset=reset)
    if erase is not None and beta is None:
        raise ValueError("beta must be given where erase is")
    run = chunked if transformed() else torch.ops.lrnnx.matrix_scan
    return run(q, k, v, log_decay, beta, h0, erase, lengths, reset)


def reference(
    q, k, v, log_decay, beta=None, h0=None, *, erase=None, lengths=None, reset=None
) -> tuple[Tensor, Tensor]:
    """The definition, one step at a time; arguments and results as in `matrix_scan`."""
    batch, time, heads, width = v.shape
    h = v.new_zeros(batch, heads, width, q.shape[-1], dtype=state_dtype(v.dtype)) if h0 is None else h0
    ys = []
    each = ([None] * time if x is None else x.unbind(1) for x in (q, k, v, log_decay, beta, erase))
    for t, step in enumerate(zip(*each, strict=True)):
        before = h if reset is None else torch.where(reset[:, t, None, None, None], 0, h)
        y, new = matrix_step(*step[:-1], before, erase=step[-1])  # type: ignore[call-arg]  (as many as there are)
        valid = None if lengths is None else (t < lengths)[:, None, None]
        h = new if valid is None else torch.where(valid[..., None], new, h)
        ys.append(y if valid is None else torch.where(valid, y, 0))
    return torch.stack(ys, 1), h


_ARGUMENTS = (
    "Tensor q, Tensor k, Tensor v, Tensor log_decay, Tensor? beta, Tensor? h0, Tensor? erase,"
    " Tensor? lengths, Tensor? reset"
)
_LEAVES = 7  # arguments with a gradient, which is typed like them, and empty where they are None
_library = torch.library.Library("lrnnx", "FRAGMENT")
_library.define(f"matrix_scan({_ARGUMENTS}) -> (Tensor, Tensor)")
_library.define(
    f"matrix_scan_backward(Tensor grad, Tensor grad_last, {_ARGUMENTS})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


@torch.library.impl(_library, "matrix_scan", "CompositeExplicitAutograd")
def _forward(*arguments):
    return chunked(*arguments)


def _kernels(*arguments) -> Any:
    """The module with kernels for a GPU, if they take these arguments."""
    if "cuda" not in wanted() or find_spec("triton") is None:
        return None
    from lrnnx_app.ops import _matrix_gpu

    return _matrix_gpu if _matrix_gpu.fits(*arguments) else None


@torch.library.impl(_library, "matrix_scan", "CUDA")
def _forward_on_gpu(*arguments):
    kernels = _kernels(*arguments)
    return kernels.forward(*arguments) if kernels else chunked(*arguments)


@torch.library.impl(_library, "matrix_scan_backward", "CUDA")
def _adjoint_on_gpu(grad, grad_last, *arguments):
    kernels = _kernels(*arguments)
    return (kernels.backward if kernels else _adjoint)(grad, grad_last, *arguments)


@torch.library.impl(_library, "matrix_scan_backward", "CompositeExplicitAutograd")
def _adjoint(grad, grad_last, *arguments):
    """Gradients by differentiating `chunked`. If autograd records, they can be differentiated again."""
    given = [x for x in arguments[:_LEAVES] if x is not None]
    again = wants_gradient(grad, grad_last, *given)
    with recording():
        leaves: Any = [None if x is None else leaf(x) for x in arguments[:_LEAVES]]
        found = torch.autograd.grad(
            chunked(*leaves, *arguments[_LEAVES:]),
            [x for x in leaves if x is not None],
            (grad, grad_last),
            create_graph=again,
            materialize_grads=True,
        )
    gradients = iter(found)
    return tuple(grad.new_empty(0) if x is None else next(gradients).contiguous() for x in leaves)


@torch.library.register_fake("lrnnx::matrix_scan", lib=_library)
def _(q, k, v, *rest):
    batch, _, heads, width = v.shape
    return v.new_empty(v.shape), v.new_empty((batch, heads, width, q.shape[-1]), dtype=state_dtype(v.dtype))


@torch.library.register_fake("lrnnx::matrix_scan_backward", lib=_library)
def _(grad, grad_last, *arguments):
    return tuple(grad.new_empty(0) if x is None else x.new_empty(x.shape) for x in arguments[:_LEAVES])


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad, grad_last):
    run: Any = _adjoint if torch.is_grad_enabled() else torch.ops.lrnnx.matrix_scan_backward
    saved = ctx.saved_tensors
    needed = [x is not None and need for x, need in zip(saved, ctx.needs_input_grad, strict=True)]
    found = run(grad, grad_last, *saved)
    return *(x if need else None for x, need in zip(found, needed, strict=False)), None, None


torch.library.register_autograd("lrnnx::matrix_scan", _backward, setup_context=_setup, lib=_library)
