"""`s5` (flax, lindermanlab/S5): the S5SSM module."""

import torch
from torch import Tensor

from lrnnx_app.errors import one_of
from lrnnx_app.interop._params import Converted, Params
from lrnnx_app.layers.s5 import S5

KEY = "Lambda_re"
RULES = {"zoh": "zoh", "bilinear": "bilinear", "dirac": "dirac"}


def convert(
    params: Params,
    discretization: str = "zoh",
    bidirectional: bool = False,
    conj_sym: bool = True,
    clip_eigs: bool = False,
    step_rescale: float = 1.0,
) -> Converted:
    """Lambda_re, Lambda_im (P), B (P, H, 2), C (H, P, 2), D (H), log_step (P, 1).

    If bidirectional, C1 and C2 in place of C; or, where the source draws C as complex_normal, one C
    (H, 2P, 2), the columns of the forward scan first. With conjugate symmetry P counts one of each pair.
    """
    state = system(params, bidirectional)
    config = S5.Config(
        d_state=len(state["Lambda_re"]) * (2 if conj_sym else 1),
        rule=RULES[one_of("discretization", discretization, RULES)],
        conj_sym=conj_sym,
        clip_eigs=clip_eigs,
        step_rescale=step_rescale,
        both_directions=bidirectional,
    )
    return Converted("s5", len(state["D"]), config, state)


def system(params: Params, bidirectional: bool = False) -> dict[str, Tensor]:
    """The state_dict of S5."""
    state = {"Lambda_re": params.take("Lambda_re", "P"), "Lambda_im": params.take("Lambda_im", "P")}
    if not bidirectional:
        C = params.take("C", "H P 2")
    elif "C" in params:
        C = params.take("C", "H 2P 2")
    else:
        C = torch.cat((params.take("C1", "H P 2"), params.take("C2", "H P 2")), 1)
    return state | {
        "B": params.take("B", "P H 2").movedim(-1, 0),
        "C": C.movedim(-1, 0),
        "D": params.take("D", "H"),
        "log_step": params.take("log_step", "P 1")[:, 0],
    }
