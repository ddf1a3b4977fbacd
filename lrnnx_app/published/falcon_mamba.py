"""FalconMamba (Zuo et al. 2024, arXiv 2410.05355), Mamba with norms of Δ, B and C, as in transformers."""

from dataclasses import replace
from typing import Any

from lrnnx_app.models.language import Language
from lrnnx_app.published import mamba
from lrnnx_app.published._layout import Settings

LAYOUT = replace(
    mamba.LAYOUT,
    architecture="FalconMambaForCausalLM",
    layers={"s6": {"rule": "euler", "complex": False}},
)


def settings(given: Settings) -> dict[str, Any]:
    options = mamba.settings(given)
    options["layer"]["norm_eps"] = given.number("mixer_rms_eps", 1e-6)
    return options


def config(model: Language) -> dict[str, Any]:
    return mamba.config(model) | {"mixer_rms_eps": next(iter(model.blocks)).layer.config.norm_eps}
