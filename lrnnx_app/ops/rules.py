"""Rules of discretization: how h' = λh + B u becomes h[t] = a[t]∘h[t−1] + gain[t]∘(B u)[t].

A rule of two taps has a second gain, which adds gain₁[t]∘(B u)[t−1].

A `Rule` is all that there is to know about one of them: every layer, operator, table and test takes it from
there, in torch code. lrnnx's own are listed in `OWN`; a plugin has one in a file. A kernel is a matter of
speed: it needs a number here, and in csrc/rules.h the same number and formula.

A formula is a pure function `(lam, step, dt) -> (a, gain)`, or `(a, gain, gain₁)` with two taps, of
    lam   (P, N) or (..., P, N): eigenvalue λ, planar (P = 1 real, P = 2 complex), Re λ < 0 if stable;
    step  (..., N): learned timescale Δ, broadcast against lam without its planes;
    dt    (B, T) or None: time δ elapsed before each sample; None means 1 (evenly sampled).
a and the gains are planar and broadcast to (B, T, P, N).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lrnnx_app.errors import RecipeError, one_of
from lrnnx_app.ops import planar
from lrnnx_app.registry import RULES

Formula = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, ...]]
Slopes = tuple[Tensor, Tensor, Tensor]


def _slopes_of_a_constant_gain(z: Tensor, span: Tensor, a: Tensor) -> Slopes:
    return a, torch.zeros_like(z), torch.zeros_like(z)


def _tap(formula: Formula, k: int, lam: Tensor, step: Tensor, dt: Tensor | None) -> tuple[Tensor, Tensor]:
    a, *gains = formula(lam, step, dt)
    return a, gains[k]


@dataclass(frozen=True)
class Rule:
    """One rule; call it as its formula, `rule(lam, step, dt)`.

    Samples u[t] stand for an input u(s) as `sample` says: `mean` and `integral` are those over the time since
    the sample before, `end` is u at the sample. Autograd makes the derivatives in torch code. A rule with
    kernels brings them, `slopes(z, δ, a)` = (da/dw, dg/dz, dg/dδ) of a(z, 1, δ) and g(z, 1, δ), w = zδ.
    """

    name: str
    formula: Formula
    sample: str  # mean, end or integral
    order: int  # p: for a smooth input, the error of h is of order Δ^p
    exact: bool = False  # no error if u is constant (mean) or one impulse (integral) between samples
    code: int | None = None  # number of its kernels in csrc/rules.h; None: it runs in torch code
    slopes: Callable[[Tensor, Tensor, Tensor], Slopes] = _slopes_of_a_constant_gain
    exponential: bool = False  # a = exp(λΔδ), so that log a needs no logarithm
    evenly: "Rule | None" = None  # the rule that it equals where every δ is 1
    over_time: "Rule | None" = None  # see `scanned`; None: itself
    taps: int = 1  # samples of which a step reads the input: its own, and the ones before
    apart: tuple["Rule", ...] = field(init=False, repr=False, compare=False)  # a rule for each tap alone

    def __post_init__(self) -> None:
        alone = (replace(self, formula=partial(_tap, self.formula, k), taps=1) for k in range(self.taps))
        object.__setattr__(self, "apart", (self,) if self.taps == 1 else tuple(alone))

    def __call__(self, lam: Tensor, step: Tensor, dt: Tensor | None = None) -> tuple[Tensor, ...]:
        return self.formula(lam, step, dt)

    def __reduce__(self) -> Any:  # a copy is the rule itself
        return find, (self.name, self.taps)

    def log_a(self, lam: Tensor, step: Tensor) -> Tensor:
        """log a of even samples, planar; λ complex."""
        return lam * step if self.exponential else planar.log(self(lam, step)[0])

    @property
    def scanned(self) -> "Rule":
        """The rule of a = a(λΔ, 1, δ) and of what is left of the gain = constant(λ, Δ)∘left(λΔ, 1, δ)."""
        return self.over_time or self

    def from_rates(self, z: Tensor, dt: Tensor) -> tuple[Tensor, ...]:
        """a and the rest of the gain, as a scan makes them of z = λΔ (P, N) and elapsed time dt (B, T)."""
        return self.scanned(z, z.new_ones(1), dt)

    def constant(self, lam: Tensor, step: Tensor) -> Tensor:
        """The factor of the gain that is free of elapsed time δ, planar: for the weights of the input."""
        if self.over_time:
            return self(lam, step)[1]
        return planar.one(lam) if self.sample == "integral" else step * planar.one(lam)


def elapsed(step: Tensor, dt: Tensor | None) -> Tensor:
    """Δδ with a plane axis: (..., 1, N), or (B, T, 1, N) with elapsed time."""
    step = step.unsqueeze(-2)
    return step if dt is None else step * dt[..., None, None]


def _zoh(lam: Tensor, step: Tensor, dt: Tensor | None) -> tuple[Tensor, Tensor]:
    """Zero-order hold: a = exp(λΔδ), gain = (exp(λΔδ) − 1)/λ; finite and smooth at λ = 0."""
    span = elapsed(step, dt)
    z = lam * span
    return planar.exp(z), span * planar.expm1_over(z)


def _zoh_slopes(z: Tensor, span: Tensor, a: Tensor) -> Slopes:
    return a, span * span * planar.expm1_over_slope(z * span), a


def _bilinear(lam: Tensor, step: Tensor, dt: Tensor | None) -> tuple[Tensor, Tensor]:
    """Tustin: a = (1 + λΔδ/2)/(1 − λΔδ/2), gain = Δδ/(1 − λΔδ/2)."""
    span = elapsed(step, dt)
    half = lam * span / 2
    unit = planar.one(half)
    lower = unit - half
    return planar.div(unit + half, lower), span * planar.div(unit.expand_as(lower), lower)


def _bilinear_slopes(z: Tensor, span: Tensor, a: Tensor) -> Slopes:
    unit = planar.one(z)
    over = planar.div(unit.expand_as(a), unit - z * span / 2)
    square = planar.mul(over, over)
    return square, span * span * square / 2, square


def _dirac(lam: Tensor, step: Tensor, dt: Tensor | None) -> tuple[Tensor, Tensor]:
    """Inputs are impulses: a = exp(λΔδ), gain = 1."""
    a = planar.exp(lam * elapsed(step, dt))
    return a, planar.one(a)


def _euler(lam: Tensor, step: Tensor, dt: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mamba's mixture (arXiv 2312.00752): a = exp(λΔδ), gain = Δδ."""
    span = elapsed(step, dt)
    a = planar.exp(lam * span)
    return a, span * planar.one(a)


