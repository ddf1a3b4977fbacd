"""S7: a simplified selective state space (Soydan et al. 2024, arXiv 2410.03464)."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lrnnx_app.errors import RecipeError, one_of
from lrnnx_app.layers._base import DiagonalLayer, drive, readout_matrix, real_readout, wide
from lrnnx_app.layers._coefficients import Coefficients, Varying
from lrnnx_app.layers._constants import constant
from lrnnx_app.layers._definition import affine, diagonal_states, number, softplus
from lrnnx_app.layers._hippo import legs_normal
from lrnnx_app.layers._linear import Linear, biased, linear
from lrnnx_app.layers._taps import Tapped
from lrnnx_app.layers.s6 import inverse_softplus_steps
from lrnnx_app.ops._blocked import cast, state_dtype
from lrnnx_app.ops.rules import find

SELECTIVE = ("step", "b", "c")


class S7(DiagonalLayer):
    """h = a∘h + gain∘(B x), y = 2·Re(C h) + D∘x, then y·σ(W GELU(y)).

    λ = f(w) − 1 + i·Lambda_im with f(w) = 1 − 1/(w² + ½), so that −2 ≤ Re λ < 0 whatever w is and one Euler
    step at Δ = 1 decays by f(w). Im λ starts as the frequencies of `blocks` HiPPO-N matrices side by side:
    small ones, for what the input adds to Δ turns the phase by Im λ times as much. What `selective` names
    depends on the input: step, Δ = softplus(W x + b) per state (as in the authors' code); b and c, the rows
    of B and the columns of C, each scaled by 1 + W x (a form of what the paper's text describes that costs
    N numbers a step, not N·d_model).
    """

    recurrent = ("w", "Lambda_im", "step_bias")
    paper = "Soydan et al. 2024, arXiv 2410.03464"
    varying = True
    taps = 2
    cost = "D² + N·D"
    examples = ({"d_state": 4}, {"d_state": 4, "selective": ["step", "b", "c"]})

    @dataclass
    class Config:
        d_state: int = 64  # complex states, one of each conjugate pair
        blocks: int | None = None  # J, a divisor of d_state; None: the largest one up to 16
        selective: list[str] = field(default_factory=lambda: ["step"])  # by the input; any of step, b, c
        rule: str = "zoh"  # discretization, any name that `lrnnx layers` lists
        dt_min: float = 1e-3  # Δ starts log-uniform in [dt_min, dt_max]
        dt_max: float = 1e-1  # see dt_min

        def __post_init__(self) -> None:
            find(self.rule, S7.taps)
            for part in self.selective:
                one_of("selective", part, SELECTIVE)

    def __init__(self, d_model: int, config: Config) -> None:
        super().__init__(d_model)
        self.config, self.rule = config, find(config.rule, S7.taps)
        n = config.d_state
        self.state_shape = (2, n)
        blocks = config.blocks or max(k for k in range(1, 17) if n % k == 0)
        size, odd = divmod(n, blocks)
        if odd:
            raise RecipeError(f"blocks: {blocks} does not divide d_state = {n}; choose a divisor")
        lam, _ = legs_normal(2 * size)
        self.w = nn.Parameter(torch.full((n,), math.sqrt(1.5)))  # Re λ = −½
        self.Lambda_im = nn.Parameter(lam[1, size:].repeat(blocks).float())
        self.step_bias = nn.Parameter(inverse_softplus_steps(n, config.dt_min, config.dt_max))
        self.B = nn.Parameter(torch.randn(2, n, d_model) / math.sqrt(2 * d_model))
        self.C = nn.Parameter(torch.randn(2, d_model, n) / math.sqrt(4 * n))
        self.D = nn.Parameter(torch.randn(d_model))
        self.select = nn.ModuleDict({name: Linear(d_model, n, bias=False) for name in config.selective})
        self.gate = Linear(d_model, d_model)

    @constant
    def eigenvalues(self) -> Tensor:
        """λ (2, N), planar."""
        w, im = wide(self.w, self.Lambda_im)
        return torch.stack((-1 / (w.square() + 0.5), im))

    def coefficients(self, x: Tensor, dt: Tensor | None) -> tuple[Coefficients, Tensor]:
        if "step" in self.select:
            logits = biased(self.select["step"], x, self.step_bias)
        else:
            logits = self.step_bias.expand(*x.shape[:2], -1)
        b = drive(x, self.B)
        if "b" in self.select:
            b = b * (1 + self._selected("b", x)).unsqueeze(-2)
        if self.two_taps:
            return Tapped(self.eigenvalues, nn.functional.softplus(logits), dt, self.rule), b
        return Varying(self.eigenvalues, logits, dt, self.rule), b

    def readout(self, h: Tensor, x: Tensor) -> Tensor:
        if "c" in self.select:
            h = h * cast(1 + self._selected("c", x), h.dtype).unsqueeze(-2)
        y = real_readout(cast(h, x.dtype), self.matrix, self.D, x)
        return linear(self.gate, y, activation="sigmoid", times=y, gelu=True)

    @constant
    def matrix(self) -> Tensor:
        return readout_matrix(2 * self.C)

    def _selected(self, name: str, x: Tensor) -> Tensor:
        """The input-dependent part (B, T, N)."""
        part = self.select[name](x)
        return cast(part, state_dtype(part.dtype))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, selective={'+'.join(self.config.selective) or 'nothing'}"


def definition(layer: S7, x: Tensor, dt: Tensor | None = None) -> Tensor:
    """h[t] = ā[t]∘h[t − 1] + gain[t]∘(B[t] u[t]), y[t] = C[t] h[t] + D u[t]: section 3 of the paper.

    The input changes what `selective` names. Re λ is f(w) − 1, f(w) = 1 − 1/(w² + ½). A gate follows.
    """
    lam = torch.complex(1 - 1 / (layer.w**2 + 0.5) - 1, layer.Lambda_im)
    B, C = number(layer.B), number(layer.C)

    def by_input(name: str) -> Tensor | int:
        return affine(layer.select[name], x) if name in layer.config.selective else 0

    step = softplus(layer.step_bias + by_input("step")).expand(*x.shape[:2], -1)
    driven = (1 + by_input("b")) * (x.to(B.dtype) @ B.T)
    h = (1 + by_input("c")) * diagonal_states(layer.config.rule, lam, step, driven, dt)
    y = 2 * (h @ C.T).real + layer.D * x
    return y * torch.sigmoid(affine(layer.gate, nn.functional.gelu(y)))
