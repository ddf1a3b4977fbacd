"""The scan whose coefficients are exp(z·δ[t]): a decay over the time that passed before each sample.

On CUDA the coefficients are made in registers, forward and backward, so that (B, T, P, N) of them never
reach memory: the Event-SSM's (arXiv 2404.18508) long, irregular sequences. Elsewhere torch makes them.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lrnnx_app.ops import _extension, planar
from lrnnx_app.ops.linear_scan import linear_scan, state_dtype


class Decay(NamedTuple):
    """Coefficients exp(z·δ) as what they are made of."""

    z: Tensor  # (P, N) planar rate per unit of time
    dt: Tensor  # (B, T) time before each sample

    def coefficients(self) -> Tensor:
        """(B, T, P, N)."""
        return planar.exp(self.z * self.dt[..., None, None])


def scan(
    a: Tensor | Decay,
    b: Tensor,
    h0: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """`linear_scan` for coefficients of either kind."""
    options = {"lengths": lengths, "reset": reset, "reverse": reverse}
    return decayed_scan(*a, b, h0, **options) if isinstance(a, Decay) else linear_scan(a, b, h0, **options)


def decayed_scan(
    z: Tensor,
    dt: Tensor,
    b: Tensor,
    h0: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """h[t] = exp(z·δ[t])∘h[t−1] + b[t]; every argument but `lengths` and `reset` is differentiable.

    Args:
        z: rates (P, N) with P = 1 or 2 planes, Re z < 0 if stable.
        dt: (B, T) time δ that passed before each sample, in units of 1/|z|.
        b: inputs (B, T, P, N).
        h0, lengths, reset, reverse: as of `linear_scan`.

    Returns:
        All states, and the state after the last step, as of `linear_scan`.

    Raises:
        ValueError: the shapes do not fit; names them.
    """
    if b.ndim != 4 or z.shape != b.shape[2:] or dt.shape != b.shape[:2]:
        expected = "z (P, N), dt (B, T) and b (B, T, P, N)"
        raise ValueError(f"expected {expected}, not {tuple(z.shape)}, {tuple(dt.shape)} and {tuple(b.shape)}")
    if not b.is_cuda or b.shape[2] == 1:
        a = Decay(z, dt).coefficients()
        return _planes_of(b, linear_scan, a, h0, lengths=lengths, reset=reset, reverse=reverse)
    return torch.ops.lrnnx.decayed_scan(z, dt, b, h0, lengths, reset, reverse)


def _planes_of(b: Tensor, run, a: Tensor, h0: Tensor | None, **options) -> tuple[Tensor, Tensor]:
    """A linear scan of planar numbers, which takes real ones without their plane."""
    if b.shape[2] == 2:
        return run(a, b, h0, **options)
    states, last = run(a.squeeze(2), b.squeeze(2), None if h0 is None else h0.squeeze(1), **options)
    return states.unsqueeze(2), last.unsqueeze(1)


_library = torch.library.Library("lrnnx", "FRAGMENT")
_library.define(
    "decayed_scan(Tensor z, Tensor dt, Tensor b, Tensor? h0, Tensor? lengths, Tensor? reset, bool reverse)"
    " -> (Tensor, Tensor)"
)
_library.define(
    "decayed_scan_backward(Tensor grad, Tensor grad_last, Tensor z, Tensor dt, Tensor states, Tensor? h0,"
    " Tensor? lengths, Tensor? reset, bool reverse) -> (Tensor, Tensor, Tensor, Tensor)"
)


@torch.library.impl(_library, "decayed_scan", "CompositeExplicitAutograd")
def _forward_anywhere(z, dt, b, *rest):
    if _extension.first_use(b.device.type):
        return torch.ops.lrnnx.decayed_scan(z, dt, b, *rest)
    return torch.ops.lrnnx.linear_scan(_wide(z, dt, b), b, *rest)


@torch.library.impl(_library, "decayed_scan_backward", "CompositeExplicitAutograd")
def _backward_anywhere(grad, grad_last, z, dt, states, *rest):
    if _extension.first_use(grad.device.type):
        return torch.ops.lrnnx.decayed_scan_backward(grad, grad_last, z, dt, states, *rest)
    a = _wide(z, dt, states)
    da, db, dh0 = torch.ops.lrnnx.linear_scan_backward(grad, grad_last, a, states, *rest)
    along = planar.mul(planar.conj(a), da)
    dz = (along * dt[..., None, None]).sum((0, 1)).to(z.dtype)
    return dz, (along * z).sum((2, 3)).to(dt.dtype), db, dh0


def _wide(z: Tensor, dt: Tensor, b: Tensor) -> Tensor:
    dtype = state_dtype(b.dtype)
    return Decay(z.to(dtype), dt.to(dtype)).coefficients()


@torch.library.register_fake("lrnnx::decayed_scan", lib=_library)
def _(z, dt, b, h0, lengths, reset, reverse):
    return b.new_empty(b.shape), b.new_empty((b.shape[0], *b.shape[2:]), dtype=state_dtype(b.dtype))


@torch.library.register_fake("lrnnx::decayed_scan_backward", lib=_library)
def _(grad, grad_last, z, dt, states, h0, lengths, reset, reverse):
    return (
        z.new_empty(z.shape),
        dt.new_empty(dt.shape),
        states.new_empty(states.shape),
        torch.empty_like(grad_last),
    )


def _setup(ctx, inputs, output):
    z, dt, _, h0, lengths, reset, ctx.reverse = inputs
    ctx.save_for_backward(z, dt, h0, lengths, reset, output[0])


def _backward(ctx, grad_states, grad_last):
    z, dt, h0, lengths, reset, states = ctx.saved_tensors
    if torch.is_grad_enabled():
        raise NotImplementedError("decayed_scan has no second derivatives: use linear_scan")
    dz, ddt, db, dh0 = torch.ops.lrnnx.decayed_scan_backward(
        grad_states, grad_last, z, dt, states, h0, lengths, reset, ctx.reverse
    )
    return dz, ddt, db, dh0.to(h0.dtype) if ctx.needs_input_grad[3] else None, None, None, None


torch.library.register_autograd("lrnnx::decayed_scan", _backward, setup_context=_setup, lib=_library)
