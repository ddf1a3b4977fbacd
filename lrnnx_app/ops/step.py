"""One step of a diagonal recurrence, from input to output, for streaming: a single launch on a GPU.

    h' = a∘h + gain∘v,   w = Re Σ_n c∘h' + direct∘v,   w·SiLU(gate) if there is a gate

for G groups of n states with P planes (1 real, 2 complex). Coefficients are given, or a rule makes them from
eigenvalue λ, timescale Δ and elapsed time δ. Arguments broadcast along batch, groups and states.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from lrnnx_app.ops import _extension, planar
from lrnnx_app.ops._operands import NUMBER, check, check_broadcast, principal
from lrnnx_app.ops.linear_scan import wants_gradient
from lrnnx_app.ops.rules import Rule, find, numbered

GIVEN = -1  # instead of a rule's number: `a` is the coefficient itself


def diagonal_step(
    v: Tensor,
    h: Tensor,
    a: Tensor,
    gain: Tensor | None = None,
    c: Tensor | None = None,
    direct: Tensor | None = None,
    *,
    step: Tensor | None = None,
    dt: Tensor | None = None,
    rule: Rule | str | None = None,
    softplus: bool = False,
    gate: Tensor | None = None,
    checked: bool = True,
) -> tuple[Tensor, Tensor]:
    """Compute the next state and its output. Torch calls do so if gradients are wanted or under an export.

    Args:
        v: input (B, G, P, n), or (B, G) if it is the same for all states of a group.
        h: the state (B, G, P, n), with any strides.
        a: coefficient, or with a rule the eigenvalue λ. Like gain and c it broadcasts to (B, G, P, n).
        gain: planar factor of v, in addition to the rule's own gain; None is 1.
        c: planar weights of the output; None for no output.
        direct: (G,) skip: the part of v (B, G) that is added to the output; None is 0.
        step: timescale Δ of the rule, broadcasts to (B, G, n); None is 1.
        dt: (B,) elapsed time δ of the rule; None is 1.
        rule: discretization, or its name; None if `a` is the coefficient itself.
        softplus: use softplus(step) instead of step.
        gate: (B, G); the output is multiplied by SiLU(gate).
        checked: false leaves out the checks of tensors, for a layer's own.

    Returns:
        w (B, G) typed like v, empty if c is None; and the next state, with the strides of h.

    Raises:
        ValueError: a shape, dtype or device does not fit; names it.
        RecipeError: there is no such rule, or it has more taps than one.
    """
    rule = rule if rule is None else find(rule)
    operands = (v, h, a, gain, c, direct, step, dt, gate)
    if checked:
        _check(*operands)
    code = GIVEN if rule is None else rule.code
    traced = torch.compiler.is_compiling()  # also true during an export
    if code is None or traced or wants_gradient(*operands):
        return reference(*operands, rule, softplus)
    return torch.ops.lrnnx.diagonal_step(*operands, code, softplus)


def _check(
    v: Tensor,
    h: Tensor,
    a: Tensor,
    gain: Tensor | None,
    c: Tensor | None,
    direct: Tensor | None,
    step: Tensor | None,
    dt: Tensor | None,
    gate: Tensor | None,
) -> None:
    batch, groups, planes, n = whole = principal("h", h, "BGPn")
    if planes > 2:
        raise ValueError(f"h must have P = 1 or 2 planes, not {tuple(whole)}")
    check("v", v, whole[:2] if v.ndim == 2 else whole, h)
    check_broadcast("a", a, whole, h)
    check_broadcast("gain", gain, whole, h)
    check_broadcast("c", c, whole, h)
    check_broadcast("step", step, (batch, groups, n), h)
    check("direct", direct, (groups,), h)
    check("dt", dt, (batch,), h, NUMBER)
    check("gate", gate, (batch, groups), h)
    if direct is not None and v.ndim == 4:
        raise ValueError(f"v must be {(batch, groups)} where direct reads it, not {tuple(v.shape)}")


def reference(
    v: Tensor,
    h: Tensor,
    a: Tensor,
    gain: Tensor | None,
    c: Tensor | None,
    direct: Tensor | None,
    step: Tensor | None,
    dt: Tensor | None,
    gate: Tensor | None,
    rule: Rule | None,
    softplus: bool,
) -> tuple[Tensor, Tensor]:
    """The definition by torch calls; arguments and results as of `diagonal_step`."""
    dtype = h.dtype
    a, x = a.to(dtype), v.to(dtype)
    drive = x if v.ndim == 4 else x[..., None, None] * planar.one(h)
    if rule is not None:
        step = h.new_ones(1) if step is None else step.to(dtype)
        step = F.softplus(step) if softplus else step
        elapsed = None if dt is None else dt.to(dtype)[:, None]
        a, of_rule = rule(a, step, elapsed)
        drive = planar.mul(of_rule.to(dtype).expand_as(h), drive)
    if gain is not None:
        drive = planar.mul(gain.to(dtype).expand_as(h), drive)
    h = planar.affine(a, h, drive)
    if c is None:
        return v.new_empty(0), h
    w = (planar.conj(c.to(dtype)) * h).sum((-2, -1))
    w = w if direct is None else torch.addcmul(w, direct.to(dtype), x)
    w = w if gate is None else w * F.silu(gate.to(dtype))
    return w.to(v.dtype), h


_library = torch.library.Library("lrnnx", "FRAGMENT")
_library.define(
    "diagonal_step(Tensor v, Tensor h, Tensor a, Tensor? gain, Tensor? c, Tensor? direct, Tensor? step,"
    " Tensor? dt, Tensor? gate, int rule, bool softplus) -> (Tensor, Tensor)"
)


def _anywhere(v, h, a, gain, c, direct, step, dt, gate, rule, softplus):
    kind = None if rule == GIVEN else numbered(rule)
    w, after = reference(v, h, a, gain, c, direct, step, dt, gate, kind, softplus)
    return w, torch.empty_like(h).copy_(after)


_extension.without_kernels(_library, "diagonal_step", _anywhere)


@torch.library.register_fake("lrnnx::diagonal_step", lib=_library)
def _(v, h, a, gain, c, direct, step, dt, gate, rule, softplus):
    return v.new_empty((0,) if c is None else v.shape[:2]), torch.empty_like(h)
