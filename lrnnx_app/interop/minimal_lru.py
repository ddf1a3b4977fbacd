"""`minimal-lru` (flax, NicolasZucchet/minimal-LRU): the LRU module."""

import torch

from lrnnx_app.interop._params import Converted, Params
from lrnnx_app.layers.lru import LRU

KEY = "nu_log"


def convert(params: Params) -> Converted:
    """nu_log, theta_log, gamma_log (N), B_re, B_im (N, H), C_re, C_im (H, N), D (H)."""
    state = {name: params.take(name, "N") for name in ("nu_log", "theta_log", "gamma_log")}
    state["B"] = torch.stack((params.take("B_re", "N H"), params.take("B_im", "N H")))
    state["C"] = torch.stack((params.take("C_re", "H N"), params.take("C_im", "H N")))
    state["D"] = params.take("D", "H")
    return Converted("lru", len(state["D"]), LRU.Config(d_state=len(state["nu_log"])), state)
