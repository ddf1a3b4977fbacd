"""What holds for every rule of discretization: its order, how it treats time, what is derived of it.

The tests try all of it on lrnnx's own rules, `lrnnx doctor --plugin` on those of a file. Both then try each
layer that takes a rule by it, see `contract`.
"""

import cmath
import copy
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lrnnx_app.layers._properties import Trial, require, trials
from lrnnx_app.ops import planar
from lrnnx_app.ops.rules import Rule, find
from lrnnx_app.registry import LAYERS

Z = torch.complex128
LAM, STEP = complex(-0.7, 2.0), 0.4  # of the system whose states are known
PROPERTIES: dict[str, Callable[[Rule], None]] = {}


def _property(check: Callable[[Rule], None]) -> Callable[[Rule], None]:
    PROPERTIES[check.__name__] = check
    return check


def contract(rule: Rule) -> Iterator[Trial]:
    """All that there is to try of the layers that take this rule, by it."""
    for name, entry in LAYERS.items():
        if entry.taps >= rule.taps:
            yield from (trial for trial in trials(name) if trial.case.options.get("rule") == rule.name)


def system() -> tuple[Tensor, Tensor, Tensor]:
    """Stable λ (2, 6), Δ (6,) and δ (2, 5), always the same."""
    draw = torch.Generator().manual_seed(0)
    real, step = torch.rand(2, 6, generator=draw, dtype=torch.float64) + 0.1
    turns = 5 * torch.randn(6, generator=draw, dtype=torch.float64)
    return torch.stack((-real, turns)), step, torch.rand(2, 5, generator=draw, dtype=torch.float64) + 0.1


def number(z: Tensor) -> Tensor:
    """Planar (…, 2, N) as complex (…, N)."""
    return torch.complex(*z.unbind(-2))


def relative(found: Tensor, wanted: Tensor) -> float:
    """‖found − wanted‖ / ‖wanted‖."""
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-300))


def _equal(found: Tensor, wanted: Tensor, tolerance: float, what: str) -> None:
    error = relative(found, wanted)
    require(error < tolerance, f"{what} differs by {error:.2g}, allowed are {tolerance:.2g}")


def _run(rule: Rule, step: float, u: Tensor) -> Tensor:
    """The states (T,) of a recurrence by the rule from samples u (T,), h = 0 and no input before."""
    planes = torch.tensor([[LAM.real], [LAM.imag]], dtype=torch.float64)
    a, *gains = (number(x)[0] for x in rule(planes, torch.tensor([step], dtype=torch.float64)))
    before, h, states = u.new_zeros(()), torch.zeros((), dtype=Z), []
    for now in u:
        h = a * h + sum(gain * x for gain, x in zip(gains, (now, before), strict=False))
        before = now
        states.append(h)
    return torch.stack(states)


def _error_at_2(rule: Rule, steps: int) -> float:
    """|error| of h(2) for h' = λh + sin(ωs) from rest, against the solution in closed form."""
    omega, end = 3.0, 2.0
    step = end / steps
    grid = torch.arange(steps + 1, dtype=torch.float64) * step
    integral = (torch.cos(omega * grid[:-1]) - torch.cos(omega * grid[1:])) / omega
    samples = {"end": torch.sin(omega * grid[1:]), "mean": integral / step, "integral": integral}
    grown = omega * cmath.exp(LAM * end)
    exact = (grown - omega * math.cos(omega * end) - LAM * math.sin(omega * end)) / (LAM**2 + omega**2)
    return float((_run(rule, step, samples[rule.sample])[-1] - exact).abs())


@_property
def order_is_the_one_declared(rule: Rule) -> None:
    """Half the step leaves 2^−p of the error."""
    order = math.log2(_error_at_2(rule, 400) / _error_at_2(rule, 800))
    require(abs(order - rule.order) < 0.05, f"it is of order {order:.2f}, declared is {rule.order}")


@_property
def exact_where_declared(rule: Rule) -> None:
    """For an input that is constant between samples, or for impulses at the samples; not elsewhere."""
    u = torch.randn(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = torch.exp(torch.tensor(LAM * STEP, dtype=Z))
    h, exact = torch.zeros((), dtype=Z), []
    for now in u:
        h = a * h + (now if rule.sample == "integral" else (a - 1) / LAM * now)
        exact.append(h)
    error = relative(_run(rule, STEP, u), torch.stack(exact))
    require((error < 1e-13) == rule.exact, f"exact is {rule.exact}, but it errs by {error:.2g}")


@_property
def stable_systems_stay_stable(rule: Rule) -> None:
    """|a| < 1 where Re λ < 0, however long a gap is."""
    lam, step, dt = system()
    for gaps in (None, dt, 1e3 * dt):
        size = float(number(rule(lam, step, gaps)[0]).abs().max())
        require(size < 1, f"|a| is {size:.4g}")


@_property
def real_eigenvalues_are_the_real_case(rule: Rule) -> None:
    lam, step, dt = system()
    real = lam[:1]
    padded = torch.cat((real, torch.zeros_like(real)))
    for one_plane, two_planes in zip(rule(real, step, dt), rule(padded, step, dt), strict=True):
        _equal(one_plane, two_planes[..., :1, :], 1e-14, "a real λ")


@_property
def elapsed_time_multiplies_the_timescale(rule: Rule) -> None:
    """In all, or where `over_time` says so, in that part of the rule alone."""
    lam, step, dt = system()
    each = zip(*(rule.scanned(lam, step * gap) for gap in dt.flatten()), strict=True)
    for found, part in zip(rule.scanned(lam, step, dt), each, strict=True):
        wanted = torch.stack([x.expand_as(lam) for x in part]).unflatten(0, dt.shape)
        _equal(found.expand_as(wanted), wanted, 1e-14, "a gap δ")


@_property
def a_gain_has_a_part_without_time(rule: Rule) -> None:
    """Gains are the constant part times those that `scanned` makes of a unit timescale and the rate λΔ."""
    lam, step, dt = system()
    a, *left = rule.scanned(lam * step, step.new_ones(1), dt)
    wanted, *gains = rule(lam, step, dt)
    _equal(a, wanted, 1e-13, "a made of the rate λΔ")
    constant = rule.constant(lam, step).expand(*dt.shape, 2, 6)
    for rest, gain in zip(left, gains, strict=True):
        made = planar.mul(constant, rest.expand_as(constant))
        _equal(made, gain.expand_as(constant), 1e-13, "a gain made of the rate λΔ")


@_property
def what_is_derived_of_it_is_right(rule: Rule) -> None:
    """log a, the rule of even samples, that it is found by its name and copied as itself, and its taps."""
    lam, step, _ = system()
    _equal(planar.exp(rule.log_a(lam, step)), rule(lam, step)[0], 1e-13, "log a")
    for found, wanted in zip((rule.evenly or rule)(lam, step), rule(lam, step), strict=True):
        _equal(found, wanted, 1e-14, "`evenly`")
    same = find(rule.name, rule.taps) is find(rule, rule.taps) is copy.deepcopy(rule) is rule
    require(same, "its name, or a copy, leads to another rule")
    made = len(rule(lam, step))
    require(made == 1 + rule.taps == 1 + len(rule.apart), f"makes {made} tensors by {rule.taps} taps")
    require(rule.taps == 1 or rule.code is None, "no kernel has a second gain")
