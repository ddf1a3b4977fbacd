"""minGRU: a GRU whose gates see the input alone, so that it is linear in its state (arXiv 2410.01201)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrnnx_app.layers._base import DiagonalLayer
from lrnnx_app.ops.linear_scan import state_dtype


class MinGRU(DiagonalLayer):
    """h = (1 − z)∘h + z∘(W_h x), z = σ(W_z x), y = W_out h; data time δ makes 1 − z its power (1 − z)^δ."""

    paper = "Feng et al. 2024, arXiv 2410.01201"
    varying = True
    cost = "N·D"

    @dataclass
    class Config:
        d_state: int = 128

    def __init__(self, d_model: int, config: Config) -> None:
        super().__init__(d_model)
        self.state_shape = (config.d_state,)
        self.in_proj = nn.Linear(d_model, 2 * config.d_state)
        self.out_proj = nn.Linear(config.d_state, d_model)

    def coefficients(self, x: Tensor, dt: Tensor | None) -> tuple[Tensor, Tensor]:
        projected = self.in_proj(x)
        gate, value = projected.to(state_dtype(projected.dtype)).chunk(2, -1)
        log_keep = F.logsigmoid(-gate)
        log_keep = log_keep if dt is None else log_keep * dt[..., None]
        return torch.exp(log_keep), -torch.expm1(log_keep) * value

    def readout(self, h: Tensor, x: Tensor) -> Tensor:
        return self.out_proj(h.to(x.dtype))
