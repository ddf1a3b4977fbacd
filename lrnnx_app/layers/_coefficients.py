"""How a state follows from the one before it and from the input: the kinds of coefficients of a layer.

A layer with a structure of its own (say, blocks of 2 × 2) writes its own kind in its own file: any class with
the two methods of `Coefficients`.
"""

from typing import Any, NamedTuple, Protocol

from torch import Tensor
from torch.nn import functional as F

from lrnnx_app.ops import planar
from lrnnx_app.ops.discretized_scan import discretized_scan
from lrnnx_app.ops.linear_scan import linear_scan
from lrnnx_app.ops.rules import Rule
from lrnnx_app.ops.step import diagonal_step


class Coefficients(Protocol):
    """What `DiagonalLayer.coefficients` returns beside the driving input b.

    Both methods return what `readout` reads, in the dtype of b, and the tensors of the state after the last
    step: h, and by a rule of two taps what drove it (`_taps`). Most kinds give the states h to `readout`; one
    that contracts them with C on the way gives the products. One method must give what repeated calls of the
    other give.
    """

    def scan(self, b: Tensor, *state: Any, **masks: Any) -> tuple[Tensor, ...]:
        """All steps: b (B, T, …), h (B, *state) or None for zero; returns (B, T, …) and (B, *state).

        `lengths`: a step at or beyond a row's length holds the state. `reset`: no state crosses into a step
        where it is true.
        """
        ...

    def step(self, b: Tensor, *state: Any, **nothing: Any) -> tuple[Tensor, ...]:
        """One step: b (B, …) and h (B, *state); returns (B, …) and the next state."""
        ...


class Given(NamedTuple):
    """h = a∘h + b, with a (*state), or (B or 1, T or 1, *state)."""

    a: Tensor

    def scan(self, b: Tensor, h0: Tensor | None, **masks: Any) -> tuple[Tensor, Tensor]:
        a = self.a if self.a.ndim == b.ndim else self.a[None, None]
        return linear_scan(a, b, h0, **masks)

    def step(self, b: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return _each_state(b, h, self.a if self.a.ndim < h.ndim else self.a.squeeze(1))


class Discretized(NamedTuple):
    """h = a∘h + gain∘b, both made by a rule from a rate λΔ, the same at all steps, and from elapsed time δ.

    The kernels make them in registers. The part of a rule's gain without δ belongs to b: see `Rule.constant`.
    """

    z: Tensor  # (2, N) planar rate λΔ
    dt: Tensor  # (B, T) elapsed time δ before each sample
    rule: Rule

    def scan(self, b: Tensor, h0: Tensor | None, **masks: Any) -> tuple[Tensor, Tensor]:
        return discretized_scan(self.z, self.dt, b, h0, rule=self.rule, **masks)

    def step(self, b: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return _each_state(b, h, self.z, dt=self.dt[:, 0], rule=self.rule.scanned)


class Varying(NamedTuple):
    """h = a∘h + gain∘b, both made by a rule whose timescale Δ = softplus(logits) changes at every step."""

    lam: Tensor  # (2, N) planar eigenvalue λ
    logits: Tensor  # (B, T, N)
    dt: Tensor | None  # (B, T) elapsed time δ; None is 1
    rule: Rule

    def coefficients(self) -> tuple[Tensor, ...]:
        """a and gain, each broadcastable to (B, T, 2, N)."""
        return self.rule(self.lam, F.softplus(self.logits), self.dt)

    def scan(self, b: Tensor, h0: Tensor | None, **masks: Any) -> tuple[Tensor, Tensor]:
        a, gain = self.coefficients()
        return linear_scan(a, planar.mul(gain.expand(b.shape), b), h0, **masks)

    def step(self, b: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        dt = None if self.dt is None else self.dt[:, 0]
        delta = self.logits[:, 0, :, None]
        return _each_state(b, h, self.lam, step=delta, softplus=True, dt=dt, rule=self.rule)


def _each_state(
    b: Tensor,
    h: Tensor,
    a: Tensor,
    *,
    step: Tensor | None = None,
    softplus: bool = False,
    dt: Tensor | None = None,
    rule: Rule | None = None,
) -> tuple[Tensor, Tensor]:
    """`diagonal_step` of states (B, N), or planar (B, 2, N), each of which is a group of its own."""
    complex_ = h.ndim == 3
    b, h, a = ((z.mT if complex_ else z.unsqueeze(-1)).unsqueeze(-1) for z in (b, h, a))
    _, h = diagonal_step(b, h, a, step=step, softplus=softplus, dt=dt, rule=rule, checked=False)
    h = h.squeeze(-1)
    h = h.mT if complex_ else h.squeeze(-1)
    return h, h
