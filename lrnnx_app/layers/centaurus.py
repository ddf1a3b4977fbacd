"""Centaurus: state-space layers as tensor networks (Pei 2025, openreview PkpNRmBZ32).

The layer of aTENNuate (Interspeech 2025) is its pointwise mode.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrnnx_app.errors import RecipeError, one_of
from lrnnx_app.layers._bank import PATHS, BankLayer, backwards
from lrnnx_app.layers._base import Carried, DiagonalState, wide
from lrnnx_app.layers._constants import constant
from lrnnx_app.layers._definition import diagonal_states
from lrnnx_app.ops import planar
from lrnnx_app.ops._blocked import cut
from lrnnx_app.ops.bank_scan import by_step, modes_last
from lrnnx_app.ops.fft_conv import fft_conv
from lrnnx_app.ops.linear_scan import state_dtype
from lrnnx_app.ops.row_linear import row_linear
from lrnnx_app.ops.rules import OWN

MODES = ("dws", "pointwise", "neck", "full")
KERNEL_LIMIT = 2**26  # elements of a mixing kernel (O, I, T) above which it is not considered
Powers = tuple[Tensor, Tensor]  # of `factors`


class Centaurus(BankLayer):
    """Real weights around banks of `d_state` modes, whose kernels are k[l] = Re exp(ΔA l)·Δ.

    dws        K[c] = Σ_n E[c, n] k[c, n]                one bank per channel
    pointwise  K[o, i] = Σ_s C[o, s] k[s] B[s, i]        `repeats` banks over all channels
    neck       K[o, i] = Σ_r C[o, r] B[r, i] Σ_n E[r, n] k[r, n]   one bank per channel of a bottleneck
    full       K[o, i] = Σ_n E[o, i, n] k[o, i, n]       one bank per pair of channels, Δ by o and n alone

    A = −softplus(A[…, 0]) + i·A[…, 1] starts at −½ + iπn in each bank; Δ is geometric over the banks, in
    full over the outputs.
    A training pass takes the contraction that is cheapest at its sizes: states first (`scan`), the kernels
    of the groups first (`chunk`), or all of K first (`mix`; pointwise and full), convolved by FFT.
    """

    recurrent = ("A", "log_dt")
    rule = OWN["euler"]
    paper = "Pei 2025, openreview PkpNRmBZ32"
    cost = "N·D"
    examples = (
        {"d_state": 4, "mode": "dws", "path": "chunk"},
        {"d_state": 4, "mode": "dws", "path": "scan"},
        {"d_state": 4, "repeats": 2, "mode": "pointwise", "path": "mix"},
        {"d_state": 4, "repeats": 2, "mode": "pointwise", "path": "scan"},
        {"d_state": 4, "repeats": 2, "mode": "neck", "path": "chunk"},
        {"d_state": 4, "mode": "full", "path": "mix"},
        {"d_state": 4, "mode": "full", "path": "chunk"},
    )

    @dataclass
    class Config:
        mode: str = "pointwise"  # dws | pointwise | neck | full
        d_state: int = 16  # complex modes of a bank
        d_output: int | None = None  # channels of y, not in dws; None: d_model, as every model needs
        repeats: int = 16  # banks of pointwise and neck, each with its own timescale
        dt_min: float = 1e-3  # Δ starts log-uniform in [dt_min, dt_max]
        dt_max: float = 1e-1  # see dt_min
        path: str = "auto"  # auto | scan | chunk | mix: how a whole sequence is computed

    def __init__(self, d_model: int, config: Config) -> None:
        super().__init__(d_model)
        self.mode, n = one_of("mode", config.mode, MODES), config.d_state
        mixes, self.dense = config.mode in ("pointwise", "full"), config.mode == "pointwise"
        self.path = one_of("path", config.path, (*PATHS, "mix") if mixes else PATHS)
        self.d_output = config.d_output or d_model
        timescales = {"dws": d_model, "full": self.d_output}.get(config.mode, config.repeats)
        banks = timescales * d_model if config.mode == "full" else timescales
        if config.mode == "dws" and self.d_output != d_model:
            raise RecipeError(f"d_output: mode dws keeps its channels; leave it out, not {config.d_output}")
        self.groups, self.modes = (banks * n, 1) if self.dense else (banks, n)
        steps = torch.linspace(math.log(config.dt_min), math.log(config.dt_max), timescales)
        steps = steps.repeat_interleave(n)
        half = math.log(math.expm1(0.5))  # softplus of it is ½
        modes = torch.stack((torch.full((n,), half), math.pi * torch.arange(n)), -1)
        modes = modes.repeat(banks, 1)
        if config.mode == "full":
            shape = (self.d_output, d_model, n)
            self.log_dt, self.A = nn.Parameter(steps.view(-1, n)), nn.Parameter(modes.view(*shape, 2))
            self.E = nn.Parameter(torch.randn(shape) / math.sqrt(d_model * n))
        else:
            self.log_dt, self.A = nn.Parameter(steps), nn.Parameter(modes)
        if config.mode in ("pointwise", "neck"):
            self.B = nn.Parameter(torch.randn(self.groups, d_model) / math.sqrt(d_model))
            self.C = nn.Parameter(torch.randn(self.d_output, self.groups) / math.sqrt(self.groups))
        if config.mode in ("dws", "neck"):
            self.E = nn.Parameter(torch.randn(banks, n) / math.sqrt(n))

    @constant
    def system(self) -> tuple[Tensor, Tensor, Tensor]:
        A, log_dt = wide(self.A, self.log_dt)
        lam = torch.stack((-nn.functional.softplus(A[..., 0]), A[..., 1]))
        weight = torch.ones_like(log_dt) if self.dense else next(wide(self.E))
        step = torch.exp(log_dt)
        if self.mode == "full":  # the pairs of an input side by side
            lam, weight = lam.transpose(1, 2), weight.transpose(0, 1)
            step = step.expand_as(weight)
        weight = weight.flatten()
        return lam.flatten(1), step.flatten(), torch.stack((weight, torch.zeros_like(weight)))

    def inputs(self, x: Tensor) -> Tensor:
        if self.mode == "full":
            return x[..., None].expand(-1, -1, -1, self.d_output).flatten(2)
        return x if self.mode == "dws" else row_linear(x, self.B, checked=False)

    def rows(self, x: Tensor) -> Tensor:
        if self.mode == "dws":
            return x
        if self.mode == "full":
            pairs = x.permute(2, 0, 1)[:, None].expand(-1, self.d_output, -1, -1)
            return pairs.flatten(0, 1).permute(1, 2, 0)
        return (self.B @ x.flatten(0, 1).mT).unflatten(1, x.shape[:2]).permute(1, 2, 0)

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        if self.mode == "dws":
            return by_step(w)
        if self.mode == "full":
            return w.unflatten(-1, (-1, self.d_output)).sum(-2)
        return row_linear(w, self.C, checked=False)

    def choose(self, batch: int, time: int, device: str) -> str:
        path = super().choose(batch, time, device)
        mixed = self.mode == "full" and self.groups * time <= KERNEL_LIMIT  # as measured
        return "mix" if path == "chunk" and mixed else path

    def _convolve(
        self, x: Tensor, state: Carried | None, lengths: Tensor | None, path: str
    ) -> tuple[Tensor, Carried]:
        if path != "mix" or state is not None:
            return super()._convolve(x, state, lengths, path)
        driven = x if self.mode == "full" else self.inputs(x)
        with torch.autocast(x.device.type, enabled=False):
            log_a, gain, c = self.evenly()
            driven = driven.to(state_dtype(x.dtype))
            powers = factors(log_a, x.shape[1])
            y = fft_conv(x.to(driven.dtype), self._mixing_kernel(powers, gain, c, x.shape[1]))
            last = planar.mul(gain, absorb(driven, powers, lengths))
        return y.to(x.dtype), DiagonalState(last)

    def _mixing_kernel(self, powers: Powers, gain: Tensor, c: Tensor, time: int) -> Tensor:
        """K (O, I, time), with no (states, time) on the way."""
        if self.mode == "full":
            pairs = taps(planar.mul(c, gain), powers, time, self.groups)
            return pairs.unflatten(0, (-1, self.d_output)).transpose(0, 1)
        coarse, fine = powers
        B, C = wide(self.B, self.C)
        left = planar.conj(planar.mul(gain, coarse)) * C[:, None, None]
        right = fine[:, None] * B.T[None, :, None]
        products = left.flatten(-2).flatten(0, 1) @ right.flatten(-2).flatten(0, 1).T
        shape = (self.d_output, coarse.shape[0], fine.shape[0], self.d_model)
        return products.view(shape).permute(0, 3, 1, 2).flatten(2)[..., :time]

    def extra_repr(self) -> str:
        return f"mode={self.mode}, {super().extra_repr()}"


def taps(weight: Tensor, powers: Powers, time: int, groups: int) -> Tensor:
    """Re Σ_n weight·a^l for l < time, summed in each group: weight (2, S) to (groups, time)."""
    coarse, fine = powers
    left = modes_last(planar.conj(planar.mul(weight, coarse)), groups)
    return (left @ modes_last(fine, groups).mT).flatten(1)[:, :time]


def absorb(v: Tensor, powers: Powers, lengths: Tensor | None) -> Tensor:
    """Σ_s a^s·v[end − 1 − s] for every state of a group: v (B, T, groups) to (B, 2, S)."""
    batch, _, groups = v.shape
    coarse, fine = powers
    rows = cut(backwards(v, lengths), len(fine)).permute(3, 0, 1, 2).flatten(1, 2) @ modes_last(fine, groups)
    inner = rows.view(groups, batch, len(coarse), 2, -1).permute(1, 2, 3, 0, 4).flatten(-2)
    return planar.mul(coarse, inner).sum(1)


def factors(log_a: Tensor, time: int) -> Powers:
    """a^(c·q) (Q, 2, S) and a^r (c, 2, S), whose products are all the powers below `time`."""
    c = max(1, math.isqrt(time))
    count = torch.arange(-(-time // c), device=log_a.device, dtype=log_a.dtype)
    near = torch.arange(c, device=log_a.device, dtype=log_a.dtype)
    return planar.exp(log_a * (c * count)[:, None, None]), planar.exp(log_a * near[:, None, None])


def definition(layer: Centaurus, x: Tensor, dt: Tensor | None = None) -> Tensor:
    """Every mode as its network of tensors around h[t] = exp(ΔA δ)∘h[t − 1] + Δδ v[t].

    A bank carries states (B, T, …, n) of what drives it. The real weights E read the states; B stands in
    front of the banks and C behind them.
    """
    lam, step = (
        torch.complex(-nn.functional.softplus(layer.A[..., 0]), layer.A[..., 1]),
        torch.exp(layer.log_dt),
    )
    if layer.mode == "full":  # a bank for each output o and input i
        h = diagonal_states("euler", lam, step[:, None], x[:, :, None, :, None], dt)
        return torch.einsum("oin,btoin->bto", layer.E, h.real)
    if layer.mode == "pointwise":
        return diagonal_states("euler", lam, step, x @ layer.B.T, dt).real @ layer.C.T
    lam, step = lam.view_as(layer.E), step.view_as(layer.E)
    v = x if layer.mode == "dws" else x @ layer.B.T
    w = (layer.E * diagonal_states("euler", lam, step, v[..., None], dt).real).sum(-1)
    return w if layer.mode == "dws" else w @ layer.C.T
