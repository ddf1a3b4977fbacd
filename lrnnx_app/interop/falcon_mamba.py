"""`falcon-mamba` (transformers): the Mamba block that normalizes Δ, B and C, without weights."""

from lrnnx_app.interop._params import Converted, Params
from lrnnx_app.interop.mamba import block

KEY = "A_log"
MODEL_TYPE = "falcon_mamba"
MODULES = ("FalconMambaMixer",)
PARTS = ("act",)
NORMS = ("dt_layernorm", "b_layernorm", "c_layernorm")
OPTIONS = {"hidden_act": "activation", "mixer_rms_eps": "rms_eps"}


def convert(params: Params, hidden_act: str = "silu", mixer_rms_eps: float = 1e-6) -> Converted:
    """The names of `mamba`; mixer_rms_eps is the ε of the norms, which have no parameters."""
    for name in NORMS:
        params.part(name)
    return block(params, hidden_act, norm_eps=mixer_rms_eps)
