"""Discretization rules against complex arithmetic, and their limits."""

import math

import pytest
import torch
from torch import Tensor

from lrnnx_app.ops import planar
from lrnnx_app.ops.discretize import RULES, constant_gain
from tests.helpers import relative

Z = torch.complex128


def number(z: Tensor) -> Tensor:
    """Planar (…, 2, N) as complex (…, N)."""
    return torch.complex(*z.unbind(-2))


def expected(rule: str, lam: Tensor, step: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    span = step * dt
    decay = torch.exp(lam * span)
    return {
        "zoh": (decay, (decay - 1) / lam),
        "bilinear": ((1 + lam * span / 2) / (1 - lam * span / 2), span / (1 - lam * span / 2)),
        "dirac": (decay, torch.ones_like(decay)),
        "euler": (decay, span.to(Z).expand_as(decay)),
        "asynchronous": (decay, ((torch.exp(lam * step) - 1) / lam).expand_as(decay)),
    }[rule]


@pytest.fixture
def system() -> tuple[Tensor, Tensor, Tensor]:
    lam = torch.stack((-torch.rand(6, dtype=torch.float64) - 0.1, 5 * torch.randn(6, dtype=torch.float64)))
    return lam, torch.rand(6, dtype=torch.float64) + 0.1, torch.rand(2, 5, dtype=torch.float64) + 0.1


@pytest.mark.parametrize("rule", RULES)
def test_formula_and_stability(rule: str, system: tuple[Tensor, Tensor, Tensor]) -> None:
    lam, step, dt = system
    for gaps in (None, dt):
        a, gain = RULES[rule](lam, step, gaps)
        ones = torch.ones(1, 1, dtype=torch.float64) if gaps is None else gaps
        want_a, want_gain = expected(rule, number(lam), step, ones[..., None])
        assert relative(number(a).expand_as(want_a), want_a) < 1e-14
        assert relative(number(gain).expand_as(want_gain), want_gain) < 1e-13
        assert float(number(a).abs().max()) < 1


@pytest.mark.parametrize("rule", RULES)
def test_real_eigenvalues_are_the_real_case(rule: str, system: tuple[Tensor, Tensor, Tensor]) -> None:
    lam, step, dt = system
    real = lam[:1]
    padded = torch.cat((real, torch.zeros_like(real)))
    for one_plane, two_planes in zip(RULES[rule](real, step, dt), RULES[rule](padded, step, dt), strict=True):
        assert relative(one_plane, two_planes[..., :1, :]) < 1e-14


@pytest.mark.parametrize("size", [0.0, 1e-12, 1e-6, 1e-3, 0.0999, 0.1001])
def test_zoh_gain_near_zero(size: float) -> None:
    """(e^z − 1)/z and its slope stay exact where the formula cancels."""
    z = torch.tensor([[size / math.sqrt(2)], [size / math.sqrt(2)]], dtype=torch.float64, requires_grad=True)
    value = planar.expm1_over(z)
    (slope,) = torch.autograd.grad(value[0].sum(), z)
    w = complex(*z.detach().flatten().tolist())
    series = sum(w**k / math.factorial(k + 1) for k in range(20))
    derivative = sum(k * w ** (k - 1) / math.factorial(k + 1) for k in range(1, 20))
    assert abs(complex(*value.flatten().tolist()) - series) < 1e-14
    assert abs(complex(float(slope[0]), -float(slope[1])) - derivative) < 1e-11


@pytest.mark.parametrize("rule", RULES)
def test_the_part_of_a_gain_without_time(rule: str, system: tuple[Tensor, Tensor, Tensor]) -> None:
    """A gain is its constant part times that of a unit step over the rate λΔ."""
    lam, step, dt = system
    rate = lam * step
    unit = "dirac" if rule == "asynchronous" else rule
    _, rest = RULES[unit](rate, step.new_ones(1), dt)
    gain = planar.mul(constant_gain(rule, lam, step).expand(*dt.shape, 2, 6), rest.expand(*dt.shape, 2, 6))
    assert relative(gain, RULES[rule](lam, step, dt)[1].expand_as(gain)) < 1e-13
