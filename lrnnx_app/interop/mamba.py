"""`mamba` (state-spaces/mamba and transformers): the Mamba block, S6 with its projections and convolution."""

from lrnnx_app.errors import UserError
from lrnnx_app.interop._params import Converted, Params
from lrnnx_app.layers.s6 import S6

SHAPES = {
    "in_proj.weight": "2D H",
    "conv1d.weight": "D 1 W",
    "x_proj.weight": "R+2N D",
    "dt_proj.weight": "D R",
    "dt_proj.bias": "D",
    "A_log": "D N",
    "D": "D",
    "out_proj.weight": "H D",
}
OPTIONAL = {"conv1d.bias": "D", "in_proj.bias": "2D", "out_proj.bias": "H"}


def convert(params: Params) -> Converted:
    """in_proj, conv1d, x_proj, dt_proj, out_proj (weight, and bias where there is one), A_log and D."""
    present = {name: shape for name, shape in OPTIONAL.items() if name in params}
    state = {name: params.take(name, shape) for name, shape in (SHAPES | present).items()}
    inner, d_model = state["D"].shape[0], state["in_proj.weight"].shape[1]
    if inner % d_model:
        raise UserError(f"{params.source}: {inner} channels are no multiple of width {d_model}")
    config = S6.Config(
        d_state=state["A_log"].shape[1],
        d_conv=state["conv1d.weight"].shape[2],
        expand=inner // d_model,
        dt_rank=state["dt_proj.weight"].shape[1],
        bias="in_proj.bias" in state,
        conv_bias="conv1d.bias" in state,
    )
    return Converted("s6", d_model, config, state)
