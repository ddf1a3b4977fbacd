"""Event-SSM: S5 driven by single events (Schöne et al. 2024, arXiv 2404.18508)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lrnnx_app.layers import s5
from lrnnx_app.layers._definition import number
from lrnnx_app.layers.s5 import S5


class EventSSM(S5):
    """S5 with the asynchronous rule: h[k] = exp(λΔ·δ[k])∘h[k−1] + (exp(λΔ) − 1)/λ ∘ (B u[k]).

    Event k is paired with δ[k], the time since event k − 1 (not the time to event k + 1): the state decays
    over the silence before an event, then takes the event in with a gain that does not depend on it. dt[:, 0]
    is the time since the state that was handed in; it is without effect on a fresh state. δ is in the unit
    that Δ was learned in, milliseconds in the paper; `dt=None` is one event per unit.
    """

    paper = "Schöne et al. 2024, arXiv 2404.18508"
    examples = ({"d_state": 4},)

    @dataclass
    class Config(S5.Config):
        rule: str = "asynchronous"  # as S5's; asynchronous keeps elapsed time out of an event's gain
        clip_eigs: bool = True  # hold Re λ at or below −1e-4: gaps are unbounded, one past 0 explodes


def definition(layer: EventSSM, x: Tensor, dt: Tensor | None = None) -> Tensor:
    """x_k = exp(ΛΔ δ_k) x_{k−1} + Λ⁻¹(exp(ΛΔ) − I) B u_k, the paper's asynchronous discretization, one event
    after another. By another discretization or in both directions it is S5.
    """
    if layer.config.rule != "asynchronous" or layer.config.both_directions:
        return s5.definition(layer, x, dt)
    re = layer.Lambda_re.clamp_max(-1e-4) if layer.config.clip_eigs else layer.Lambda_re
    lam, B, C = torch.complex(re, layer.Lambda_im), number(layer.B), number(layer.C)
    lam_step = lam * layer.config.step_rescale * torch.exp(layer.log_step)
    h, ys = torch.zeros_like(lam), []
    for k in range(x.shape[1]):
        silence = 1.0 if dt is None else dt[:, k, None]
        h = torch.exp(lam_step * silence) * h + (torch.exp(lam_step) - 1) / lam * (x[:, k].to(B.dtype) @ B.T)
        ys.append((2 if layer.config.conj_sym else 1) * (h @ C.T).real + layer.D * x[:, k])
    return torch.stack(ys, 1)
