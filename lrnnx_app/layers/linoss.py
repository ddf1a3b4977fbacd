"""LinOSS: forced harmonic oscillators as a state space (Rusch & Rus 2024, arXiv 2410.03943)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrnnx_app.errors import one_of
from lrnnx_app.layers._base import DiagonalLayer, drive, readout_matrix, real_readout, wide
from lrnnx_app.layers._coefficients import Coefficients, Given
from lrnnx_app.layers._constants import constant
from lrnnx_app.ops import planar
from lrnnx_app.ops._blocked import cast

SLOWEST = 1e-6  # least A: at 0 an oscillator has one eigenvector only
FASTEST = 3.96  # largest Δ²A in imex: from 4 on an oscillator grows


class LinOSS(DiagonalLayer):
    """y'' = −A∘y + B u with velocity z = y', output C y + D∘u; A = ReLU(Â) and Δ = σ(steps) per oscillator.

    im takes both z and y implicitly and loses energy, imex takes y explicitly and keeps it. The transition of
    (z, y) has a conjugate pair of eigenvalues λ. With the left eigenvector (1, q) of one of them, h = z + q·y
    is a diagonal recurrence with gain λΔ, and y = Im h / Im q:

    im    λ = 1/(1 − iΔ√A)    q = i√A
    imex  λ = 1 + qΔ          q = −ΔA/2 + i√(A − Δ²A²/4)

    Elapsed time multiplies Δ. q of imex depends on Δ, so that imex is for evenly sampled input.
    """

    recurrent = ("A", "steps")
    paper = "Rusch & Rus 2024, arXiv 2410.03943"
    cost = "N·D"
    examples = ({"d_state": 4}, {"d_state": 4, "rule": "imex"})

    @dataclass
    class Config:
        d_state: int = 64  # oscillators N
        rule: str = "im"  # im (implicit) | imex (implicit and explicit): how time becomes discrete

        def __post_init__(self) -> None:
            one_of("rule", self.rule, LinOSS.rules())

    def __init__(self, d_model: int, config: Config) -> None:
        super().__init__(d_model)
        n = config.d_state
        self.scheme, self.state_shape = config.rule, (2, n)
        self.uses_dt = self.scheme == "im"
        self.A, self.steps = nn.Parameter(torch.rand(n)), nn.Parameter(torch.rand(n))
        self.B = nn.Parameter((2 * torch.rand(n, d_model) - 1) / math.sqrt(d_model))
        self.C = nn.Parameter((2 * torch.rand(d_model, n) - 1) / math.sqrt(n))
        self.D = nn.Parameter(torch.randn(d_model))

    @classmethod
    def rules(cls) -> tuple[str, ...]:
        return "im", "imex"

    def check_dt(self, dt: Tensor | None) -> None:
        if dt is not None and not self.uses_dt:
            raise ValueError("LinOSS by imex takes evenly sampled input: leave out dt, or choose rule im")

    @property
    def rule_name(self) -> str:
        return self.scheme

    @constant
    def oscillators(self) -> tuple[Tensor, Tensor]:
        """q (2, N), planar, and Δ (N,)."""
        A, steps = wide(self.A, self.steps)
        A, delta = A.clamp_min(SLOWEST), torch.sigmoid(steps)
        if self.scheme == "im":
            return torch.stack((torch.zeros_like(A), torch.sqrt(A))), delta
        half = torch.minimum(A, FASTEST / delta**2) * delta / 2
        return torch.stack((-half, torch.sqrt(2 * half / delta - half**2))), delta

    @constant
    def system(self) -> tuple[Tensor, Tensor]:
        """λ (2, N) and λΔB (2, N, d_model) of evenly sampled input."""
        a, gain = self._discrete(*self.oscillators)
        return a, gain[..., None] * next(wide(self.B))

    def _discrete(self, q: Tensor, span: Tensor) -> tuple[Tensor, Tensor]:
        """λ and λΔδ, planar, from q (2, N) and Δδ (…, N)."""
        span = span.unsqueeze(-2)
        if self.scheme == "imex":
            a = planar.one(q) + q * span
        else:
            lower = planar.one(q) - q * span
            a = planar.div(planar.one(lower).expand_as(lower), lower)
        return a, a * span

    def coefficients(self, x: Tensor, dt: Tensor | None) -> tuple[Coefficients, Tensor]:
        if dt is None:
            a, B = self.system
            return Given(a), drive(x, B)
        q, delta = self.oscillators
        a, gain = self._discrete(q, delta * dt[..., None])
        return Given(a), gain * (x @ self.B.T)[..., None, :]

    def readout(self, h: Tensor, x: Tensor) -> Tensor:
        return real_readout(cast(h, x.dtype), self.matrix, self.D, x)

    @constant
    def matrix(self) -> Tensor:
        """The real (d_model, 2N) that takes h to C y."""
        q, _ = self.oscillators
        C = cast(next(wide(self.C)) / q[1], self.C.dtype)
        return readout_matrix(torch.stack((torch.zeros_like(C), -C)))


def definition(layer: LinOSS, x: Tensor, dt: Tensor | None = None) -> Tensor:
    """z[t] = z[t − 1] + Δ(−A y + B u[t]), y[t] = y[t − 1] + Δ z[t], output C y[t] + D u[t]: section 2.

    y on the right is y[t] in im, and y[t − 1] in imex.
    """
    A, delta = layer.A.clamp_min(1e-6), torch.sigmoid(layer.steps)
    if layer.scheme == "imex":
        A = torch.minimum(A, 3.96 / delta**2)
    z, y, outputs = torch.zeros_like(A), torch.zeros_like(A), []
    for t in range(x.shape[1]):
        step = delta if dt is None else delta * dt[:, t, None]
        force = x[:, t] @ layer.B.T
        if layer.scheme == "im":  # both equations solved for z[t]
            z = (z - step * A * y + step * force) / (1 + step**2 * A)
        else:
            z = z + step * (force - A * y)
        y = y + step * z
        outputs.append(y @ layer.C.T + layer.D * x[:, t])
    return torch.stack(outputs, 1)
