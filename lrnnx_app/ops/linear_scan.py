"""The linear recurrence h[t] = a[t]·h[t−1] + b[t], over (B, T, N) real or (B, T, 2, N) planar complex.

Real states may have more axes, (B, T, H, N, P). Then one coefficient may be shared along the last axes: (B,
T, H).

`linear_scan` is a PyTorch operator. Kernels built from csrc/ run it on a CPU or GPU; torch calls (`_blocked`)
run it elsewhere. Tests compare it with the definition, `reference`. For values in half precision the states
are summed, and the last one is returned, in float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lrnnx_app.ops import _blocked, _extension
from lrnnx_app.ops._blocked import state_dtype
from lrnnx_app.ops._operands import check, check_steps, principal
from lrnnx_app.ops._transforms import transformed


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
        a: coefficients (B or 1, T or 1, N), or (B or 1, T or 1, 2, N) when complex. If real ones are equal
            along the last axes of a state, these axes may be left out or have size 1: a decay of each head is
            (B, T, H) or (B, T, H, 1, 1) for states (B, T, H, N, P).
        b: inputs (B, T, N), or (B, T, 2, N) when complex, or real with three or four axes of states; T ≥ 1.
        h0: state before the first step, shaped like a step of b; zero if None.
        lengths: (B,) integers from 0 to T. Steps at and beyond a row's length keep the state. Lengths outside
            that range are an error on a CPU, and are clamped on a GPU.
        reset: (B, T) bool; true where a packed sequence starts, which drops the state before.
        reverse: run from the last step to the first.

    Returns:
        All states, shaped and typed like b; and the state after the last step taken, shaped like a step of b,
        float32 where b is half precision.

    Raises:
        ValueError: a shape, dtype or device does not fit; names it.
    """
    axes = {4: "BTPN", 5: "BTHNP", 6: "BTHNPQ"}.get(b.ndim, "BTN")
    sizes = principal("b", b, axes)
    if len(sizes) == 4 and sizes[2] != 2:
        raise ValueError(f"b must be (B, T, N) or (B, T, 2, N), not {tuple(sizes)}")
    check("a", a, a.shape, b)
    a = _of_groups(a, sizes)
    check("h0", h0, sizes[:1] + sizes[2:], b)
    check_steps(b, lengths=lengths, reset=reset)
    if a.shape[2:] != sizes[2:] and b.is_cuda:  # CUDA kernels read one coefficient for each state
        a = a.repeat_interleave(sizes[2:].numel() // a.shape[2], 2)
    run = _blocked.composed if transformed() else torch.ops.lrnnx.linear_scan
    if len(sizes) < 5:
        return run(a, b, h0, lengths, reset, reverse)
    states, last = run(a, b.flatten(2), None if h0 is None else h0.flatten(1), lengths, reset, reverse)
    return states.view(sizes), last.view(sizes[:1] + sizes[2:])


def _of_groups(a: Tensor, sizes: torch.Size) -> Tensor:
    """Complex a unchanged; real a as (B or 1, T or 1, G), one number for each group of neighbouring states.

    Raises:
        ValueError: it does not broadcast.
    """
    given, state = a.shape, sizes[2:]
    axes = len(given) - 2  # axes of the state in a, without last axes of size 1 that broadcast
    while axes > 0 and given[axes + 1] == 1 and (axes > len(state) or state[axes - 1] != 1):
        axes -= 1
    fits = 2 <= len(given) <= len(sizes) and given[2 : axes + 2] == state[:axes]
    fits = fits and given[0] in (1, sizes[0]) and given[1] in (1, sizes[1])
    if not fits or (len(sizes) == 4 and axes < 2):
        raise ValueError(
            f"a {tuple(given)} does not broadcast along batch, time and the last states to b {tuple(sizes)}"
        )
    return a if len(sizes) == 4 else a.reshape(*given[:2], state[:axes].numel())


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
    a = a.view(*a.shape, *[1] * (b.ndim - a.ndim))
    h = number(b.new_zeros(batch, *state) if h0 is None else h0)
    coefficient, drive = number(a.expand(b.shape)), number(b)

    def of_row(mask: Tensor) -> Tensor:
        return mask.view(-1, *[1] * (h.ndim - 1))

    states = [h] * time
    for t in reversed(range(time)) if reverse else range(time):
        start = t + 1 if reverse else t
        before = h
        if reset is not None and start < time:
            before = torch.where(of_row(reset[:, start]), 0, h)
        new = coefficient[:, t] * before + drive[:, t]
        h = new if lengths is None else torch.where(of_row(t < lengths), new, h)
        states[t] = h
    return planes(torch.stack(states, 1)).to(b.dtype), planes(h)


def wants_gradient(*operands: Tensor | None) -> bool:
    """Whether autograd or a function transform will differentiate results of these operands."""
    wanted = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in operands)
    return wanted or transformed()


