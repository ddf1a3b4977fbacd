"""Mamba-2 (Dao & Gu 2024, arXiv 2405.21060) as transformers keeps it."""

from dataclasses import replace
from typing import Any

from lrnnx_app.errors import DataError, UserError
from lrnnx_app.models.language import Language
from lrnnx_app.published import mamba
from lrnnx_app.published._layout import Settings

LAYOUT = replace(
    mamba.LAYOUT,
    architecture="Mamba2ForCausalLM",
    layers={"mamba2": {}},
    inside={"mamba2": {"norm_weight": "norm.weight"}},
)
UNLIMITED = [0.0, {"__float__": "Infinity"}], [0.0, float("inf")]  # as transformers writes it, and wrote it


def settings(given: Settings) -> dict[str, Any]:
    given.fixed("hidden_act", "silu", "swish")
    given.fixed("time_step_limit", *UNLIMITED)
    width, head_dim, eps = (
        given.whole("hidden_size", 4096),
        given.whole("head_dim", 64),
        given.number("layer_norm_epsilon", 1e-5),
    )
    expand, heads = given.whole("expand", 2), given.whole("num_heads", 128)
    if heads * head_dim != expand * width:
        raise DataError(
            f"{given.source}: num_heads: expected {expand * width / head_dim:g} of {head_dim} channels, "
            f"not {heads}"
        )
    return {
        "d_model": width,
        "depth": given.whole("num_hidden_layers", 64),
        "norm_eps": eps,
        "tied": given.flag("tie_word_embeddings", False),
        "vocabulary": given.whole("vocab_size"),
        "layer": {
            "name": "mamba2",
            "d_state": given.whole("state_size", 128),
            "d_conv": given.whole("conv_kernel", 4),
            "expand": expand,
            "head_dim": head_dim,
            "groups": given.whole("n_groups", 8),
            "bias": given.flag("use_bias", False),
            "conv_bias": given.flag("use_conv_bias", True),
            "norm_eps": eps,
        },
    }


def config(model: Language) -> dict[str, Any]:
    own, mixer = model.config, next(iter(model.blocks)).layer
    if mixer.config.norm_eps != own.norm_eps:
        raise UserError(
            f"{LAYOUT.architecture} has one norm_eps; this model has {own.norm_eps} and, in its layers, "
            f"{mixer.config.norm_eps}"
        )
    return {
        "hidden_size": own.d_model,
        "num_hidden_layers": own.depth,
        "layer_norm_epsilon": own.norm_eps,
        "state_size": mixer.config.d_state,
        "conv_kernel": mixer.config.d_conv,
        "expand": mixer.config.expand,
        "num_heads": mixer.sizes[-1],
        "head_dim": mixer.head_dim,
        "n_groups": mixer.config.groups,
        "use_bias": mixer.config.bias,
        "use_conv_bias": mixer.config.conv_bias,
        "hidden_act": "silu",
    }
