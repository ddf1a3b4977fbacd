"""minGRU: a GRU whose gates see the input alone, so that it is linear in its state (arXiv 2410.01201)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lrnnx_app.errors import RecipeError
from lrnnx_app.layers._base import DiagonalLayer
from lrnnx_app.layers._coefficients import Coefficients, Given
from lrnnx_app.layers._definition import affine
from lrnnx_app.layers._linear import Linear
from lrnnx_app.ops._blocked import cast, state_dtype


class MinGRU(DiagonalLayer):
    """h = (1 − z)∘h + z∘(W_h x), z = σ(W_z x), y = W_out h; data time δ makes 1 − z its power (1 − z)^δ."""

    paper = "Feng et al. 2024, arXiv 2410.01201"
    varying = True
    cost = "N·D"
    examples = ({"d_state": 4},)

    @dataclass
    class Config:
        d_state: int = 128  # states N
        max_time: float = 64.0  # states start to forget over 2 to max_time steps, log-uniform

        def __post_init__(self) -> None:
            if self.max_time < 2:
                raise RecipeError(f"max_time: expected at least 2 steps, not {self.max_time}")

    def __init__(self, d_model: int, config: Config) -> None:
        super().__init__(d_model)
        self.state_shape = (config.d_state,)
        self.in_proj = Linear(d_model, 2 * config.d_state)
        self.out_proj = Linear(config.d_state, d_model)
        times = torch.empty(config.d_state).uniform_(math.log(2), math.log(config.max_time)).exp()
        with torch.no_grad():
            self.in_proj.bias[: config.d_state] = -torch.log(times - 1)  # z = 1/time

    def coefficients(self, x: Tensor, dt: Tensor | None) -> tuple[Coefficients, Tensor]:
        projected = self.in_proj(x)
        gate, value = cast(projected, state_dtype(projected.dtype)).chunk(2, -1)
        if dt is None:
            return Given(torch.sigmoid(-gate)), torch.sigmoid(gate) * value
        log_keep = F.logsigmoid(-gate) * dt[..., None]
        return Given(torch.exp(log_keep)), -torch.expm1(log_keep) * value

    def readout(self, h: Tensor, x: Tensor) -> Tensor:
        return self.out_proj(cast(h, x.dtype))


def definition(layer: MinGRU, x: Tensor, dt: Tensor | None = None) -> Tensor:
    """h[t] = (1 − z[t])∘h[t − 1] + z[t]∘(W_h x[t]), z[t] = σ(W_z x[t]): section 3.1 of the paper.

    Elapsed time makes 1 − z its power (1 − z)^δ.
    """
    logits, value = affine(layer.in_proj, x).chunk(2, -1)
    h, states = torch.zeros_like(value[:, 0]), []
    for t in range(x.shape[1]):
        keep = (1 - torch.sigmoid(logits[:, t])) ** (1.0 if dt is None else dt[:, t, None])
        h = keep * h + (1 - keep) * value[:, t]
        states.append(h)
    return affine(layer.out_proj, torch.stack(states, 1))
