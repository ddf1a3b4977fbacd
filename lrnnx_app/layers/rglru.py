"""RG-LRU, the real-gated linear recurrent unit, with its block (De et al. 2024, arXiv 2402.19427)."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrnnx_app.errors import RecipeError, one_of
from lrnnx_app.layers._base import Layer, wide
from lrnnx_app.layers._constants import constant
from lrnnx_app.layers._definition import affine, short_convolution, softplus
from lrnnx_app.layers._linear import Linear, convolve, linear
from lrnnx_app.ops.block_linear import BlockLinear
from lrnnx_app.ops.rglru_scan import rglru_scan
from lrnnx_app.spec import EVEN, Rows

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
    examples = (
        {"heads": 2},
        {"d_rnn": 12, "heads": 3, "d_conv": 2, "unit_start": False, "start": "released"},
    )

    @dataclass
    class Config:
        d_rnn: int | None = None  # width of the recurrence; None: d_model
        heads: int | None = None  # blocks of the gates, a divisor of d_rnn; None: the largest one up to 8
        d_conv: int = 4  # width of the convolution, in steps
        c: float = 8.0  # factor of log a; a larger one forgets faster
        start: str = "paper"  # at r = 1, paper: a uniform in [r_min, r_max]; released: a^(1/c), by area
        r_min: float = 0.9  # see start
        r_max: float = 0.999  # see start
        unit_start: bool = True  # the first step of a stream or document enters whole, without √(1 − a²)

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
        self.linear_y = Linear(d_model, size)
        self.linear_x = Linear(d_model, size)
        self.conv1d = nn.Conv1d(size, size, config.d_conv, groups=size)
        self.input_gate_weight = nn.Parameter(torch.randn(heads, width, width) / math.sqrt(width))
        self.input_gate_bias = nn.Parameter(torch.zeros(heads, width))
        self.recurrent_gate_weight = nn.Parameter(torch.randn(heads, width, width) / math.sqrt(width))
        self.recurrent_gate_bias = nn.Parameter(torch.zeros(heads, width))
        self.recurrent_param = nn.Parameter(self._start(size))
        self.linear_out = Linear(size, d_model)

    def _start(self, size: int) -> Tensor:
        """Λ with decay(r = 1) as `start` says: the inverse of `decay`."""
        low, high = self.config.r_min, self.config.r_max
        if self.config.start == "paper":
            rate = -torch.log(torch.rand(size) * (high - low) + low) / self.config.c
        else:
            rate = -torch.log(torch.rand(size) * (high**2 - low**2) + low**2) / 2
        return rate + torch.log(-torch.expm1(-rate))  # softplus of it is the rate

    @constant
    def rate(self) -> Tensor:
        """−log a at r = 1 and δ = 1, (D,)."""
        return self.config.c * F.softplus(next(wide(self.recurrent_param)))

    def init_state(self, batch: int) -> RGLRUState:
        size = self.recurrent_param.shape[0]
        conv = self._zeros(batch, self.config.d_conv - 1, size)
        return RGLRUState(conv, self._zeros(batch, size), self._zeros(batch) + 1)

    def run(self, x: Tensor, state: RGLRUState | None, rows: Rows) -> tuple[Tensor, RGLRUState]:
        state = self.init_state(x.shape[0]) if state is None else state
        u, conv, first = self._inputs(x, state, rows)
        gate, input_gate = self.gates(u)
        h, last = rglru_scan(gate, input_gate, u, self.rate, state.h, first=first, **rows._asdict())
        fresh = torch.zeros_like(state.fresh) if rows.lengths is None else state.fresh * (rows.lengths == 0)
        return self._outputs(h, x), RGLRUState(conv, last, fresh)

    def step(self, x: Tensor, state: RGLRUState, dt: Tensor | None = None) -> tuple[Tensor, RGLRUState]:
        fresh = torch.zeros_like(state.fresh)  # first, since all launches after it overlap
        x = x.unsqueeze(1)
        u, conv, first = self._inputs(x, state)
        elapsed = None if dt is None else dt[:, None]
        gate, input_gate = self.gates(u)
        h, last = rglru_scan(gate, input_gate, u, self.rate, state.h, dt=elapsed, first=first)
        return self._outputs(h, x).squeeze(1), RGLRUState(conv, last, fresh)

    def _inputs(
        self, x: Tensor, state: RGLRUState, rows: Rows = EVEN
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The convolved input u (B, T, D), the convolution's state, and where the multiplier is 1 (B, T)."""
        u, conv = convolve(self.conv1d, self.linear_x(x), state.conv, rows)
        if not self.config.unit_start:
            return u, conv, None
        first = state.fresh[:, None]
        first = first if x.shape[1] == 1 else F.pad(first, (0, x.shape[1] - 1))
        return u, conv, first if rows.reset is None else first.bool() | rows.reset

    def _outputs(self, h: Tensor, x: Tensor) -> Tensor:
        return self.linear_out(linear(self.linear_y, x, activation="gelu_tanh", times=h))

    @constant
    def gates(self) -> BlockLinear:
        """From the convolved input (B, T, D), logits of the recurrence gate and of the input gate."""
        return BlockLinear(
            (self.recurrent_gate_weight, self.input_gate_weight),
            (self.recurrent_gate_bias, self.input_gate_bias),
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, heads={self.input_gate_weight.shape[0]}, start={self.config.start}"

    @property
    def n_states(self) -> str:
        return f"{self.recurrent_param.shape[0]} real"


def definition(layer: RGLRU, x: Tensor, dt: Tensor | None = None) -> Tensor:
    """h[t] = a[t]∘h[t − 1] + √(1 − a[t]²)∘(i[t]∘u[t]) with a = exp(−c softplus(Λ) r): equations 1 to 4 of the
    paper, in the block of its figure 2c. The first step enters whole where `unit_start` is set.
    """
    u = short_convolution(layer.conv1d, affine(layer.linear_x, x))

    def gate(weight: Tensor, bias: Tensor) -> Tensor:
        return torch.sigmoid(u @ torch.block_diag(*weight) + bias.flatten())

    r = gate(layer.recurrent_gate_weight, layer.recurrent_gate_bias)
    i = gate(layer.input_gate_weight, layer.input_gate_bias)
    h, states = torch.zeros_like(u[:, 0]), []
    for t in range(x.shape[1]):
        elapsed = 1.0 if dt is None else dt[:, t, None]
        a = torch.exp(-layer.config.c * softplus(layer.recurrent_param) * r[:, t] * elapsed)
        scale = 1.0 if t == 0 and layer.config.unit_start else torch.sqrt(1 - a * a)
        h = a * h + scale * i[:, t] * u[:, t]
        states.append(h)
    gated = F.gelu(affine(layer.linear_y, x), approximate="tanh") * torch.stack(states, 1)
    return affine(layer.linear_out, gated)
