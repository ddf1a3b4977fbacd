"""Mamba and Mamba-2 as their authors keep them (github.com/state-spaces/mamba), without a model_type."""

from dataclasses import replace
from typing import Any

from lrnnx_app.published import mamba, mamba2
from lrnnx_app.published._layout import Settings

LAYOUT = replace(
    mamba.LAYOUT,
    model={**mamba.LAYOUT.model, "encoder": "backbone.embedding"},
    inside=mamba2.LAYOUT.inside,
)


def settings(given: Settings) -> dict[str, Any]:
    block = given.part("ssm_cfg")
    block.fixed("layer", "Mamba1", "Mamba2")
    given.fixed("d_intermediate", 0)
    given.fixed("attn_layer_idx", [], None)
    multiple, tokens = given.whole("pad_vocab_size_multiple", 8), given.whole("vocab_size")
    return {
        "d_model": given.whole("d_model"),
        "depth": given.whole("n_layer"),
        "norm": "rms" if given.flag("rms_norm", True) else "layer",
        "tied": given.flag("tie_embeddings", True),
        "vocabulary": -(-tokens // multiple) * multiple,
        "layer": {
            **(_second(block) if block.values.get("layer") == "Mamba2" else _first(block)),
            "expand": block.whole("expand", 2),
            "d_conv": block.whole("d_conv", 4),
            "bias": block.flag("bias", False),
            "conv_bias": block.flag("conv_bias", True),
        },
    }


def _first(block: Settings) -> dict[str, Any]:
    rank = None if block.values.get("dt_rank", "auto") == "auto" else block.whole("dt_rank")
    return {"name": "s6", "d_state": block.whole("d_state", 16), "dt_rank": rank}


def _second(block: Settings) -> dict[str, Any]:
    for key, wanted in (
        ("rmsnorm", True),
        ("norm_before_gate", False),
        ("D_has_hdim", False),
        ("d_ssm", None),
    ):
        block.fixed(key, wanted)
    return {
        "name": "mamba2",
        "d_state": block.whole("d_state", 128),
        "head_dim": block.whole("headdim", 64),
        "groups": block.whole("ngroups", 1),
    }
