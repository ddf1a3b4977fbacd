"""Mamba-3: rotations, and a trapezoid over two inputs (Lahoti et al. 2026, arXiv 2603.15569)."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrnnx_app.errors import RecipeError
from lrnnx_app.layers._base import Layer
from lrnnx_app.layers._definition import affine, rms, silu, softplus
from lrnnx_app.layers._heads import head_width, normed, of_heads, timescales
from lrnnx_app.layers._linear import Linear
from lrnnx_app.layers._taps import earlier, latest
from lrnnx_app.layers.s6 import inverse_softplus_steps
from lrnnx_app.ops._blocked import cast
from lrnnx_app.ops.linear_scan import linear_scan, state_dtype
from lrnnx_app.ops.matrix_scan import matrix_scan
from lrnnx_app.spec import Rows

EPS = 1e-5  # of the norms of B and C, as in the authors' code


class Mamba3State(NamedTuple):
    """angle: by which B and C are turned (B, H, S), below 2π; h: (B, H, P, N); k and v: B (B, H, N) and u (B,
    H, P) of the last step.
    """

    angle: Tensor
    h: Tensor
    k: Tensor
    v: Tensor


class Mamba3(Layer):
    """z, u, B, C, r, a, l, w = in_proj x; Δ = softplus(r + dt_bias), A = −softplus(a), λ = σ(l) of each head;

    h = α·h + (1 − λ)Δα·u′B′ᵀ + λΔ·u Bᵀ, y = h C + D·u with α = exp(ΔA), and ′ for the step before;
    out_proj(y∘SiLU(z)). B and C are RMS(B)∘B_norm + B_bias of each head, turned by the sum of π·tanh(w)Δ up
    to here for each of S pairs of states, which makes these complex. Data time multiplies Δ.

    From the paper are the recurrence, the turns, the norms and biases, and a block without a convolution, for
    one input and output a channel (SISO). From its authors' code are tanh, the share of the states that turn,
    and the floor of |A|.
    """

    recurrent = ("D", "dt_bias")
    paper = "Lahoti et al. 2026, arXiv 2603.15569"
    varying = True
    cost = "D² + n·D"
    examples = ({"d_state": 4, "head_dim": 4},)

    @dataclass
    class Config:
        d_state: int = 128  # states N of each channel, in pairs
        expand: int = 2  # channels D = expand · d_model
        head_dim: int | None = None  # channels P of a head; None: 8 to 64, in four heads
        rotary: float = 0.5  # share of the states that turn
        floor: float = 1e-4  # least |A|
        dt_min: float = 1e-3  # Δ starts log-uniform in [dt_min, dt_max]
        dt_max: float = 1e-1  # see dt_min

    def __init__(self, d_model: int, config: Config) -> None:
        super().__init__(d_model)
        self.config = config
        inner, n = config.expand * d_model, config.d_state
        self.head_dim = head_width(config.head_dim, inner)
        heads, self.angles = inner // self.head_dim, int(n * config.rotary / 2)
        if n % 2 or not 1 <= self.angles <= n // 2:
            raise RecipeError(
                f"d_state: {n} states of which a share of {config.rotary} turns in pairs; expected an even "
                "number, and one pair or more"
            )
        self.sizes = (inner, inner, n, n, heads, heads, heads, self.angles)
        self.in_proj = Linear(d_model, sum(self.sizes), bias=False)
        self.dt_bias = nn.Parameter(inverse_softplus_steps(heads, config.dt_min, config.dt_max))
        self.B_norm, self.C_norm = (nn.Parameter(torch.ones(n)) for _ in range(2))
        self.B_bias, self.C_bias = (nn.Parameter(torch.ones(heads, n)) for _ in range(2))
        self.D = nn.Parameter(torch.ones(heads))
        self.out_proj = Linear(inner, d_model, bias=False)

    def init_state(self, batch: int) -> Mamba3State:
        heads, n = self.B_bias.shape
        sizes = ((self.angles,), (self.head_dim, n), (n,), (self.head_dim,))
        return Mamba3State(*(self._zeros(batch, heads, *size) for size in sizes))

    def run(self, x: Tensor, state: Mamba3State | None, rows: Rows) -> tuple[Tensor, Mamba3State]:
        state = self.init_state(x.shape[0]) if state is None else state
        lengths, reset = rows.lengths, rows.reset
        masks = {"lengths": lengths, "reset": reset}
        z, u, B, C, r, a, share, w = self.in_proj(x).split(self.sizes, -1)
        kind = state_dtype(r.dtype)
        delta = timescales(r, self.dt_bias, rows.dt)
        log_decay = -delta * F.softplus(cast(a, kind)).clamp_min(self.config.floor)
        now = delta * torch.sigmoid(cast(share, kind))  # λΔ
        angle, last = self._turned(cast(w, kind), delta, state.angle, masks)
        k = self._directions(B, self.B_norm, self.B_bias, angle)
        q = self._directions(C, self.C_norm, self.C_bias, angle)
        u = of_heads(u, len(self.D))
        # What a step adds at once stays out of the scan, which adds one product: that of the step before.
        late = torch.exp(log_decay) * (delta - now + earlier(now, None, reset))
        driven = earlier(u, state.v, reset) * cast(late, u.dtype)[..., None]
        y, h = matrix_scan(q, earlier(k, state.k, reset), driven, log_decay, None, state.h, **masks)
        direct = (q * k).sum(-1) * cast(now, q.dtype) + cast(self.D, q.dtype)
        y = torch.addcmul(y, u, direct[..., None]).flatten(-2) * F.silu(z)
        k, v = latest(k, state.k, lengths), latest(u, state.v, lengths)
        h = h + (latest(now, torch.zeros_like(now[:, 0]), lengths)[..., None] * v)[..., None] * k[:, :, None]
        return self.out_proj(y), Mamba3State(last, h, k, v)

    def _turned(self, w: Tensor, delta: Tensor, angle: Tensor, masks: Any) -> tuple[Tensor, Tensor]:
        """The angles (B, T, H, S) of all steps, and those after the last one."""
        each = math.pi * torch.tanh(w)[:, :, None] * delta[..., None]
        sums, last = linear_scan(each.new_ones(1, 1, 1), each.flatten(2), angle.flatten(1), **masks)
        return sums.view_as(each), torch.remainder(last.view_as(angle), 2 * math.pi)

    def _directions(self, x: Tensor, weight: Tensor, bias: Tensor, angle: Tensor) -> Tensor:
        """B or C of each head (B, T, H, N): normed, shifted, and its first pairs turned."""
        shifted = cast(normed(x, weight, EPS), angle.dtype)[:, :, None] + cast(bias, angle.dtype)
        pairs, rest = shifted.split((2 * self.angles, self.config.d_state - 2 * self.angles), -1)
        first, second = pairs.unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = torch.cos(angle), torch.sin(angle)
        turned = torch.stack((first * cos - second * sin, first * sin + second * cos), -1)
        return cast(torch.cat((turned.flatten(-2), rest), -1), x.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, heads={len(self.D)}"

    @property
    def n_states(self) -> str:
        return f"{self.config.expand * self.d_model * self.config.d_state // 2} complex"


def definition(layer: Mamba3, x: Tensor, dt: Tensor | None = None) -> Tensor:
    """h[t] = α h[t − 1] + β u[t − 1] B[t − 1] + γ u[t] B[t], y[t] = Re(C̄ h[t]) + D u[t], of complex numbers
    that are two states each: section 3 of the paper without its rotations. α = exp(Δ(A − iθ)), β = (1 − λ)Δα
    and γ = λΔ.
    """
    heads, n = layer.B_bias.shape
    z, u, B, C, r, a, share, w = affine(layer.in_proj, x).split(list(layer.sizes), -1)
    u = u.unflatten(-1, (heads, -1))
    B, C = (
        torch.complex(*(rms(v, EPS)[:, :, None] * weight + bias).unflatten(-1, (-1, 2)).unbind(-1))
        for v, weight, bias in ((B, layer.B_norm, layer.B_bias), (C, layer.C_norm, layer.C_bias))
    )
    delta = softplus(r + layer.dt_bias) * (1.0 if dt is None else dt[..., None])
    rate = -softplus(a).clamp_min(layer.config.floor)
    turn = F.pad(math.pi * torch.tanh(w), (0, n // 2 - layer.angles))
    alpha = torch.exp(delta[..., None] * (rate[..., None] - 1j * turn[:, :, None]))
    share = torch.sigmoid(share)
    h, before, ys = 0, 0, []
    for t in range(x.shape[1]):
        new = u[:, t, :, :, None] * B[:, t, :, None]
        gamma, beta = ((weight[:, t] * delta[:, t])[..., None, None] for weight in (share, 1 - share))
        h = alpha[:, t, :, None] * (h + beta * before) + gamma * new
        before = new
        ys.append((C[:, t, :, None].conj() * h).sum(-1).real + layer.D[:, None] * u[:, t])
    return affine(layer.out_proj, torch.stack(ys, 1).flatten(-2) * silu(z))
