"""Discretization rules: continuous eigenvalue -> coefficient of the recurrence and gain of its input.

Each rule is a pure function `(lam, step, dt) -> (a, gain)` of
    lam   (P, N) or (..., P, N): eigenvalue, planar (P = 1 real, P = 2 complex), Re lam < 0 if stable;
    step  (..., N): learned timescale Δ, broadcast against lam without its planes;
    dt    (B, T) or None: time elapsed before each sample δ; None means 1 (evenly sampled).
and returns a and gain (the factor of B u), planar, broadcastable to (B, T, P, N). The learned step and
the data's time are separate: only the asynchronous rule keeps δ out of the gain.
"""

from collections.abc import Callable

from torch import Tensor

from lrnnx_app.ops import planar

Rule = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]


def _elapsed(step: Tensor, dt: Tensor | None) -> Tensor:
    """Δδ with a plane axis: (..., 1, N), or (B, T, 1, N) with data time."""
    step = step.unsqueeze(-2)
    return step if dt is None else step * dt[..., None, None]


def zoh(lam: Tensor, step: Tensor, dt: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Zero-order hold: a = exp(λΔδ), gain = (exp(λΔδ) − 1)/λ; finite and smooth at λ = 0."""
    span = _elapsed(step, dt)
    z = lam * span
    return planar.exp(z), span * planar.expm1_over(z)


def bilinear(lam: Tensor, step: Tensor, dt: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Tustin: a = (1 + λΔδ/2)/(1 − λΔδ/2), gain = Δδ/(1 − λΔδ/2)."""
    span = _elapsed(step, dt)
    half = lam * span / 2
    unit = planar.one(half)
    lower = unit - half
    return planar.div(unit + half, lower), span * planar.div(unit.expand_as(lower), lower)


def dirac(lam: Tensor, step: Tensor, dt: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Inputs are impulses: a = exp(λΔδ), gain = 1."""
    a = planar.exp(lam * _elapsed(step, dt))
    return a, planar.one(a)


def euler(lam: Tensor, step: Tensor, dt: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mamba's mixture: a = exp(λΔδ), gain = Δδ."""
    span = _elapsed(step, dt)
    a = planar.exp(lam * span)
    return a, span * planar.one(a)


def asynchronous(lam: Tensor, step: Tensor, dt: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Event-SSM (arXiv 2404.18508): a = exp(λΔδ), gain = (exp(λΔ) − 1)/λ; δ only in the decay."""
    span = _elapsed(step, None)
    return planar.exp(lam * _elapsed(step, dt)), span * planar.expm1_over(lam * span)


RULES: dict[str, Rule] = {
    "zoh": zoh,
    "bilinear": bilinear,
    "dirac": dirac,
    "euler": euler,
    "asynchronous": asynchronous,
}


def constant_gain(name: str, lam: Tensor, step: Tensor) -> Tensor:
    """The part of a rule's gain that is free of data time δ, planar: for the weights of the input.

    What is left depends on λΔ and δ alone, as `discretized_scan` makes it.
    """
    if name in ("dirac", "asynchronous"):
        return RULES[name](lam, step, None)[1]
    return step * planar.one(lam)
