"""Mamba-2: a state space of one decay a head, as products of matrices (Dao & Gu 2024, arXiv 2405.21060)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrnnx_app.errors import RecipeError
from lrnnx_app.layers._base import Layer, wide
from lrnnx_app.layers._constants import constant
from lrnnx_app.layers._definition import affine, matrix_outputs, rms, short_convolution, silu, softplus
from lrnnx_app.layers._heads import ConvolvedState, decay_rates, head_width, normed, of_heads, timescales
from lrnnx_app.layers._linear import Linear, convolve
from lrnnx_app.layers.s6 import inverse_softplus_steps
from lrnnx_app.ops._blocked import cast
from lrnnx_app.ops.matrix_scan import matrix_scan
from lrnnx_app.ops.rules import OWN
from lrnnx_app.spec import Rows


class Mamba2(Layer):
    """z, u, r = in_proj x; u, B, C = SiLU(conv1d u); Δ = softplus(r + dt_bias), one for each head;

    h = exp(ΔA)·h + Δ·u Bᵀ, y = h C + D·u with A = −exp(A_log); out_proj(RMS(y∘SiLU(z))∘norm_weight).
    The heads of a group share B and C, and its channels share a norm. Data time multiplies Δ.
    """

    rule = OWN["euler"]
    recurrent = ("A_log", "D", "dt_bias")
    paper = "Dao & Gu 2024, arXiv 2405.21060"
    varying = True
    cost = "D² + n·D"
    examples = (
        {"d_state": 3, "head_dim": 4},
        {"d_state": 3, "head_dim": 2, "groups": 2, "d_conv": 2, "bias": True, "conv_bias": False},
    )

    @dataclass
    class Config:
        d_state: int = 128  # states N of each channel
        d_conv: int = 4  # width of the convolution, in steps
        expand: int = 2  # channels D = expand · d_model
        head_dim: int | None = None  # channels P of a head; None: 8 to 64, in four heads
        groups: int = 1  # of heads with the same B and C
        bias: bool = False  # in_proj and out_proj have a bias
        conv_bias: bool = True  # the convolution has a bias
        norm_eps: float = 1e-5  # added to the mean square in the norm
        dt_min: float = 1e-3  # Δ starts log-uniform in [dt_min, dt_max]
        dt_max: float = 1e-1  # see dt_min

    def __init__(self, d_model: int, config: Config) -> None:
        super().__init__(d_model)
        self.config = config
        inner = config.expand * d_model
        self.head_dim = head_width(config.head_dim, inner)
        heads = inner // self.head_dim
        if heads % config.groups:
            raise RecipeError(f"groups: {config.groups} does not divide {heads} heads; choose a divisor")
        convolved = inner + 2 * config.groups * config.d_state
        self.sizes = (inner, convolved, heads)  # of z, u and r
        self.in_proj = Linear(d_model, sum(self.sizes), bias=config.bias)
        self.conv1d = nn.Conv1d(convolved, convolved, config.d_conv, groups=convolved, bias=config.conv_bias)
        self.dt_bias = nn.Parameter(inverse_softplus_steps(heads, config.dt_min, config.dt_max))
        self.A_log = decay_rates(heads)
        self.D = nn.Parameter(torch.ones(heads))
        self.norm_weight = nn.Parameter(torch.ones(inner))
        self.out_proj = Linear(inner, d_model, bias=config.bias)

    @constant
    def eigenvalues(self) -> Tensor:
        """A (H,)."""
        return -torch.exp(next(wide(self.A_log)))

    def init_state(self, batch: int) -> ConvolvedState:
        _, convolved, heads = self.sizes
        h = self._zeros(batch, heads, self.head_dim, self.config.d_state)
        return ConvolvedState(self._zeros(batch, self.config.d_conv - 1, convolved), h)

    def run(self, x: Tensor, state: ConvolvedState | None, rows: Rows) -> tuple[Tensor, ConvolvedState]:
        state = self.init_state(x.shape[0]) if state is None else state
        z, u, r = self.in_proj(x).split(self.sizes, -1)
        u, conv = convolve(self.conv1d, u, state.conv, rows, silu=True)
        u, B, C = self._selected(u)
        delta = timescales(r, self.dt_bias, rows.dt)
        driven = u * cast(delta, u.dtype)[..., None]
        masks = {"lengths": rows.lengths, "reset": rows.reset}
        y, h = matrix_scan(C, B, driven, delta * self.eigenvalues, None, state.h, **masks)
        y = torch.addcmul(y, u, cast(self.D, u.dtype)[:, None]).flatten(-2)
        return self._outputs(y, z), ConvolvedState(conv, h)

    def _selected(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """u (B, T, H, P), and B and C (B, T, H, N) of its group for each head."""
        (inner, _, heads), config = self.sizes, self.config
        size = config.groups * config.d_state
        u, *selected = u.split((inner, size, size), -1)
        B, C = (
            of_heads(w, config.groups).repeat_interleave(heads // config.groups, -2)
            if config.groups > 1
            else w.unsqueeze(-2).expand(*w.shape[:-1], heads, size)
            for w in selected
        )
        return of_heads(u, heads), B, C

    def _outputs(self, y: Tensor, z: Tensor) -> Tensor:
        y, weight = (of_heads(w, self.config.groups) for w in (y * F.silu(z), self.norm_weight))
        return self.out_proj(normed(y, weight, self.config.norm_eps).flatten(-2))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, heads={self.sizes[-1]}"

    @property
    def n_states(self) -> str:
        return f"{self.sizes[0] * self.config.d_state} real"


def definition(layer: Mamba2, x: Tensor, dt: Tensor | None = None) -> Tensor:
    """h[t] = exp(Δ[t] A)·h[t − 1] + Δ[t]·u[t] B[t]ᵀ, y[t] = h[t] C[t] + D·u[t]: the state space of section 2
    where A is a number times the identity, in the parallel block of figure 6.
    """
    config, (inner, convolved, heads) = layer.config, layer.sizes
    z, u, r = affine(layer.in_proj, x).split([inner, convolved, heads], -1)
    u = silu(short_convolution(layer.conv1d, u))
    states = config.groups * config.d_state
    u, B, C = u.split([inner, states, states], -1)
    u = u.unflatten(-1, (heads, -1))
    group = torch.arange(heads) * config.groups // heads  # of each head
    B, C = (w.unflatten(-1, (config.groups, -1))[:, :, group] for w in (B, C))
    delta = softplus(r + layer.dt_bias) * (1.0 if dt is None else dt[..., None])
    decay = torch.exp(-delta * torch.exp(layer.A_log))
    y = matrix_outputs(C, B, delta[..., None] * u, decay) + layer.D[:, None] * u
    y = rms((y.flatten(-2) * silu(z)).unflatten(-1, (config.groups, -1)), config.norm_eps).flatten(-2)
    return affine(layer.out_proj, y * layer.norm_weight)
