"""`attenuate` (aTENNuate): one of its state-space layers, Centaurus in pointwise mode."""

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
    config = Centaurus.Config(mode="pointwise", d_state=size, repeats=1, d_output=state["C"].shape[0])
    return Converted("centaurus", channels, config, state)
