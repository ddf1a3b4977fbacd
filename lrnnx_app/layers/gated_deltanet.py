"""Gated DeltaNet: a memory that forgets by decay and overwrites (Yang et al. 2024, arXiv 2412.06464)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrnnx_app.layers._base import Layer, wide
from lrnnx_app.layers._definition import affine, matrix_outputs, rms, short_convolution, silu, softplus
from lrnnx_app.layers._heads import (
    ConvolvedState,
    decay_rates,
    head_width,
    normed,
    of_heads,
    root,
    timescales,
    unit,
)
from lrnnx_app.layers._linear import Linear, convolve
from lrnnx_app.layers.s6 import inverse_softplus_steps
from lrnnx_app.ops._blocked import cast
from lrnnx_app.ops.linear_scan import state_dtype
from lrnnx_app.ops.matrix_scan import matrix_scan
from lrnnx_app.spec import Rows


class GatedDeltaNet(Layer):
    """(q, k, v), z, b, a = in_proj x; q, k, v = SiLU(conv1d(q, k, v)) with q and k of norm 1;

    h = α·h (I − β k kᵀ) + β v kᵀ, y = h q/√K with β = σ(b) and log α = −exp(A_log)·softplus(a + dt_bias);
    out_proj(RMS(y)∘norm_weight∘SiLU(z)). Data time multiplies log α.

    With `negative`, β is up to 2, so that what lies along k may change its sign (Grazzi et al. 2024, arXiv
    2411.12537). Without `gate`, α is 1 and there is no z: DeltaNet (Yang et al. 2024, arXiv 2406.06484).
    """

    recurrent = ("A_log", "dt_bias")
    paper = "Yang et al. 2024, arXiv 2412.06464"
    varying = True
    cost = "D² + n·D"
    examples = ({"head_dim": 4}, {"head_dim": 2, "d_conv": 2, "gate": False, "negative": True})

    @dataclass
    class Config:
        head_dim: int | None = None  # channels K of q and k in a head; None: 8 to 64, in four heads
        expand: int = 2  # channels of v in a head: expand · K
        d_conv: int = 4  # width of the convolution, in steps
        gate: bool = True  # memory decays by α, and the output has a gate; False: DeltaNet
        negative: bool = False  # β in (0, 2) instead of (0, 1)
        norm_eps: float = 1e-5  # added to the mean square in the norm
        dt_min: float = 1e-3  # softplus(dt_bias) starts log-uniform in [dt_min, dt_max]
        dt_max: float = 1e-1  # see dt_min

    def __init__(self, d_model: int, config: Config) -> None:
        super().__init__(d_model)
        self.config = config
        self.head_dim = head_width(config.head_dim, d_model)
        heads, inner = d_model // self.head_dim, config.expand * d_model
        convolved = 2 * d_model + inner
        self.sizes = (inner * config.gate, convolved, heads, heads * config.gate)  # of z, (q, k, v), b and a
        self.in_proj = Linear(d_model, sum(self.sizes), bias=False)
        self.conv1d = nn.Conv1d(convolved, convolved, config.d_conv, groups=convolved, bias=False)
        self.A_log, self.dt_bias = None, None
        if config.gate:
            self.A_log = decay_rates(heads)
            self.dt_bias = nn.Parameter(inverse_softplus_steps(heads, config.dt_min, config.dt_max))
        self.uses_dt = config.gate
        self.norm_weight = nn.Parameter(torch.ones(config.expand * self.head_dim))
        self.out_proj = Linear(inner, d_model, bias=False)

    def init_state(self, batch: int) -> ConvolvedState:
        _, convolved, heads, _ = self.sizes
        h = self._zeros(batch, heads, self.config.expand * self.head_dim, self.head_dim)
        return ConvolvedState(self._zeros(batch, self.config.d_conv - 1, convolved), h)

    def run(self, x: Tensor, state: ConvolvedState | None, rows: Rows) -> tuple[Tensor, ConvolvedState]:
        state = self.init_state(x.shape[0]) if state is None else state
        z, u, b, a = self.in_proj(x).split(self.sizes, -1)
        u, conv = convolve(self.conv1d, u, state.conv, rows, silu=True)
        parts = u.split((self.d_model, self.d_model, self.config.expand * self.d_model), -1)
        q, k, v = (of_heads(part, self.sizes[2]) for part in parts)
        q, k = unit(q) * root(self.head_dim), unit(k)
        masks = {"lengths": rows.lengths, "reset": rows.reset}
        y, h = matrix_scan(q, k, v, self._log_decay(a, b, rows.dt), self._beta(b), state.h, **masks)
        gate = of_heads(z, self.sizes[2]) if self.config.gate else None
        y = normed(y, self.norm_weight, self.config.norm_eps, gate)
        return self.out_proj(y.flatten(-2)), ConvolvedState(conv, h)

    def _beta(self, b: Tensor) -> Tensor:
        """The share (B, T, H) that is overwritten, in the precision of a state."""
        beta = torch.sigmoid(cast(b, state_dtype(b.dtype)))
        return 2 * beta if self.config.negative else beta

    def _log_decay(self, a: Tensor, b: Tensor, dt: Tensor | None) -> Tensor:
        """log α (B, T, H), in the precision of a state."""
        if self.A_log is None or self.dt_bias is None:
            return torch.zeros_like(b, dtype=state_dtype(b.dtype))
        return -torch.exp(next(wide(self.A_log))) * timescales(a, self.dt_bias, dt)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, heads={self.d_model // self.head_dim}"

    @property
    def n_states(self) -> str:
        return f"{self.config.expand * self.d_model * self.head_dim} real"


def definition(layer: GatedDeltaNet, x: Tensor, dt: Tensor | None = None) -> Tensor:
    """h[t] = h[t − 1] α (I − β k kᵀ) + β v kᵀ, equation 10 of the paper, in the block of its figure 1."""
    d, heads, config = layer.d_model, layer.d_model // layer.head_dim, layer.config
    inner = config.expand * d
    z, u, b, a = affine(layer.in_proj, x).split(
        [inner * config.gate, 2 * d + inner, heads, heads * config.gate], -1
    )
    u = silu(short_convolution(layer.conv1d, u))
    q, k, v = (part.unflatten(-1, (heads, -1)) for part in u.split([d, d, inner], -1))
    q, k = (w / torch.sqrt(w.square().sum(-1, keepdim=True) + 1e-6) for w in (q, k))
    alpha = torch.ones_like(b)
    if layer.A_log is not None and layer.dt_bias is not None:
        elapsed = 1.0 if dt is None else dt[..., None]
        alpha = torch.exp(-torch.exp(layer.A_log) * softplus(a + layer.dt_bias) * elapsed)
    beta = torch.sigmoid(b) * (2 if config.negative else 1)
    y = matrix_outputs(q / layer.head_dim**0.5, k, v, alpha, beta)
    y = (rms(y, config.norm_eps) * layer.norm_weight).flatten(-2)
    return affine(layer.out_proj, y * silu(z) if config.gate else y)
