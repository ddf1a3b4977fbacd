"""S5: one multi-input multi-output diagonal state space (Smith et al. 2023, arXiv 2208.04933)."""

import math
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from lrnnx_app.errors import RecipeError
from lrnnx_app.layers._base import (
    Carried,
    DiagonalLayer,
    drive,
    readout_matrix,
    real_readout,
    scaled,
    wide,
)
from lrnnx_app.layers._bidirectional import refuse_stream
from lrnnx_app.layers._coefficients import Coefficients, Discretized, Given
from lrnnx_app.layers._constants import constant
from lrnnx_app.layers._definition import diagonal_states, number
from lrnnx_app.layers._hippo import legs_normal
from lrnnx_app.layers._taps import Tapped
from lrnnx_app.ops.discretized_scan import evenly
from lrnnx_app.ops.rules import find
from lrnnx_app.spec import Rows


class S5(DiagonalLayer):
    """h = ā∘h + gain∘(B u), y = Re(C h) (2·Re with conjugate symmetry) + D∘u.

    λ starts as the eigenvalues of `blocks` HiPPO-N matrices side by side; B and C start in their
    eigenbasis. With conjugate symmetry, half of the d_state states are kept. In both directions as in the
    paper, a reverse scan runs over the same driven input, and C has a second block of columns for it.
    """

    recurrent = ("Lambda_re", "Lambda_im", "B", "log_step")
    paper = "Smith et al. 2023, arXiv 2208.04933"
    taps = 2
    cost = "N·D"
    examples = (
        {"d_state": 4},
        {"d_state": 4, "rule": "bilinear", "blocks": 2, "step_rescale": 2.0},
        {"d_state": 4, "conj_sym": False, "rule": "dirac"},
        {"d_state": 4, "both_directions": True},
        {"d_state": 4, "both_directions": True, "rule": "trapezoid"},
    )

    @dataclass
    class Config:
        d_state: int = 64  # P, states before conjugate symmetry halves them
        blocks: int = 1  # J, blocks of A at the start, a divisor of d_state
        rule: str = "zoh"  # discretization, any name that `lrnnx layers` lists
        dt_min: float = 1e-3  # the learned step starts log-uniform in [dt_min, dt_max]
        dt_max: float = 1e-1  # see dt_min
        conj_sym: bool = True  # keep one state of each conjugate pair
        clip_eigs: bool = False  # hold Re λ at or below −1e-4
        step_rescale: float = 1.0  # multiplies the step: 2.0 runs a 16 kHz model on 8 kHz input
        both_directions: bool = False  # the paper's bidirectional form: one B, C with twice the columns

        def __post_init__(self) -> None:
            find(self.rule, S5.taps)

    def __init__(self, d_model: int, config: Config) -> None:
        super().__init__(d_model)
        self.config = config
        self.rule, self.causal = find(config.rule, S5.taps), not config.both_directions
        size, odd = divmod(config.d_state, config.blocks)
        if odd or (config.conj_sym and size % 2):
            kind = "an even number of" if config.conj_sym else "equally many"
            raise RecipeError(f"d_state: {config.d_state} does not give {config.blocks} blocks {kind} states")
        lam, vectors = legs_normal(size)
        if config.conj_sym:  # the half with positive imaginary part
            lam, vectors = lam[:, size // 2 :], vectors[..., size // 2 :]
        n = lam.shape[1] * config.blocks
        self.state_shape = (2, n)
        self.Lambda_re = nn.Parameter(lam[0].repeat(config.blocks).float())
        self.Lambda_im = nn.Parameter(lam[1].repeat(config.blocks).float())
        self.log_step = nn.Parameter(
            torch.empty(n).uniform_(math.log(config.dt_min), math.log(config.dt_max))
        )
        V = torch.complex(*torch.stack([torch.block_diag(*[v] * config.blocks) for v in vectors]))
        B = torch.randn(config.d_state, d_model, dtype=torch.float64) / math.sqrt(d_model)
        ways = 2 if config.both_directions else 1
        C = torch.randn(2, d_model, ways * config.d_state, dtype=torch.float64)
        C = C / math.sqrt(2 * ways * config.d_state)
        self.B = nn.Parameter(_planes(V.mH @ B.to(V.dtype)))
        self.C = nn.Parameter(_planes(torch.complex(*C).unflatten(-1, (ways, -1)) @ V).flatten(-2))
        self.D = nn.Parameter(torch.randn(d_model))

    def eigenvalues(self) -> Tensor:
        """λ (2, N), planar."""
        re, im = wide(self.Lambda_re, self.Lambda_im)
        return torch.stack((re.clamp_max(-1e-4) if self.config.clip_eigs else re, im))

    def coefficients(self, x: Tensor, dt: Tensor | None) -> tuple[Coefficients, Tensor]:
        if self.two_taps:
            lam, delta, B = self.system
            made = Tapped(lam, delta, dt, self.rule)
        else:
            z, B = self.even if dt is None else self.timed
            made = Given(z) if dt is None else Discretized(z, dt, self.rule)
        return made if self.causal else BothWays(made, dt), drive(x, B)

    @constant
    def even(self) -> tuple[Tensor, Tensor]:
        """ā (2, N) and gain∘B (2, N, H) of evenly sampled rows."""
        lam, delta, B = self.system
        a, gain = evenly(self.rule, lam, delta)
        return a, scaled(B, gain.expand_as(lam))

    @constant
    def timed(self) -> tuple[Tensor, Tensor]:
        """λΔ (2, N), and B (2, N, H) with the part of the gain that is free of elapsed time."""
        lam, delta, B = self.system
        return lam * delta, scaled(B, self.rule.constant(lam, delta).expand_as(lam))

    @constant
    def system(self) -> tuple[Tensor, Tensor, Tensor]:
        """λ (2, N), Δ (N,) and B (2, N, H)."""
        log_step, B = wide(self.log_step, self.B)
        return self.eigenvalues(), torch.exp(log_step) * self.config.step_rescale, B

    def readout(self, h: Tensor, x: Tensor) -> Tensor:
        return real_readout(h, self.matrix, self.D, x)

    @constant
    def matrix(self) -> Tensor:
        return readout_matrix((2 if self.config.conj_sym else 1) * self.C)

    def init_state(self, batch: int) -> Carried:
        if not self.causal:
            refuse_stream("S5")
        return super().init_state(batch)


class BothWays(NamedTuple):
    """The states of a scan from each end of a sequence, side by side; the last state is the first scan's."""

    ahead: Given | Discretized | Tapped
    dt: Tensor | None

    def scan(
        self, b: Tensor, h0: Tensor | None, *, lengths: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        if h0 is not None:
            refuse_stream("S5")
        back = self.ahead
        if self.dt is not None:
            rows = Rows(self.dt, lengths, reset)
            mirror = rows.mirror(self.dt)
            gaps = rows.mirrored(mirror).dt
            assert gaps is not None
            back = back._replace(dt=gaps.gather(1, mirror))  # each gap where its sample stands
        h, *last = self.ahead.scan(b, None, lengths=lengths, reset=reset)
        after, *_ = back.scan(b, None, lengths=lengths, reset=reset, reverse=True)
        return torch.cat((h, after), -1), *last

    def step(self, b: Tensor, h: Tensor) -> NoReturn:
        refuse_stream("S5")


def _planes(z: Tensor) -> Tensor:
    return torch.stack((z.real, z.imag)).float()


def definition(layer: S5, x: Tensor, dt: Tensor | None = None) -> Tensor:
    """x_k = Λ̄ x_{k−1} + B̄ u_k, y_k = Re(C̃ x_k) + D u_k: section 3 of the paper.

    In both directions a second pass runs from the last sample to the first, over the same gaps of time, and C̃
    reads both states. The gap before the first sample opens the second pass as well.
    """
    config = layer.config
    re = layer.Lambda_re.clamp_max(-1e-4) if config.clip_eigs else layer.Lambda_re
    lam, B, C = torch.complex(re, layer.Lambda_im), number(layer.B), number(layer.C)
    step, driven = config.step_rescale * torch.exp(layer.log_step), x.to(B.dtype) @ B.T
    h = diagonal_states(config.rule, lam, step, driven, dt)
    if config.both_directions:
        gaps = None if dt is None else torch.cat((dt[:, :1], dt[:, 1:].flip(1)), 1)
        back = diagonal_states(config.rule, lam, step, driven.flip(1), gaps).flip(1)
        h = torch.cat((h, back), -1)
    return (2 if config.conj_sym else 1) * (h @ C.T).real + layer.D * x