def _euler_slopes(z: Tensor, span: Tensor, a: Tensor) -> Slopes:
    return a, torch.zeros_like(z), planar.one(z)


def _asynchronous(lam: Tensor, step: Tensor, dt: Tensor | None) -> tuple[Tensor, Tensor]:
    """Event-SSM (arXiv 2404.18508): a = exp(λΔδ), gain = (exp(λΔ) − 1)/λ; δ only in the decay."""
    span = elapsed(step, None)
    return planar.exp(lam * elapsed(step, dt)), span * planar.expm1_over(lam * span)


def _trapezoid(lam: Tensor, step: Tensor, dt: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Mamba-3's exponential trapezoid (arXiv 2603.15569): a = exp(λΔδ), gain = Δδ/2, gain₁ = a·Δδ/2."""
    half = elapsed(step, dt) / 2
    a = planar.exp(2 * lam * half)
    return a, half * planar.one(a), half * a


_ZOH = Rule("zoh", _zoh, "mean", order=2, exact=True, code=1, slopes=_zoh_slopes, exponential=True)
_DIRAC = Rule("dirac", _dirac, "integral", order=1, exact=True, code=0, exponential=True)
OWN: dict[str, Rule] = {  # lrnnx's, by name; with those of plugins they are `registry.RULES`
    rule.name: rule
    for rule in (
        _ZOH,
        Rule("bilinear", _bilinear, "mean", order=2, code=2, slopes=_bilinear_slopes),
        _DIRAC,
        Rule("euler", _euler, "end", order=1, code=3, slopes=_euler_slopes, exponential=True),
        Rule(
            "asynchronous",
            _asynchronous,
            "mean",
            order=2,
            exact=True,
            code=4,
            exponential=True,
            evenly=_ZOH,
            over_time=_DIRAC,
        ),
        Rule("trapezoid", _trapezoid, "end", order=2, exponential=True, taps=2),
    )
}

KERNELS = {name: rule for name, rule in OWN.items() if rule.code is not None}
SCANNED = {name: rule for name, rule in KERNELS.items() if rule.scanned is rule}  # those of discretized_scan


def names(taps: int) -> tuple[str, ...]:
    """The rules with at most so many taps."""
    return tuple(name for name, rule in RULES.items() if rule.taps <= taps)


def find(rule: "Rule | str", taps: int = 1) -> Rule:
    """The rule of that name; a rule is returned as it is.

    Args:
        rule: a rule, or its name.
        taps: how many the caller can compute.

    Raises:
        RecipeError: there is no such rule, or it has more taps; names the nearest one, or those that fit.
    """
    found = rule if isinstance(rule, Rule) else OWN.get(rule) or RULES[one_of("rule", rule, RULES)]
    if found.taps > taps:
        raise RecipeError(
            f"rule: '{found.name}' has {found.taps} taps of the input, expected at most {taps}; "
            f"choose one of: {', '.join(names(taps))}"
        )
    return found


def numbered(code: "Rule | int") -> Rule:
    """The rule whose kernels have this number; a rule is returned as it is."""
    return code if isinstance(code, Rule) else next(rule for rule in KERNELS.values() if rule.code == code)


def kernels() -> str:
    """The rules with kernels, as a built library lists them: `0 dirac, 1 zoh, …`."""
    listed = sorted((rule.code, rule.name) for rule in KERNELS.values())
    return ", ".join(f"{code} {name}" for code, name in listed)
