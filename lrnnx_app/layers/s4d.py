"""S4D: the diagonal structured state space (Gu et al. 2022, arXiv 2206.11893)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrnnx_app.errors import RecipeError, one_of
from lrnnx_app.layers._bank import PATHS, BankLayer
from lrnnx_app.layers._base import wide
from lrnnx_app.layers._constants import constant
from lrnnx_app.layers._definition import diagonal_states, number
from lrnnx_app.layers._hippo import legs_normal
from lrnnx_app.ops.rules import find


class S4D(BankLayer):
    """Per channel h = ā∘h + gain·u, y = 2 Re Σ C∘h + D·u, with A = −exp(log_A_real) + i·A_imag and B = 1."""

    recurrent = ("log_A_real", "A_imag", "log_dt")
    paper = "Gu et al. 2022, arXiv 2206.11893"
    taps = 2
    cost = "n·D"
    examples = (
        {"d_state": 4, "path": "chunk"},
        {"d_state": 4, "path": "scan"},
        {"d_state": 4, "path": "chunk", "rule": "bilinear", "init": "legs"},
    )

    @dataclass
    class Config:
        d_state: int = 64  # N per channel; one of each conjugate pair is kept
        init: str = "lin"  # lin | inv | legs: how A starts
        rule: str = "zoh"  # discretization, any name that `lrnnx layers` lists
        dt_min: float = 1e-3  # Δ starts log-uniform in [dt_min, dt_max]
        dt_max: float = 1e-1  # see dt_min
        path: str = "auto"  # auto | scan | chunk: how a whole sequence is computed

        def __post_init__(self) -> None:
            find(self.rule, S4D.taps)

    def __init__(self, d_model: int, config: Config) -> None:
        super().__init__(d_model)
        self.groups, self.modes = d_model, config.d_state // 2
        self.rule, self.path = find(config.rule, S4D.taps), one_of("path", config.path, PATHS)
        lam = initial_modes(config.init, config.d_state).float()
        self.log_A_real = nn.Parameter(torch.log(-lam[0]).repeat(d_model, 1))
        self.A_imag = nn.Parameter(lam[1].repeat(d_model, 1))
        low, high = math.log(config.dt_min), math.log(config.dt_max)
        self.log_dt = nn.Parameter(torch.empty(d_model).uniform_(low, high))
        self.C = nn.Parameter(torch.randn(2, d_model, self.modes) * math.sqrt(0.5))
        self.D = nn.Parameter(torch.randn(d_model))

    @constant
    def system(self) -> tuple[Tensor, Tensor, Tensor]:
        log_A_real, A_imag, log_dt, C = wide(self.log_A_real, self.A_imag, self.log_dt, self.C)
        lam = torch.stack((-torch.exp(log_A_real), A_imag)).flatten(1)
        steps = torch.exp(log_dt)[:, None].expand(-1, self.modes)
        return lam, steps.flatten(), 2 * C.flatten(1)

    def direct(self) -> Tensor:
        return self.D


def initial_modes(init: str, n: int) -> Tensor:
    """The n // 2 eigenvalues of an initialization with positive imaginary part, (2, n // 2) in float64.

    Raises:
        RecipeError: there is no such initialization, or n is odd.
    """
    if n % 2:
        raise RecipeError(f"d_state: must be even (conjugate pairs), not {n}")
    k = torch.arange(n // 2, dtype=torch.float64)
    imag = {
        "lin": math.pi * k,
        "inv": n / math.pi * (n / (2 * k + 1) - 1),
        "legs": legs_normal(n)[0][1, n - n // 2 :],
    }
    return torch.stack((torch.full_like(k, -0.5), imag[one_of("init", init, imag)]))


def definition(layer: S4D, x: Tensor, dt: Tensor | None = None) -> Tensor:
    """h[t] = ā∘h[t − 1] + b̄ u[t], y[t] = 2 Re Σ_n C_n h_n[t] + D u[t] in each channel, with B = 1."""
    lam = torch.complex(-torch.exp(layer.log_A_real), layer.A_imag)
    step = torch.exp(layer.log_dt)[:, None]
    h = diagonal_states(layer.rule_name, lam, step, x[..., None], dt)
    return 2 * (number(layer.C) * h).sum(-1).real + layer.D * x
