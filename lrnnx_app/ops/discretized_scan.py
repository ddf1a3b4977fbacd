"""A scan that discretizes at each step by a rule: h[t] = a(z, δ[t])∘h[t−1] + g(z, δ[t])∘v[t].

a and g are the rule's coefficient and gain for eigenvalue z, timescale 1 and elapsed time δ. If the gain has
a factor without δ, that belongs to the weights that make v, see `Rule.constant`. Kernels make a and g in
registers, so tensors (B, T, P, N) of them are never stored. That serves long, irregular sequences, such as
those of the Event-SSM (arXiv 2404.18508). Without kernels, or for rules that have none, torch calls make
them.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from lrnnx_app.ops import _blocked, _extension, planar
from lrnnx_app.ops._operands import check, check_steps, principal
from lrnnx_app.ops._transforms import transformed
from lrnnx_app.ops.linear_scan import linear_scan, state_dtype
from lrnnx_app.ops.rules import OWN, Rule, find, numbered
from lrnnx_app.spec import unpadded


def discretized_scan(
    z: Tensor,
    dt: Tensor,
    v: Tensor,
    h0: Tensor | None = None,
    *,
    rule: Rule | str,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Scan along time; every argument but `rule`, `lengths` and `reset` is differentiable.

    Args:
        z: eigenvalues (P, N), with P = 1 (real) or 2 (complex) planes; stable if Re z < 0.
        dt: (B, T) elapsed time δ before each sample; z·δ has no unit.
        v: inputs (B, T, P, N).
        h0: state before the first step (B, P, N); zero if None.
        rule: one of `rules.OWN`, or its name.
        lengths, reset, reverse: as of `linear_scan`.

    Returns:
        All states, shaped and typed like v, and the state after the last step (B, P, N), float32 or wider.

    Raises:
        ValueError: a shape, dtype or device does not fit; names it.
        RecipeError: there is no such rule, or it has more taps than one.
    """
    sizes = principal("v", v, "BTPN")
    if sizes[2] > 2:
        raise ValueError(f"v must have P = 1 or 2 planes, not {tuple(sizes)}")
    check("z", z, sizes[2:], v)
    check("h0", h0, sizes[:1] + sizes[2:], v)
    check_steps(v, lengths=lengths, reset=reset, dt=dt)
    rule = find(rule).scanned
    if transformed() or rule.code is None:
        return reference(z, dt, v, h0, rule=rule, lengths=lengths, reset=reset, reverse=reverse)
    return torch.ops.lrnnx.discretized_scan(z, dt, v, h0, lengths, reset, reverse, rule.code)


def evenly(rule: Rule, lam: Tensor, step: Tensor) -> tuple[Tensor, ...]:
    """`rule(lam, step)` for lam (P, N); on a GPU by one launch instead of about a hundred.

    It runs one step of a scan. From state 1 and input 0 the result is a, from state 0 and input 1 the gain.
    """
    rule = rule.evenly or rule
    if not lam.is_cuda or rule.code is None:
        return rule(lam, step)
    h0 = torch.stack((planar.one(lam).expand_as(lam), torch.zeros_like(lam)))
    states, _ = discretized_scan(lam * step, step.new_ones(2, 1), h0.flip(0)[:, None], h0, rule=rule)
    a, gain = states[:, 0]
    return a, gain if rule.sample == "integral" else step * gain


def reference(
    z: Tensor,
    dt: Tensor,
    v: Tensor,
    h0: Tensor | None = None,
    *,
    rule: Rule,
    lengths: Tensor | None = None,
    **options,
) -> tuple[Tensor, Tensor]:
    """The definition, with a and g of all steps in memory; arguments and results as in `discretized_scan`."""
    dtype = state_dtype(v.dtype)
    dt, v = unpadded(dt, lengths), unpadded(v, lengths)
    a, gain = rule.from_rates(z.to(dtype), dt.to(dtype))
    driven = planar.mul(gain.expand(v.shape), v.to(dtype))
    flat: Any = _flat(a.expand(v.shape), driven, h0)
    states, last = linear_scan(*flat, lengths=lengths, **options)
    return states.reshape(v.shape).to(v.dtype), last.reshape(v[:, 0].shape)


