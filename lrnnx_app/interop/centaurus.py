"""`centaurus`: one state-space layer of its authors, in mode full or pointwise."""

from lrnnx_app.interop._params import Converted, Params
from lrnnx_app.layers.centaurus import Centaurus

KEY = "log_dt"
MODULES = ("SSMLayer",)


def convert(params: Params) -> Converted:
    """In mode full log_dt (Cout, n), A (Cout, Cin, n, 2) and E (Cout, Cin, n).

    In mode pointwise log_dt (S), A (S, 2), B (S, Cin), C (Cout, S), where S = repeats · n. In both A has the
    real part −softplus. E tells the mode; others are refused.
    """
    if "E" in params:
        return full(params)
    state = {
        "log_dt": params.take("log_dt", "S"),
        "A": params.take("A", "S 2"),
        "B": params.take("B", "S Cin"),
        "C": params.take("C", "Cout S"),
    }
    size, channels = state["B"].shape
    config = Centaurus.Config(mode="pointwise", d_state=size, repeats=1, d_output=state["C"].shape[0])
    return Converted("centaurus", channels, config, state)


def full(params: Params) -> Converted:
    """Mode full: a system of n states for each pair of output and input; Δ depends on the output."""
    state = {
        "E": params.take("E", "Cout Cin n"),
        "A": params.take("A", "Cout Cin n 2"),
        "log_dt": params.take("log_dt", "Cout n"),
    }
    outputs, channels, n = state["E"].shape
    return Converted("centaurus", channels, Centaurus.Config(mode="full", d_state=n, d_output=outputs), state)
