"""`mamba` (state-spaces/mamba and transformers): the Mamba block, S6 with its projections and convolution."""

from lrnnx_app.interop._params import Converted, Params
from lrnnx_app.layers.s6 import S6

KEY = "A_log"
MODEL_TYPE = "mamba"
MODULES = ("Mamba", "MambaMixer")
PARTS = ("act",)
OPTIONS = {"hidden_act": "activation"}
SHAPES = {
    "A_log": "D N",
    "D": "D",
    "dt_proj.weight": "D R",
    "dt_proj.bias": "D",
    "x_proj.weight": "R+2N D",
    "out_proj.weight": "H D",
    "in_proj.weight": "2D H",
    "conv1d.weight": "D 1 W",
}
OPTIONAL = {"conv1d.bias": "D", "in_proj.bias": "2D", "out_proj.bias": "H"}


def convert(params: Params, hidden_act: str = "silu") -> Converted:
    """in_proj, conv1d, x_proj, dt_proj, out_proj (weight, and bias where there is one), A_log and D.

    FalconMamba saves the same names and normalizes Δ, B and C besides: see `falcon-mamba`.
    """
    return block(params, hidden_act, norm_eps=None)


def block(params: Params, hidden_act: str, norm_eps: float | None) -> Converted:
    """S6 from the parameters of a block that normalizes Δ, B and C with this ε, or does not."""
    if hidden_act not in ("silu", "swish"):
        raise params.error(f"hidden_act must be silu, not {hidden_act}: there is no layer for it")
    present = {name: shape for name, shape in OPTIONAL.items() if name in params}
    state = {name: params.take(name, shape) for name, shape in (SHAPES | present).items()}
    d_model, inner = state["out_proj.weight"].shape
    if inner % d_model:
        raise params.error(f"{inner} channels are no multiple of width {d_model}")
    if ("in_proj.bias" in state) != ("out_proj.bias" in state):
        raise params.error("in_proj and out_proj must both have a bias, or none of them")
    config = S6.Config(
        d_state=state["A_log"].shape[1],
        d_conv=state["conv1d.weight"].shape[2],
        expand=inner // d_model,
        dt_rank=state["dt_proj.weight"].shape[1],
        bias="in_proj.bias" in state,
        conv_bias="conv1d.bias" in state,
        norm_eps=norm_eps,
    )
    return Converted("s6", d_model, config, state)
