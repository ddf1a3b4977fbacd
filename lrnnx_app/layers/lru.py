"""LRU: the linear recurrent unit (Orvieto et al. 2023, arXiv 2303.06349)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrnnx_app.layers._base import DiagonalLayer, drive, readout_matrix, real_readout, wide
from lrnnx_app.layers._coefficients import Coefficients, Discretized, Given
from lrnnx_app.layers._constants import constant
from lrnnx_app.layers._definition import number
from lrnnx_app.ops import planar
from lrnnx_app.ops.rules import OWN


class LRU(DiagonalLayer):
    """h = λ∘h + γ∘(B u), y = Re(C h) + D∘u, with λ = exp(−exp(nu_log) + i·exp(theta_log)).

    There is no timescale: data time δ enters as λ^δ.
    """

    rule = OWN["dirac"]
    recurrent = ("nu_log", "theta_log", "gamma_log")
    paper = "Orvieto et al. 2023, arXiv 2303.06349"
    cost = "N·D"
    examples = ({"d_state": 4},)

    @dataclass
    class Config:
        d_state: int = 64  # complex states N
        r_min: float = 0.9  # |λ| starts uniform (by area) in the ring [r_min, r_max]
        r_max: float = 0.999  # see r_min
        max_phase: float = 2 * math.pi  # arg λ starts uniform in [0, max_phase]

    def __init__(self, d_model: int, config: Config) -> None:
        super().__init__(d_model)
        n = config.d_state
        self.state_shape = (2, n)
        low, high = config.r_min**2, config.r_max**2
        radius = torch.sqrt(torch.rand(n) * (high - low) + low)
        phase = (config.max_phase * torch.rand(n)).clamp_min(1e-8)
        self.nu_log = nn.Parameter(torch.log(-torch.log(radius)))
        self.theta_log = nn.Parameter(torch.log(phase))
        self.gamma_log = nn.Parameter(torch.log(1 - radius * radius) / 2)
        self.B = nn.Parameter(torch.randn(2, n, d_model) / math.sqrt(2 * d_model))
        self.C = nn.Parameter(torch.randn(2, d_model, n) / math.sqrt(n))
        self.D = nn.Parameter(torch.randn(d_model))

    def coefficients(self, x: Tensor, dt: Tensor | None) -> tuple[Coefficients, Tensor]:
        log_lambda, a, B = self.system
        made = Given(a) if dt is None else Discretized(log_lambda, dt, self.rule)
        return made, drive(x, B)

    @constant
    def system(self) -> tuple[Tensor, Tensor, Tensor]:
        """log λ, λ (2, N) and γ∘B (2, N, H)."""
        nu_log, theta_log, gamma_log, B = wide(self.nu_log, self.theta_log, self.gamma_log, self.B)
        log_lambda = torch.stack((-torch.exp(nu_log), torch.exp(theta_log)))
        return log_lambda, planar.exp(log_lambda), B * torch.exp(gamma_log)[:, None]

    def readout(self, h: Tensor, x: Tensor) -> Tensor:
        return real_readout(h, self.matrix, self.D, x)

    @constant
    def matrix(self) -> Tensor:
        return readout_matrix(self.C)


def definition(layer: LRU, x: Tensor, dt: Tensor | None = None) -> Tensor:
    """h[t] = λ^δ∘h[t − 1] + γ∘(B u[t]), y[t] = Re(C h[t]) + D∘u[t]: section 3 of the paper."""
    log_lambda = torch.complex(-torch.exp(layer.nu_log), torch.exp(layer.theta_log))
    gamma, B, C = torch.exp(layer.gamma_log), number(layer.B), number(layer.C)
    h, ys = torch.zeros_like(log_lambda), []
    for t in range(x.shape[1]):
        elapsed = 1.0 if dt is None else dt[:, t, None]
        h = torch.exp(log_lambda * elapsed) * h + gamma * (x[:, t].to(B.dtype) @ B.T)
        ys.append((h @ C.T).real + layer.D * x[:, t])
    return torch.stack(ys, 1)