@contextmanager
def recording() -> Iterator[None]:
    """Records gradients also where torch does not, as in an operator that a dispatch mode calls."""
    key = torch._C.DispatchKey.AutogradFunctionality
    excluded = torch._C._dispatch_tls_is_dispatch_key_excluded(key)
    torch._C._dispatch_tls_set_dispatch_key_excluded(key, False)
    try:
        with torch.enable_grad():
            yield
    finally:
        torch._C._dispatch_tls_set_dispatch_key_excluded(key, excluded)


def leaf(x: Tensor) -> Tensor:
    """x as a leaf to differentiate by: gradients stop here, and do not go on to what x was made from."""
    return x.view_as(x) if x.requires_grad else x.detach().requires_grad_()


_library = torch.library.Library("lrnnx", "FRAGMENT")
_library.define(
    "linear_scan(Tensor a, Tensor b, Tensor? h0, Tensor? lengths, Tensor? reset, bool reverse)"
    " -> (Tensor, Tensor)"
)
_library.define(
    "linear_scan_backward(Tensor grad, Tensor grad_last, Tensor a, Tensor states, Tensor? h0,"
    " Tensor? lengths, Tensor? reset, bool reverse) -> (Tensor, Tensor, Tensor)"
)

_extension.without_kernels(_library, "linear_scan", _blocked.scan)
_extension.without_kernels(_library, "linear_scan_backward", _blocked.adjoint)


@torch.library.register_fake("lrnnx::linear_scan", lib=_library)
def _(a, b, h0, lengths, reset, reverse):
    return b.new_empty(b.shape), b.new_empty((b.shape[0], *b.shape[2:]), dtype=state_dtype(b.dtype))


@torch.library.register_fake("lrnnx::linear_scan_backward", lib=_library)
def _(grad, grad_last, a, states, h0, lengths, reset, reverse):
    return a.new_empty(a.shape), states.new_empty(states.shape), torch.empty_like(grad_last)


def _setup(ctx, inputs, output):
    a, _, h0, lengths, reset, ctx.reverse = inputs
    ctx.save_for_backward(a, h0, lengths, reset, output[0])


def _backward(ctx, grad_states, grad_last):
    a, h0, lengths, reset, states = ctx.saved_tensors
    # The kernels can sum the gradient of `a` over time, or over time and batch, but not over the batch alone.
    given = a if a.shape[1] == 1 else a.expand(states.shape[0], *a.shape[1:])
    args = (grad_states, grad_last, given, states, h0, lengths, reset, ctx.reverse)
    if torch.is_grad_enabled():  # for second derivatives
        grad_a, grad_b, grad_h0 = _blocked.adjoint(*args, run=torch.ops.lrnnx.linear_scan)
    else:
        grad_a, grad_b, grad_h0 = torch.ops.lrnnx.linear_scan_backward(*args)
    grad_a = grad_a.sum_to_size(a.shape) if ctx.needs_input_grad[0] else None
    grad_h0 = grad_h0.to(h0.dtype) if ctx.needs_input_grad[2] else None
    return grad_a, grad_b, grad_h0, None, None, None


torch.library.register_autograd("lrnnx::linear_scan", _backward, setup_context=_setup, lib=_library)
