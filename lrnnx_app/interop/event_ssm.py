"""`event-ssm` (flax, Efficient-Scalable-Machine-Learning/event-ssm): its S5SSM module, with data time."""

from lrnnx_app.errors import one_of
from lrnnx_app.interop._params import Converted, Params
from lrnnx_app.interop.s5 import system
from lrnnx_app.layers.event_ssm import EventSSM

KEY = "Lambda_re"
RULES = {"zoh": "zoh", "dirac": "dirac", "async": "asynchronous"}


def convert(
    params: Params,
    discretization: str = "async",
    conj_sym: bool = True,
    clip_eigs: bool = False,
    step_rescale: float = 1.0,
    stride: int = 1,
) -> Converted:
    """Lambda_re, Lambda_im (P), B (P, H, 2), C (H, P, 2), D (H), log_step (P, 1).

    zoh and dirac multiply the learned step by the elapsed time, async only in the decay. A layer whose width
    changes or that pools (stride beyond 1) is refused.
    """
    if stride != 1:
        raise params.error(f"stride must be 1, not {stride}: the layer does not pool")
    state = system(params)
    config = EventSSM.Config(
        d_state=len(state["Lambda_re"]) * (2 if conj_sym else 1),
        rule=RULES[one_of("discretization", discretization, RULES)],
        conj_sym=conj_sym,
        clip_eigs=clip_eigs,
        step_rescale=step_rescale,
    )
    return Converted("event_ssm", len(state["D"]), config, state)
