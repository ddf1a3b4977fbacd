"""S6, the selective state space of Mamba, with the block around it (Gu & Dao 2023, arXiv 2312.00752)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrnnx_app.layers._base import Layer
from lrnnx_app.layers._constants import constant
from lrnnx_app.layers._definition import affine, diagonal_states, short_convolution, softplus
from lrnnx_app.layers._linear import Linear, convolve, without_bias
from lrnnx_app.layers._taps import earlier, latest
from lrnnx_app.ops.linear_scan import state_dtype
from lrnnx_app.ops.rules import find
from lrnnx_app.ops.selective_scan import selective_scan
from lrnnx_app.ops.step import diagonal_step
from lrnnx_app.spec import Rows


class S6State(NamedTuple):
    """conv: last inputs of the convolution (B, d_conv − 1, D); h: (B, D, N), or planar (B, D, 2, N)."""

    conv: Tensor
    h: Tensor


class TappedS6State(NamedTuple):
    """S6State of a rule of two taps: beside it u (B, D) and B (B, planes·N) of the last step."""

    conv: Tensor
    h: Tensor
    u: Tensor
    B: Tensor


Carried = S6State | TappedS6State


class S6(Layer):
    """u, z = in_proj x; u = SiLU(conv1d u); (r, B, C) = x_proj u; Δ = softplus(dt_proj r);

    h = a∘h + gain∘B u, y = C h + D∘u with A = −exp(A_log) (+ i·A_imag); out_proj(y∘SiLU(z)).
    Data time multiplies Δ as the rule says. With complex A, B and C are complex and y is 2·Re.
    """

    recurrent = ("A_log", "A_imag", "D", "dt_proj.bias")
    paper = "Gu & Dao 2023, arXiv 2312.00752"
    varying = True
    taps = 2
    cost = "D² + n·D"
    examples = (
        {"d_state": 4},
        {"d_state": 4, "complex": True},
        {"d_state": 4, "rule": "zoh", "d_conv": 2, "dt_rank": 3, "bias": True, "conv_bias": False},
        {"d_state": 4, "norm_eps": 1e-6},
    )

    @dataclass
    class Config:
        d_state: int = 16  # states N of each channel
        d_conv: int = 4  # width of the convolution, in steps
        expand: int = 2  # channels D = expand · d_model
        dt_rank: int | None = None  # width of r, from which Δ is made; None: d_model / 16, rounded up
        rule: str = "euler"  # discretization, any name that `lrnnx layers` lists
        complex: bool = False  # A starts as S4D-Lin instead of −1 … −N
        bias: bool = False  # in_proj and out_proj have a bias
        conv_bias: bool = True  # the convolution has a bias
        norm_eps: float | None = None  # ε of RMS norms of r, B and C, as in FalconMamba; None: there are none
        dt_min: float = 1e-3  # Δ starts log-uniform in [dt_min, dt_max]
        dt_max: float = 1e-1  # see dt_min

        def __post_init__(self) -> None:
            find(self.rule, S6.taps)

    def __init__(self, d_model: int, config: Config) -> None:
        super().__init__(d_model)
        self.config, self.rule = config, find(config.rule, S6.taps)
        inner, n = config.expand * d_model, config.d_state
        self.dt_rank = config.dt_rank or math.ceil(d_model / 16)
        planes = 2 if config.complex else 1
        self.state_shape = (inner, 2, n) if config.complex else (inner, n)
        self.in_proj = Linear(d_model, 2 * inner, bias=config.bias)
        self.conv1d = nn.Conv1d(inner, inner, config.d_conv, groups=inner, bias=config.conv_bias)
        self.x_proj = Linear(inner, self.dt_rank + 2 * planes * n, bias=False)
        self.dt_proj = Linear(self.dt_rank, inner)
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        self.dt_proj.bias = nn.Parameter(inverse_softplus_steps(inner, config.dt_min, config.dt_max))
        start = torch.full((n,), 0.5) if config.complex else torch.arange(1.0, n + 1)
        self.A_log = nn.Parameter(torch.log(start).repeat(inner, 1))
        modes = (math.pi * torch.arange(n)).repeat(inner, 1)
        self.A_imag = nn.Parameter(modes) if config.complex else None
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = Linear(inner, d_model, bias=config.bias)

    @constant
    def eigenvalues(self) -> Tensor:
        """A (D, N), or planar (D, 2, N)."""
        re = -torch.exp(self.A_log.to(state_dtype(self.A_log.dtype)))
        return re if self.A_imag is None else torch.stack((re, self.A_imag.to(re.dtype)), -2)

    def init_state(self, batch: int) -> Carried:
        inner, *number = self.state_shape
        kept = self._zeros(batch, self.config.d_conv - 1, inner), self._zeros(batch, *self.state_shape)
        if not self.two_taps:
            return S6State(*kept)
        return TappedS6State(*kept, self._zeros(batch, inner), self._zeros(batch, math.prod(number)))

    def run(self, x: Tensor, state: Carried | None, rows: Rows) -> tuple[Tensor, Carried]:
        state = self.init_state(x.shape[0]) if state is None else state
        u, z = self.in_proj(x).chunk(2, -1)
        u, conv = convolve(self.conv1d, u, state.conv, rows, silu=True)
        r, B, C = self.select(u)
        shape = (1, *self.state_shape[1:])
        logits, bias = without_bias(self.dt_proj, r)  # which is added in the precision of a state
        C = torch.unflatten(2 * C if self.config.complex else C, -1, shape)
        options = {"bias": bias, "z": z, **rows._asdict()}
        y, h = self.scan(u, logits, torch.unflatten(B, -1, shape), C, h0=state.h, **options)
        if not self.two_taps:
            return self.out_proj(y), S6State(conv, h)
        given = tuple(zip((u, B), state[2:], strict=True))  # with what each was at the step before the first
        last = (latest(w, before, rows.lengths) for w, before in given)
        u, B = (earlier(w, before, rows.reset) for w, before in given)
        by = {"rule": self.rule.apart[1], "softplus": True, **options}
        late, of_late = selective_scan(u, logits, self.eigenvalues, torch.unflatten(B, -1, shape), C, **by)
        return self.out_proj(y + late), TappedS6State(conv, h + of_late, *last)

    def step(self, x: Tensor, state: Carried, dt: Tensor | None = None) -> tuple[Tensor, Carried]:
        if self.two_taps:  # for which there is no kernel
            return super().step(x, state, dt)
        u, z = self.in_proj(x).chunk(2, -1)
        u, conv = convolve(self.conv1d, u.unsqueeze(1), state.conv, silu=True)
        u = u.squeeze(1)
        r, B, C = self.select(u)
        shape = (1, 2 if self.config.complex else 1, self.config.d_state)
        B, C = torch.unflatten(B, -1, shape), torch.unflatten(C, -1, shape)
        C = 2 * C if self.config.complex else C
        h = state.h if self.config.complex else state.h.unsqueeze(-2)
        y, h = self.advance(u, self.dt_proj(r), B, C, h, dt, z)
        return self.out_proj(y), S6State(conv, h if self.config.complex else h.squeeze(-2))

    def select(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """r (…, dt_rank), B and C (…, planes·N) of the input of the recurrence."""
        size, eps = math.prod(self.state_shape[1:]), self.config.norm_eps
        r, B, C = self.x_proj(u).split((self.dt_rank, size, size), -1)
        if eps is None:
            return r, B, C
        return (
            F.rms_norm(r, r.shape[-1:], eps=eps),
            F.rms_norm(B, B.shape[-1:], eps=eps),
            F.rms_norm(C, C.shape[-1:], eps=eps),
        )

    def advance(
        self, u: Tensor, logits: Tensor, B: Tensor, C: Tensor, h: Tensor, dt: Tensor | None, z: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One step of the recurrence and the gate: u, logits of Δ, z (B, D), B and C (B, 1, P, N)."""
        made_by = {"rule": self.rule, "dt": dt, "step": logits[..., None], "softplus": True}
        return diagonal_step(u, h, self._planar(), B, C, self.D, gate=z, **made_by, checked=False)

    def _planar(self) -> Tensor:
        """The eigenvalues (D, P, N)."""
        A = self.eigenvalues
        return A if self.config.complex else A.unsqueeze(-2)

    def scan(self, u: Tensor, logits: Tensor, B: Tensor, C: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """The recurrence and the gate, on all steps."""
        A = self.eigenvalues
        return selective_scan(u, logits, A, B, C, self.D, rule=self.rule.apart[0], softplus=True, **options)

    @property
    def n_states(self) -> str:
        return f"{self.A_log.numel()} {'complex' if self.config.complex else 'real'}"


def inverse_softplus_steps(size: int, low: float, high: float) -> Tensor:
    """Biases whose softplus is log-uniform in [low, high]."""
    steps = torch.exp(torch.empty(size).uniform_(math.log(low), math.log(high)))
    return steps + torch.log(-torch.expm1(-steps))


def definition(layer: S6, x: Tensor, dt: Tensor | None = None) -> Tensor:
    """h[t] = ā∘h[t − 1] + gain∘B u[t] with Δ, B and C made of u: algorithm 2 of the paper in the block of its
    figure 3, by the layer's discretization.
    """
    return defined_block(
        layer, x, lambda A, delta, driven: diagonal_states(layer.config.rule, A, delta, driven, dt)
    )


def defined_block(layer: S6, x: Tensor, states: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """The block of figure 3 around h = states(A, Δ, B u).

    A is (D, N), Δ (B, T, D, 1), and h and B u are (B, T, D, N).
    """
    (inner, n), is_complex, eps = layer.A_log.shape, layer.A_imag is not None, layer.config.norm_eps
    u, z = affine(layer.in_proj, x).split(inner, -1)
    u = short_convolution(layer.conv1d, u)
    u = u * torch.sigmoid(u)
    selected = affine(layer.x_proj, u).split([layer.dt_rank, *[n * (1 + is_complex)] * 2], -1)
    if eps is not None:
        selected = [w / torch.sqrt(w.square().mean(-1, keepdim=True) + eps) for w in selected]
    r, B, C = selected
    A = -torch.exp(layer.A_log)
    if layer.A_imag is not None:
        A = torch.complex(A, layer.A_imag)
        B, C = (torch.complex(*w.chunk(2, -1)) for w in (B, C))
    delta = softplus(affine(layer.dt_proj, r))[..., None]
    h = states(A, delta, B[:, :, None] * u[..., None])
    y = (C[:, :, None] * h).sum(-1)
    y = (2 * y.real if is_complex else y) + layer.D * u
    return affine(layer.out_proj, y * z * torch.sigmoid(z))
