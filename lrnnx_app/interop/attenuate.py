"""`attenuate` (aTENNuate): one of its state-space layers, Centaurus in pointwise mode."""

from lrnnx_app.errors import UserError
from lrnnx_app.interop._params import Converted, Params
from lrnnx_app.layers.centaurus import Centaurus


def convert(params: Params) -> Converted:
    """log_dt (S), A (S, 2) with real part −softplus, B (S, Cin), C (Cout, S), where S = repeats · modes."""
    state = {
        "log_dt": params.take("log_dt", "S"),
        "A": params.take("A", "S 2"),
        "B": params.take("B", "S Cin"),
        "C": params.take("C", "Cout S"),
    }
    size, channels = state["B"].shape
    if state["C"].shape[0] != channels:
        given = f"B takes {channels}, C gives {state['C'].shape[0]}"
        raise UserError(f"{params.source}: a layer keeps its number of channels, but {given}")
    return Converted(
        "centaurus", channels, Centaurus.Config(mode="pointwise", d_state=size, repeats=1), state
    )
