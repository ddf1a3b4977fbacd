"""Where LRU and S5 start, against their papers' definitions."""

import math

import torch

from lrnnx_app.layers.lru import LRU
from lrnnx_app.layers.s5 import S5
from tests.helpers import relative


def modulus(a: torch.Tensor) -> torch.Tensor:
    return a.detach().square().sum(-2).sqrt().flatten()


def test_lru_starts_uniform_by_area_in_its_ring() -> None:
    low, high = 0.5, 0.9
    layer = LRU(4, LRU.Config(d_state=20000, r_min=low, r_max=high, max_phase=math.pi))
    a = layer.coefficients(torch.zeros(1, 1, 4), None)[0].a
    radius = modulus(a)
    assert low <= float(radius.min()) < float(radius.max()) <= high
    share = (radius.square() - low**2) / (high**2 - low**2)
    assert abs(float(share.mean()) - 1 / 2) < 0.01
    assert abs(float(share.var()) - 1 / 12) < 0.005
    phase = torch.atan2(a.detach()[..., 1, :], a.detach()[..., 0, :])
    assert 0 <= float(phase.min()) < float(phase.max()) <= math.pi + 1e-6
    gamma = torch.exp(layer.gamma_log.detach())
    assert relative(gamma, torch.sqrt(1 - radius * radius)) < 1e-5


def test_s5_starts_as_hippo_n_under_its_step() -> None:
    layer = S5(4, S5.Config(d_state=32, dt_min=0.01, dt_max=0.1))
    a = layer.coefficients(torch.zeros(1, 1, 4), None)[0].a
    step = torch.exp(layer.log_step.detach())
    assert 0.01 <= float(step.min()) < float(step.max()) <= 0.1
    assert relative(modulus(a), torch.exp(-step / 2)) < 1e-6
    n = torch.arange(32, dtype=torch.float64)
    legs = -torch.tril(torch.outer((2 * n + 1).sqrt(), (2 * n + 1).sqrt()), -1) - torch.diag(n + 1)
    p = (n + 0.5).sqrt()
    normal = torch.linalg.eigvals(legs + torch.outer(p, p))
    positive = normal.imag[normal.imag > 0].sort().values
    assert relative(layer.Lambda_im.detach().double().sort().values, positive) < 1e-6
    assert relative(layer.Lambda_re.detach(), torch.full((16,), -0.5)) < 1e-6
