"""RG-LRU, the real-gated linear recurrent unit, with its block (De et al. 2024, arXiv 2402.19427)."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrnnx_app.errors import RecipeError, one_of
from lrnnx_app.layers._base import Layer
from lrnnx_app.ops.linear_scan import linear_scan
from lrnnx_app.ops.short_conv import short_conv

STARTS = ("paper", "released")


class RGLRUState(NamedTuple):
    """conv: last inputs of the convolution (B, d_conv − 1, D); h (B, D); fresh (B,): 1 until a first step."""

    conv: Tensor
    h: Tensor
    fresh: Tensor


class RGLRU(Layer):
    """u = conv1d(linear_x x); r, i = σ(block-diagonal gates of u); log a = −c·r·softplus(Λ);

    h = a∘h + √(1 − a²)∘(i∘u); linear_out(GELU(linear_y x)∘h). Data time δ enters as a^δ. At a document's
    first step, by `reset` or in a fresh stream, the multiplier √(1 − a²) is 1 (option unit_start).
    """

    recurrent = ("recurrent_param",)
    paper = "De et al. 2024, arXiv 2402.19427"
    varying = True
    cost = "D²"

    @dataclass
    class Config:
        d_rnn: int | None = None  # width of the recurrence; None: d_model
        heads: int | None = None  # blocks of the gates, a divisor of d_rnn; None: the largest one up to 8
        d_conv: int = 4  # width of the convolution
        c: float = 8.0
        start: str = "paper"  # at r = 1, paper: a uniform in [r_min, r_max]; released: a^(1/c), by area
        r_min: float = 0.9
        r_max: float = 0.999
        unit_start: bool = True

        def __post_init__(self) -> None:
            one_of("start", self.start, STARTS)

    def __init__(self, d_model: int, config: Config) -> None:
        super().__init__(d_model)
        self.config = config
        size = config.d_rnn or d_model
        heads = config.heads or max(k for k in range(1, 9) if size % k == 0)
        if size % heads:
            raise RecipeError(f"heads: {heads} does not divide d_rnn = {size}; choose a divisor")
        width = size // heads
        self.linear_y = nn.Linear(d_model, size)
        self.linear_x = nn.Linear(d_model, size)
        self.conv1d = nn.Conv1d(size, size, config.d_conv, groups=size)
        self.input_gate_weight = nn.Parameter(torch.randn(heads, width, width) / math.sqrt(width))
        self.input_gate_bias = nn.Parameter(torch.zeros(heads, width))
        self.recurrent_gate_weight = nn.Parameter(torch.randn(heads, width, width) / math.sqrt(width))
        self.recurrent_gate_bias = nn.Parameter(torch.zeros(heads, width))
        self.recurrent_param = nn.Parameter(self._start(size))
        self.linear_out = nn.Linear(size, d_model)

    def _start(self, size: int) -> Tensor:
        """Λ with decay(r = 1) as `start` says: the inverse of `decay`."""
        low, high = self.config.r_min, self.config.r_max
        if self.config.start == "paper":
            rate = -torch.log(torch.rand(size) * (high - low) + low) / self.config.c
        else:
            rate = -torch.log(torch.rand(size) * (high**2 - low**2) + low**2) / 2
        return rate + torch.log(-torch.expm1(-rate))  # softplus of it is the rate

    def decay(self, r: Tensor) -> Tensor:
        """log a for a gate r (…, D)."""
        rate = self.constant("rate", lambda: -self.config.c * F.softplus(self.recurrent_param.to(r.dtype)))
        return r * rate

    def init_state(self, batch: int) -> RGLRUState:
        size = self.recurrent_param.shape[0]
        conv = self._zeros(batch, self.config.d_conv - 1, size)
        return RGLRUState(conv, self._zeros(batch, size), self._zeros(batch) + 1)

    def forward(
        self,
        x: Tensor,
        state: RGLRUState | None = None,
        *,
        dt: Tensor | None = None,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Tensor, RGLRUState]:
        state = self.init_state(x.shape[0]) if state is None else state
        kernel = self.conv1d.weight.squeeze(1)
        u, conv = short_conv(
            self.linear_x(x), kernel, self.conv1d.bias, state.conv, lengths=lengths, reset=reset
        )
        first = F.pad((state.fresh > 0.5)[:, None], (0, x.shape[1] - 1))
        first = first if reset is None else first | reset
        a, b = self.coefficients(u, dt, first)
        h, last = linear_scan(a, b, state.h, lengths=lengths, reset=reset)
        fresh = torch.zeros_like(state.fresh) if lengths is None else state.fresh * (lengths == 0)
        y = F.gelu(self.linear_y(x), approximate="tanh")
        return self.linear_out(y * h.to(y.dtype)), RGLRUState(conv, last, fresh)

    def coefficients(self, u: Tensor, dt: Tensor | None, first: Tensor) -> tuple[Tensor, Tensor]:
        """a and b (B, T, D) from the convolved input; first (B, T): a document's first step."""
        r = self._gate(u, self.recurrent_gate_weight, self.recurrent_gate_bias)
        i = self._gate(u, self.input_gate_weight, self.input_gate_bias)
        log_a = self.decay(r)
        log_a = log_a if dt is None else log_a * dt[..., None]
        multiplier = bounded_sqrt(-torch.expm1(2 * log_a))
        if self.config.unit_start:
            multiplier = torch.where(first[..., None], 1, multiplier)
        return torch.exp(log_a), multiplier * i * u

    def _gate(self, u: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        blocks = u.unflatten(-1, weight.shape[:2])
        gate = torch.einsum("bthi,hij->bthj", blocks, weight.to(u.dtype)) + bias
        return torch.sigmoid(gate.to(self._zeros().dtype)).flatten(2)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, heads={self.input_gate_weight.shape[0]}, start={self.config.start}"

    @property
    def n_states(self) -> str:
        return f"{self.recurrent_param.shape[0]} real"


def bounded_sqrt(x: Tensor, slope: float = 1000.0) -> Tensor:
    """√x for x ≥ 0 whose derivative 1/(2√x) is held at or below `slope`, finite at x = 0."""
    root = torch.sqrt(x.detach())
    return root + (x - x.detach()) / (2 * root).clamp_min(1 / slope)
