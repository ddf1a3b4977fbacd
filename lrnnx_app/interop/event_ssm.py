"""`event-ssm` (flax, Efficient-Scalable-Machine-Learning/event-ssm): its S5SSM module, with data time."""

from lrnnx_app.errors import one_of
from lrnnx_app.interop._params import Converted, Params
from lrnnx_app.interop.s5 import system
from lrnnx_app.layers.event_ssm import EventSSM

RULES = {"zoh": "zoh", "dirac": "dirac", "async": "asynchronous"}


def convert(
    params: Params,
    discretization: str = "async",
    conj_sym: bool = True,
    clip_eigs: bool = False,
    step_rescale: float = 1.0,
) -> Converted:
    """Lambda_re, Lambda_im (P), B (P, H, 2), C (H, P, 2), D (H), log_step (P, 1).

    zoh and dirac multiply the learned step by the elapsed time, async only in the decay.
    """
    state = system(params)
    config = EventSSM.Config(
        d_state=len(state["Lambda_re"]) * (2 if conj_sym else 1),
        rule=RULES[one_of("discretization", discretization, RULES)],
        conj_sym=conj_sym,
        clip_eigs=clip_eigs,
        step_rescale=step_rescale,
    )
    return Converted("event_ssm", len(state["D"]), config, state)
