"""Leaky integrators: one state a channel, each with its own time constant."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrnnx_app.layers._base import DiagonalLayer
from lrnnx_app.layers._coefficients import Coefficients, Given


class Leaky(DiagonalLayer):
    """h = a^δ∘h + (1 − a^δ)∘x, y = gain∘h, where a = exp(−1/τ) and δ is the elapsed time."""

    paper = "an example"
    cost = "D"
    uses_dt = True
    recurrent = ("log_tau",)

    @dataclass
    class Config:
        slowest: float = 50.0  # the longest time constant, in steps

    def __init__(self, d_model: int, config: Config) -> None:
        super().__init__(d_model)
        self.state_shape = (d_model,)
        self.log_tau = nn.Parameter(torch.linspace(1.0, config.slowest, d_model).log())
        self.gain = nn.Parameter(torch.ones(d_model))

    def coefficients(self, x: Tensor, dt: Tensor | None) -> tuple[Coefficients, Tensor]:
        rate = -torch.exp(-self.log_tau)
        keep = torch.exp(rate if dt is None else rate * dt[..., None]).expand_as(x)
        return Given(keep), (1 - keep) * x

    def readout(self, h: Tensor, x: Tensor) -> Tensor:
        return self.gain * h


def definition(layer: Leaky, x: Tensor, dt: Tensor | None = None) -> Tensor:
    """The equation of the class, one step at a time."""
    h, ys = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        elapsed = 1.0 if dt is None else dt[:, t, None]
        keep = torch.exp(-elapsed / torch.exp(layer.log_tau))
        h = keep * h + (1 - keep) * x[:, t]
        ys.append(layer.gain * h)
    return torch.stack(ys, 1)
