"""Mamba (Gu & Dao 2023, arXiv 2312.00752) as transformers keeps it."""

from typing import Any

from lrnnx_app.models.language import Language
from lrnnx_app.published._layout import Layout, Settings

LAYOUT = Layout(
    architecture="MambaForCausalLM",
    options={"norm": "rms", "d_ff": 0, "scale": 1.0, "soft_cap": 0.0},
    layers={"s6": {"rule": "euler", "complex": False, "norm_eps": None}},
    model={"encoder": "backbone.embeddings", "norm": "backbone.norm_f", "head": "lm_head"},
    block="backbone.layers.{}.",
    layer="mixer",
)


def settings(given: Settings) -> dict[str, Any]:
    given.fixed("hidden_act", "silu", "swish")
    width, automatic = given.whole("hidden_size"), given.values.get("time_step_rank", "auto") == "auto"
    expanded = given.whole("expand", 2) * width
    return {
        "d_model": width,
        "depth": given.whole("num_hidden_layers"),
        "norm_eps": given.number("layer_norm_epsilon", 1e-5),
        "tied": given.flag("tie_word_embeddings", True),
        "vocabulary": given.whole("vocab_size"),
        "layer": {
            "name": "s6",
            "d_state": given.whole("state_size", 16),
            "expand": given.multiple("intermediate_size", width, expanded),
            "d_conv": given.whole("conv_kernel", 4),
            "dt_rank": None if automatic else given.whole("time_step_rank"),
            "bias": given.flag("use_bias", False),
            "conv_bias": given.flag("use_conv_bias", True),
        },
    }


def config(model: Language) -> dict[str, Any]:
    own, mixer = model.config, next(iter(model.blocks)).layer
    return {
        "hidden_size": own.d_model,
        "num_hidden_layers": own.depth,
        "layer_norm_epsilon": own.norm_eps,
        "state_size": mixer.config.d_state,
        "expand": mixer.config.expand,
        "intermediate_size": mixer.config.expand * own.d_model,
        "conv_kernel": mixer.config.d_conv,
        "time_step_rank": mixer.dt_rank,
        "use_bias": mixer.config.bias,
        "use_conv_bias": mixer.config.conv_bias,
        "hidden_act": "silu",
    }
