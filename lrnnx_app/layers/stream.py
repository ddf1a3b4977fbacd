"""STREAM: a selective state space for events, with their time in the decay (arXiv 2411.12603)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrnnx_app.errors import one_of
from lrnnx_app.layers._constants import constant
from lrnnx_app.layers._definition import softplus
from lrnnx_app.layers.s6 import S6, defined_block, inverse_softplus_steps
from lrnnx_app.ops._blocked import cast, state_dtype
from lrnnx_app.ops.selective_scan import selective_scan
from lrnnx_app.ops.step import diagonal_step


class Stream(S6):
    """The block of S6 with a = exp(A·δ·softplus(b)) and gain Δ(u)B: how far the state decays depends on
    elapsed time δ (1 if not given) and a learned rate b per channel alone, what enters on the input.
    """

    taps = 0
    recurrent = ("A_log", "A_imag", "D", "dt_proj.bias", "b")
    paper = "Schöne et al. 2024, arXiv 2411.12603"
    examples = ({"d_state": 4}, {"d_state": 4, "complex": True})

    @dataclass
    class Config(S6.Config):
        rule: str = "dirac"  # the only one: the gain is Δ(u), not of the decay's step

        def __post_init__(self) -> None:
            one_of("rule", self.rule, ("dirac",))

    def __init__(self, d_model: int, config: Config) -> None:
        super().__init__(d_model, config)
        self.b = nn.Parameter(inverse_softplus_steps(self.state_shape[0], config.dt_min, config.dt_max))

    @constant
    def rate(self) -> Tensor:
        """softplus(b), (D,)."""
        return F.softplus(cast(self.b, state_dtype(self.b.dtype)))

    def scan(self, u: Tensor, logits: Tensor, B: Tensor, C: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        A, z, bias = self.eigenvalues, options.pop("z"), options.pop("bias")
        logits = cast(logits, state_dtype(logits.dtype))
        logits = logits if bias is None else logits + bias
        rate = self.rate.expand_as(logits)
        driven = F.softplus(logits) * u
        y, h = selective_scan(driven, rate, A, B, C, rule=self.rule, **options)
        y = torch.addcmul(y, self.D, cast(u, y.dtype)) * F.silu(z)
        return cast(y, u.dtype), h

    def advance(
        self, u: Tensor, logits: Tensor, B: Tensor, C: Tensor, h: Tensor, dt: Tensor | None, z: Tensor
    ) -> tuple[Tensor, Tensor]:
        delta = F.softplus(cast(logits, h.dtype))[..., None, None]
        made_by = {"rule": self.rule, "dt": dt, "step": self.rate[:, None]}
        return diagonal_step(u, h, self._planar(), delta * B, C, self.D, gate=z, **made_by, checked=False)


def definition(layer: Stream, x: Tensor, dt: Tensor | None = None) -> Tensor:
    """h[t] = exp(A δ[t] softplus(b))∘h[t − 1] + Δ(u[t]) B u[t], in the block of S6."""

    def states(A: Tensor, delta: Tensor, driven: Tensor) -> Tensor:
        rate = softplus(layer.b)[:, None]
        h, all_of_them = torch.zeros_like(driven[:, 0]), []
        for t in range(driven.shape[1]):
            elapsed = 1.0 if dt is None else dt[:, t, None, None]
            h = torch.exp(A * elapsed * rate) * h + delta[:, t] * driven[:, t]
            all_of_them.append(h)
        return torch.stack(all_of_them, 1)

    return defined_block(layer, x, states)
