"""Centaurus: state-space layers as tensor networks (Pei 2025, openreview PkpNRmBZ32).

The layer of aTENNuate (Interspeech 2025) is its pointwise mode.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrnnx_app.layers._base import DiagonalLayer
from lrnnx_app.ops import planar
from lrnnx_app.ops.discretize import euler


class Centaurus(DiagonalLayer):
    """h = exp(ΔA)∘h + Δ∘(B u), y = C Re(h): real B and C around `repeats` banks of `d_state` modes.

    A = −softplus(A[:, 0]) + i·A[:, 1] starts at −½ + iπn in each bank; Δ is geometric over the banks.
    """

    recurrent = ("A", "log_dt")

    @dataclass
    class Config:
        d_state: int = 16  # complex modes of a bank
        repeats: int = 16  # banks, each with its own timescale
        dt_min: float = 1e-3
        dt_max: float = 1e-1

    def __init__(self, d_model: int, config: Config) -> None:
        super().__init__(d_model)
        n, banks = config.d_state, config.repeats
        size = n * banks
        self.state_shape = (2, size)
        steps = torch.linspace(math.log(config.dt_min), math.log(config.dt_max), banks)
        self.log_dt = nn.Parameter(steps.repeat_interleave(n))
        half = math.log(math.expm1(0.5))  # softplus of it is ½
        modes = torch.stack((torch.full((n,), half), math.pi * torch.arange(n)), -1)
        self.A = nn.Parameter(modes.repeat(banks, 1))
        self.B = nn.Parameter(torch.randn(size, d_model) / math.sqrt(d_model))
        self.C = nn.Parameter(torch.randn(d_model, size) / math.sqrt(size))

    def coefficients(self, x: Tensor, dt: Tensor | None) -> tuple[Tensor, Tensor]:
        lam = torch.stack((-nn.functional.softplus(self.A[:, 0]), self.A[:, 1]))
        a, gain = euler(lam, torch.exp(self.log_dt), dt)
        driven = nn.functional.linear(x, self.B)
        return a, planar.join(gain[..., 0, :] * driven, torch.zeros_like(driven))

    def readout(self, h: Tensor, x: Tensor) -> Tensor:
        return nn.functional.linear(h[..., 0, :], self.C)
