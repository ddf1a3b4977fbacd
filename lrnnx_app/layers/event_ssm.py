"""Event-SSM: S5 driven by single events (Schöne et al. 2024, arXiv 2404.18508)."""

from dataclasses import dataclass

from lrnnx_app.layers.s5 import S5


class EventSSM(S5):
    """S5 with the asynchronous rule: h[k] = exp(λΔ·δ[k])∘h[k−1] + (exp(λΔ) − 1)/λ ∘ (B u[k]).

    Event k is paired with δ[k], the time since event k − 1 (not the time to event k + 1): the state decays
    over the silence before an event, then takes the event in with a gain that does not depend on it. dt[:, 0]
    is the time since the state that was handed in; it is without effect on a fresh state. δ is in the unit
    that Δ was learned in, milliseconds in the paper; `dt=None` is one event per unit.
    """

    paper = "Schöne et al. 2024, arXiv 2404.18508"

    @dataclass
    class Config(S5.Config):
        rule: str = "asynchronous"  # as S5's; asynchronous keeps elapsed time out of an event's gain
        clip_eigs: bool = True  # hold Re λ at or below −1e-4: gaps are unbounded, one past 0 explodes
