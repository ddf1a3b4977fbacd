"""States of a diagonal gated recurrent unit, in parallel: h[t] = f(h[t−1], x[t]) solved by Newton's method.

f acts on each state alone, so its Jacobian is diagonal, and one Newton iteration over the whole sequence is
one linear scan (DEER, arXiv 2309.12252). If an estimate is right up to step k, the next one is right up to k
+ 1, whatever slope is used. So slopes are clamped to ±1, which keeps the first iterations bounded.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lrnnx_app.ops import _blocked
from lrnnx_app.ops._operands import check, check_steps, principal
from lrnnx_app.ops._operator import operator
from lrnnx_app.ops._transforms import transformed
from lrnnx_app.ops.linear_scan import linear_scan
from lrnnx_app.spec import unpadded

SERIAL = 2**11  # with so many states (B·N) or more, a CPU is faster one step at a time (measured)


def gru_cell(h: Tensor, inputs: Tensor, recurrent: Tensor, dt: Tensor | None = None) -> Tensor:
    """One application of the cell.

        z, r = σ(x_z + u_z∘h), σ(x_r + u_r∘h);  c = tanh(x_c + r∘u_c∘h);  k = (1 − z)^δ;  k∘h + (1 − k)∘c

    Args:
        h: state (…, N).
        inputs: x_z, x_r, x_c (…, 3, N).
        recurrent: u_z, u_r, u_c (3, N).
        dt: elapsed time δ (…); None is 1.

    Returns:
        next state (…, N).
    """
    k, _, c, _ = _gates(h, inputs, recurrent, dt)
    return torch.lerp(c, h, k)


def _gates(
    h: Tensor, inputs: Tensor, recurrent: Tensor, dt: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """k, r and c of `gru_cell`, and the logits of z."""
    u_z, u_r, u_c = recurrent.unbind(-2)
    x_z, x_r, x_c = inputs.unbind(-2)
    gate = torch.addcmul(x_z, u_z, h)
    k = torch.sigmoid(-gate) if dt is None else torch.exp(F.softplus(gate) * -dt[..., None])
    r = torch.sigmoid(torch.addcmul(x_r, u_r, h))
    return k, r, torch.tanh(torch.addcmul(x_c, r * u_c, h)), gate


class _Slopes(NamedTuple):
    """`gru_cell` and its derivatives, and the gate r, (B, T, N)."""

    f: Tensor
    by_h: Tensor
    by_inputs: tuple[Tensor, Tensor, Tensor]
    r: Tensor


def _slopes(h: Tensor, inputs: Tensor, recurrent: Tensor, dt: Tensor | None) -> _Slopes:
    u_z, u_r, u_c = recurrent.unbind(-2)
    k, r, c, gate = _gates(h, inputs, recurrent, dt)
    z = torch.sigmoid(gate)
    by_z = (c - h) * k * (z if dt is None else z * dt[..., None])
    by_c = (1 - k) * (1 - c * c)
    through_c = by_c * r * u_c
    by_r = through_c * h * (1 - r)
    by_h = torch.addcmul(torch.addcmul(k + through_c, by_z, u_z), by_r, u_r)
    return _Slopes(torch.lerp(c, h, k), by_h, (by_z, by_r, by_c), r)


def gru_scan(
    inputs: Tensor,
    recurrent: Tensor,
    h0: Tensor,
    *,
    dt: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    tolerance: float,
    max_iterations: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """All states of the cell; differentiable in inputs, recurrent, h0 and dt.

    Args:
        inputs: (B, T, 3, N) float32 or wider, T ≥ 1.
        recurrent: (3, N).
        h0: state before the first step (B, N).
        dt: elapsed time δ (B, T); None is 1.
        lengths, reset: as in `linear_scan`.
        tolerance: a row is done when none of its states changes by more than this.
        max_iterations: after so many, the states of other rows are computed one step at a time instead.

    Returns:
        States (B, T, N), the state after each row's last step (B, N), and the number of iterations, int64.
        Steps computed one at a time count as T iterations. No row depends on the others.

    Raises:
        ValueError: a shape, dtype or device does not fit; names it.
    """
    batch, _, three, n = principal("inputs", inputs, "BT3N")
    if three != 3:
        raise ValueError(f"inputs must be (B, T, 3, N), not {tuple(inputs.shape)}")
    check("recurrent", recurrent, (3, n), inputs)
    check("h0", h0, (batch, n), inputs)
    check_steps(inputs, lengths=lengths, reset=reset, dt=dt)
    if transformed():
        states = reference(inputs, recurrent, h0, dt=dt, lengths=lengths, reset=reset)
        return states, states[:, -1].clone(), torch.tensor(inputs.shape[1])
    states, iterations = torch.ops.lrnnx.gru_states(
        inputs, recurrent, h0, dt, lengths, reset, tolerance, max_iterations
    )
    return states, states[:, -1].clone(), iterations


def _before(states: Tensor, h0: Tensor, reset: Tensor | None) -> Tensor:
    """The state (B, T, N) that enters each step."""
    before = torch.cat((h0[:, None], states[:, :-1]), 1)
    return before if reset is None else torch.where(reset[..., None], 0, before)


def _newton(
    states: Tensor,
    inputs: Tensor,
    recurrent: Tensor,
    h0: Tensor,
    dt: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    clamp: bool,
) -> Tensor:
    before = _before(states, h0, reset)
    cell = _slopes(before, inputs, recurrent, dt)
    slope = cell.by_h.clamp(-1, 1) if clamp else cell.by_h
    return linear_scan(slope, cell.f - slope * before, h0, lengths=lengths, reset=reset)[0]


def _gru_states(
    inputs: Tensor,
    recurrent: Tensor,
    h0: Tensor,
    dt: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    tolerance: float,
    max_iterations: int,
) -> tuple[Tensor, Tensor]:
    batch, time, iterations = *inputs.shape[:2], 0
    if h0.numel() == 0 or (h0.device.type == "cpu" and h0.numel() >= SERIAL):
        max_iterations = 0
    states = h0[:, None].expand(-1, time, -1)
    settled = torch.zeros(batch, 1, 1, dtype=torch.bool, device=inputs.device)
    while iterations < max_iterations and not settled.all():
        new = _newton(states, inputs, recurrent, h0, dt, lengths, reset, clamp=True)
        moved = (new - states).abs().amax((1, 2), keepdim=True)
        states = torch.where(settled, states, new)  # no row depends on how long others take
        settled = settled | (moved <= tolerance)
        iterations += 1
    if max_iterations:
        states = _newton(states, inputs, recurrent, h0, dt, lengths, reset, clamp=False)
    if not settled.all():
        steps = reference(inputs, recurrent, h0, dt=dt, lengths=lengths, reset=reset)
        states = torch.where(settled, states, steps)
        iterations += time
    return states.contiguous(), torch.tensor(iterations, device=inputs.device)


def _empty_states(inputs, recurrent, h0, dt, lengths, reset, tolerance, max_iterations):
    batch, time, _, n = inputs.shape
    return inputs.new_empty(batch, time, n), inputs.new_empty((), dtype=torch.int64)


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:6], output[0])


def _backward(ctx, grad, _):
    """The gradient of the solution h = f(h), by the implicit function theorem: δh[t] = slope·δh[t−1] + δf[t].

    It is computed from the operator's own states, so it can be differentiated again.
    """
    inputs, recurrent, h0, dt, lengths, reset, states = ctx.saved_tensors
    inputs, span = unpadded(inputs, lengths), unpadded(dt, lengths)
    before = _before(states, h0, reset)
    cell = _slopes(before, inputs, recurrent, span)
    adjoint: Any = torch.ops.lrnnx.linear_scan_backward
    if torch.is_grad_enabled():  # for second derivatives
        adjoint = partial(_blocked.adjoint, run=torch.ops.lrnnx.linear_scan)
    _, c, dh0 = adjoint(grad, torch.zeros_like(h0), cell.by_h, states, h0, lengths, reset, False)
    by_inputs = torch.stack([part * c for part in cell.by_inputs], -2)
    by_z, by_r, by_c = (part * before for part in by_inputs.unbind(-2))
    by_recurrent = torch.stack([part.sum((0, 1)) for part in (by_z, by_r, by_c * cell.r)])
    return by_inputs, by_recurrent, dh0, _by_dt(c, before, inputs, recurrent, span), None, None, None, None


def _by_dt(grad: Tensor, h: Tensor, inputs: Tensor, recurrent: Tensor, dt: Tensor | None) -> Tensor | None:
    """The gradient of dt (B, T), from that of the states (B, T, N)."""
    if dt is None:
        return None
    k, _, c, gate = _gates(h, inputs, recurrent, dt)
    return ((c - h) * k * F.softplus(gate) * grad).sum(-1)


operator(
    "gru_states(Tensor inputs, Tensor recurrent, Tensor h0, Tensor? dt, Tensor? lengths, Tensor? reset,"
    " float tolerance, int max_iterations) -> (Tensor, Tensor)",
    *(_gru_states, _empty_states, _backward, _setup),
)


def reference(
    inputs: Tensor,
    recurrent: Tensor,
    h0: Tensor,
    *,
    dt: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
) -> Tensor:
    """The definition, one step at a time; arguments as in `gru_scan`; the states (B, T, N)."""
    h, states = h0, []
    for t in range(inputs.shape[1]):
        before = h if reset is None else torch.where(reset[:, t, None], 0, h)
        new = gru_cell(before, inputs[:, t], recurrent, None if dt is None else dt[:, t])
        h = new if lengths is None else torch.where((t < lengths)[:, None], new, h)
        states.append(h)
    return torch.stack(states, 1)
