"""`s4d` (state-spaces/s4, the minimal S4D module): diagonal kernel, skip, GELU, linear, GLU."""

from lrnnx_app.interop._params import Converted, Params
from lrnnx_app.layers.glu import GLU

KEY = "kernel.log_A_real"
MODULES = ("S4D",)
PARTS = ("activation", "dropout", "output_linear.1")
FIXED = {"activation": "GELU", "output_linear.1": "GLU"}


def convert(params: Params) -> Converted:
    """D (H), kernel.C (H, n, 2), kernel.log_dt (H), kernel.log_A_real, kernel.A_imag (H, n), for n = N/2,

    output_linear.0.weight (2H, H, 1) and bias (2H).
    """
    C = params.take("kernel.C", "H n 2")
    state = {
        "layer.C": C.movedim(-1, 0),
        "layer.D": params.take("D", "H"),
        "layer.log_dt": params.take("kernel.log_dt", "H"),
        "layer.log_A_real": params.take("kernel.log_A_real", "H n"),
        "layer.A_imag": params.take("kernel.A_imag", "H n"),
        "output_linear.weight": params.take("output_linear.0.weight", "2H H 1")[..., 0],
        "output_linear.bias": params.take("output_linear.0.bias", "2H"),
    }
    config = GLU.Config("s4d", {"d_state": 2 * C.shape[1], "rule": "zoh"})
    return Converted("glu", C.shape[0], config, state)
