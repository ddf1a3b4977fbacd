"""Mamba as its authors keep it (github.com/state-spaces/mamba), whose config has no model_type."""

from dataclasses import replace
from typing import Any

from lrnnx_app.published import mamba
from lrnnx_app.published._layout import Settings

LAYOUT = replace(mamba.LAYOUT, model={**mamba.LAYOUT.model, "encoder": "backbone.embedding"})


def settings(given: Settings) -> dict[str, Any]:
    block = given.part("ssm_cfg")
    block.fixed("layer", "Mamba1")
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
            "name": "s6",
            "d_state": block.whole("d_state", 16),
            "expand": block.whole("expand", 2),
            "d_conv": block.whole("d_conv", 4),
            "dt_rank": None if block.values.get("dt_rank", "auto") == "auto" else block.whole("dt_rank"),
            "bias": block.flag("bias", False),
            "conv_bias": block.flag("conv_bias", True),
        },
    }
