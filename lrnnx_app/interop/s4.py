"""`s4` (state-spaces/s4 version 4, S4Block): NPLR or diagonal kernel, skip, GELU, linear, GLU."""

from typing import Any

from torch import Tensor

from lrnnx_app.errors import one_of
from lrnnx_app.interop._params import Converted, Params
from lrnnx_app.layers.glu import GLU
from lrnnx_app.ops import planar

MODES = {"nplr": "s4", "diag": "s4d"}


def convert(params: Params, mode: str = "nplr") -> Converted:
    """layer.D (1, H), layer.kernel.* and output_linear.weight (2H, H) and bias (2H).

    The kernel has inv_dt (H, 1), C (1, H, N/2, 2), B (1, n_ssm, N/2, 2), A_real and A_imag (n_ssm, N/2) and,
    in mode nplr alone, P like B and l_kernel: Δ = exp(inv_dt), A = −exp(A_real) − i·A_imag (− PP*), and the
    n_ssm systems are repeated over the channels in turn.
    """
    layer = MODES[one_of("mode", mode, MODES)]
    kernel = "layer.kernel."
    C = params.take(f"{kernel}C", "1 H N/2 2")[0]
    channels, n, _ = C.shape

    def spread(z: Tensor) -> Tensor:
        return z.repeat(channels // z.shape[0], *[1] * (z.ndim - 1))

    def number(name: str) -> Tensor:
        """(1, n_ssm, N/2, 2) as planar (2, H, N/2)."""
        return spread(params.take(kernel + name, "1 n_ssm N/2 2")[0]).movedim(-1, 0)

    state = {
        "log_dt": params.take(f"{kernel}inv_dt", "H 1")[:, 0],
        "log_A_real": spread(params.take(f"{kernel}A_real", "n_ssm N/2")),
        "A_imag": -spread(params.take(f"{kernel}A_imag", "n_ssm N/2")),
        "B": number("B"),
        "C": C.movedim(-1, 0),
        "D": params.take("layer.D", "1 H")[0],
    }
    options: dict[str, Any] = {"d_state": 2 * n}
    if mode == "nplr":
        state["P"] = number("P")
        options["l_max"] = params.number(f"{kernel}l_kernel")
    else:
        numerator = planar.mul(state.pop("B").movedim(0, -2), C.movedim(-1, -2))
        state["C"] = numerator.movedim(-2, 0)
        options["rule"] = "zoh"
        if f"{kernel}l_kernel" in params:
            params.number(f"{kernel}l_kernel")
    state = {f"layer.{name}": tensor for name, tensor in state.items()}
    state["output_linear.weight"] = params.take("output_linear.weight", "2H H")
    state["output_linear.bias"] = params.take("output_linear.bias", "2H")
    return Converted("glu", channels, GLU.Config(layer, options), state)