_library = torch.library.Library("lrnnx", "FRAGMENT")
_library.define(
    "discretized_scan(Tensor z, Tensor dt, Tensor v, Tensor? h0, Tensor? lengths, Tensor? reset,"
    " bool reverse, int rule) -> (Tensor, Tensor)"
)
# v is None if the gain is 1, since the gradients then do not depend on v.
_library.define(
    "discretized_scan_backward(Tensor grad, Tensor grad_last, Tensor z, Tensor dt, Tensor? v, Tensor states,"
    " Tensor? h0, Tensor? lengths, Tensor? reset, bool reverse, int rule) -> (Tensor, Tensor, Tensor, Tensor)"
)


def _forward(z, dt, v, h0, lengths, reset, reverse, rule):
    return reference(z, dt, v, h0, rule=numbered(rule), lengths=lengths, reset=reset, reverse=reverse)


def _adjoint(grad, grad_last, z, dt, v, states, h0, lengths, reset, reverse, rule, run):
    """Gradients of z, dt, v and h0 from those of a linear scan, which `run` computes."""
    dtype = state_dtype(states.dtype)
    dt, v = unpadded(dt, lengths), unpadded(v, lengths)
    rate, span = z.to(dtype), dt.to(dtype)[..., None, None]
    kind = numbered(rule)
    a, gain = kind.from_rates(rate, dt.to(dtype))
    by_w, gain_by_z, gain_by_dt = kind.slopes(rate, span, a)
    numbers = _flat(grad.to(dtype), grad_last, a.expand(states.shape), states.to(dtype), h0)
    da, c, dh0 = run(*numbers, lengths, reset, reverse)
    da, c, dh0 = da.reshape(states.shape), c.reshape(states.shape), dh0.reshape(grad_last.shape)
    q = planar.mul(planar.conj(by_w), da)  # the gradient of w, without the part through the gain
    dz, ddt = q * span, q * rate
    if v is not None:
        r = planar.mul(c, planar.conj(v.to(dtype)))
        dz = dz + planar.mul(planar.conj(gain_by_z).expand(r.shape), r)
        ddt = ddt + gain_by_dt * r
        c = planar.mul(planar.conj(gain).expand(c.shape), c)
    return dz.sum((0, 1)).to(z.dtype), ddt.sum((2, 3)).to(dt.dtype), c.to(states.dtype), dh0


def _flat(*numbers: Tensor | None) -> list[Tensor | None]:
    """Planar numbers (…, P, N) as a linear scan takes them: real ones without their plane."""
    return [x if x is None or x.shape[-2] == 2 else x.squeeze(-2) for x in numbers]


_extension.without_kernels(_library, "discretized_scan", _forward)
_extension.without_kernels(
    _library, "discretized_scan_backward", partial(_adjoint, run=torch.ops.lrnnx.linear_scan_backward)
)


@torch.library.register_fake("lrnnx::discretized_scan", lib=_library)
def _(z, dt, v, h0, lengths, reset, reverse, rule):
    return v.new_empty(v.shape), v.new_empty((v.shape[0], *v.shape[2:]), dtype=state_dtype(v.dtype))


@torch.library.register_fake("lrnnx::discretized_scan_backward", lib=_library)
def _(grad, grad_last, z, dt, v, states, h0, lengths, reset, reverse, rule):
    return (
        z.new_empty(z.shape),
        dt.new_empty(dt.shape),
        states.new_empty(states.shape),
        torch.empty_like(grad_last),
    )


def _setup(ctx, inputs, output):
    z, dt, v, h0, lengths, reset, ctx.reverse, ctx.rule = inputs
    gained = ctx.rule != OWN["dirac"].code
    ctx.save_for_backward(z, dt, v if gained else None, h0, lengths, reset, output[0])


def _backward(ctx, *grads):
    z, dt, v, h0, lengths, reset, states = ctx.saved_tensors
    run: Any = torch.ops.lrnnx.discretized_scan_backward
    if torch.is_grad_enabled():  # for second derivatives
        run = partial(_adjoint, run=partial(_blocked.adjoint, run=torch.ops.lrnnx.linear_scan))
    dz, ddt, dv, dh0 = run(*grads, z, dt, v, states, h0, lengths, reset, ctx.reverse, ctx.rule)
    return dz, ddt, dv, dh0.to(h0.dtype) if ctx.needs_input_grad[3] else None, None, None, None, None


torch.library.register_autograd("lrnnx::discretized_scan", _backward, setup_context=_setup, lib=_library)
