"""`s4` (state-spaces/s4 version 4, S4Block): NPLR or diagonal kernel, skip, GELU, linear, GLU."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lrnnx_app.errors import one_of
from lrnnx_app.interop._params import Converted, Params
from lrnnx_app.layers.glu import GLU
from lrnnx_app.ops import planar

MODES = {"nplr": "s4", "diag": "s4d"}
RULES = ("zoh", "bilinear")
LOGS = {  # of the positive number that a parameter stands for
    "none": torch.log,
    "exp": lambda z: z,
    "relu": lambda z: torch.log(F.relu(z) + 1e-4),
    "sigmoid": F.logsigmoid,
    "softplus": lambda z: torch.log(F.softplus(z)),
}
KERNEL = "layer.kernel."
KEY = "layer.kernel.inv_dt"
MODULES = ("S4Block",)
PARTS = ("layer.activation", "layer.drop", "layer.drop_kernel", "mult_activation", "drop", "output_linear.1")
OPTIONS = {name: KERNEL + name for name in ("disc", "dt_transform", "real_transform", "imag_transform")}
FIXED = {
    "layer.activation": "GELU",
    "layer.bidirectional": False,
    "layer.kernel.dt_fast": False,
    "layer.kernel.is_real": False,
    "layer.kernel.bandlimit": None,
    "mult_activation": "Identity",
    "output_linear.1": "GLU",
}


def convert(
    params: Params,
    mode: str | None = None,
    disc: str = "zoh",
    dt_transform: str = "exp",
    real_transform: str = "exp",
    imag_transform: str = "none",
) -> Converted:
    """layer.D (1, H), layer.kernel.* and output_linear.0.weight (2H, H) and bias (2H).

    The kernel has inv_dt (H, 1), C (1, H, n, 2), B (1, S, n, 2), A_real and A_imag (S, n) and, in mode nplr
    alone, P like B and l_kernel: Δ = exp(inv_dt), A = −exp(A_real) − i·A_imag (− PP*), for n = N/2. The S
    systems are repeated over the channels in turn.

    Args:
        mode: nplr or diag; None tells it by P.
        disc: zoh or bilinear, in mode diag; nplr has bilinear alone.
        dt_transform, real_transform, imag_transform: what makes inv_dt, A_real and A_imag positive.

    The block is taken with one GELU and with GLU, of which its parameters tell GLU alone: a module of the
    version with a second GELU (activation) is refused. Where the source cuts its kernel off at l_max, this
    layer goes on.
    """
    if mode is None:
        mode = "nplr" if f"{KERNEL}P" in params else "diag"
    layer = MODES[one_of("mode", mode, MODES)]
    rule = one_of("disc", disc, RULES)
    C = params.take(f"{KERNEL}C", "1 H n 2")[0]
    channels, n, _ = C.shape

    def spread(z: Tensor) -> Tensor:
        return z.repeat(channels // z.shape[0], *[1] * (z.ndim - 1))

    def log(name: str, shape: str, transform: str) -> Tensor:
        value = LOGS[one_of("transform", transform, LOGS)](params.take(KERNEL + name, shape))
        if value.isnan().any():
            raise params.error(f"'{KERNEL}{name}' must be positive where its transform is {transform}")
        return value

    def number(name: str) -> Tensor:
        """(1, S, n, 2) as planar (2, H, n)."""
        return spread(params.take(KERNEL + name, "1 S n 2")[0]).movedim(-1, 0)

    log_A_real = log("A_real", "S n", real_transform)
    if channels % (systems := log_A_real.shape[0]):
        raise params.error(f"'{KERNEL}A_real' has {systems} systems, which do not divide {channels} channels")
    if imag_transform == "none":
        A_imag = params.take(f"{KERNEL}A_imag", "S n")
    else:
        A_imag = log("A_imag", "S n", imag_transform).exp()
    state = {
        "log_dt": log("inv_dt", "H 1", dt_transform)[:, 0],
        "log_A_real": spread(log_A_real),
        "A_imag": -spread(A_imag),
        "B": number("B"),
        "C": C.movedim(-1, 0),
        "D": params.take("layer.D", "1 H")[0],
    }
    options: dict[str, Any] = {"d_state": 2 * n}
    if mode == "nplr":
        state["P"] = number("P")
        options["l_max"] = params.number(f"{KERNEL}l_kernel")
    else:
        numerator = planar.mul(state.pop("B").movedim(0, -2), C.movedim(-1, -2))
        state["C"] = numerator.movedim(-2, 0)
        options["rule"] = rule
        if f"{KERNEL}l_kernel" in params:
            params.number(f"{KERNEL}l_kernel")
    state = {f"layer.{name}": tensor for name, tensor in state.items()}
    state["output_linear.weight"] = params.take("output_linear.0.weight", "2H H")
    state["output_linear.bias"] = params.take("output_linear.0.bias", "2H")
    return Converted("glu", channels, GLU.Config(layer, options), state)
