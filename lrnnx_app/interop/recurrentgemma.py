"""`recurrentgemma` (transformers): the temporal block of RecurrentGemma with an RG-LRU."""

from lrnnx_app.interop._params import Converted, Params
from lrnnx_app.layers.rglru import RGLRU

KEY = "rg_lru.recurrent_param"
MODEL_TYPE = "recurrent_gemma"
MODULES = ("RecurrentGemmaRecurrentBlock",)
PARTS = ("act_fn",)
FIXED = {"act_fn": "GELUTanh"}
SHAPES = {
    "linear_y.weight": "R H",
    "linear_y.bias": "R",
    "linear_x.weight": "R H",
    "linear_x.bias": "R",
    "linear_out.weight": "H R",
    "linear_out.bias": "H",
    "conv_1d.weight": "R 1 W",
    "conv_1d.bias": "R",
    "rg_lru.recurrent_param": "R",
    "rg_lru.input_gate_weight": "heads w w",
    "rg_lru.input_gate_bias": "heads w",
    "rg_lru.recurrent_gate_weight": "heads w w",
    "rg_lru.recurrent_gate_bias": "heads w",
}


def convert(
    params: Params, unit_start: bool = True, hidden_activation: str = "gelu_pytorch_tanh"
) -> Converted:
    """linear_y, linear_x, linear_out and conv_1d (weight, bias), and rg_lru.* as in SHAPES.

    unit_start: at the first position of a document, in a fresh stream or at a reset, the input multiplier
    is 1 instead of √(1 − a²), as the source does where position_ids is 0.
    hidden_activation: the gate's, which must be the tanh form of GELU.
    """
    if hidden_activation != "gelu_pytorch_tanh":
        raise params.error(f"hidden_activation must be gelu_pytorch_tanh, not {hidden_activation}")
    state = {
        name.removeprefix("rg_lru.").replace("conv_1d", "conv1d"): params.take(name, shape)
        for name, shape in SHAPES.items()
    }
    heads, width, _ = state["input_gate_weight"].shape
    if heads * width != (channels := state["recurrent_param"].shape[0]):
        raise params.error(f"'rg_lru.input_gate_weight' has {heads} heads of {width} for {channels} channels")
    config = RGLRU.Config(
        d_rnn=channels,
        heads=heads,
        d_conv=state["conv1d.weight"].shape[2],
        unit_start=unit_start,
    )
    return Converted("rglru", state["linear_y.weight"].shape[1], config, state)
