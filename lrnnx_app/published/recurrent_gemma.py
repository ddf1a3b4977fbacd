"""RecurrentGemma (Griffin, De et al. 2024, arXiv 2402.19427) as transformers keeps it."""

import math
from typing import Any

import torch

from lrnnx_app.errors import DataError, UserError
from lrnnx_app.models.language import Language
from lrnnx_app.published._layout import Layout, Settings

BLOCKS = {"recurrent": "rglru", "attention": "local_attention"}  # their names of layers, and ours
GATES = (
    "recurrent_param",
    "input_gate_weight",
    "input_gate_bias",
    "recurrent_gate_weight",
    "recurrent_gate_bias",
)
LAYOUT = Layout(
    architecture="RecurrentGemmaForCausalLM",
    options={"norm": "rms", "activation": "gelu_tanh"},
    layers={"rglru": {"unit_start": True, "c": 8.0}, "local_attention": {}},
    model={"encoder": "model.embed_tokens", "norm": "model.final_norm", "head": "lm_head"},
    block="model.layers.{}.",
    parts={"norm": "temporal_pre_norm", "mlp_norm": "channel_pre_norm", "mlp": "mlp_block"},
    layer="temporal_block",
    inside={
        "rglru": {"conv1d": "conv_1d", **{name: f"rg_lru.{name}" for name in ("recurrent_param", *GATES)}},
        "local_attention": {"kv_proj": ("k_proj", "v_proj"), "out_proj": "o_proj"},
    },
    less_one=True,
    ignored=r"\.inv_freq$|\.normalizer$",
)


def settings(given: Settings) -> dict[str, Any]:
    given.fixed("hidden_activation", "gelu_pytorch_tanh")
    given.fixed("attention_bias", False)
    width, heads, rope = (
        given.whole("hidden_size"),
        given.whole("num_attention_heads", 10),
        given.part("rope_parameters"),
    )
    rope.fixed("rope_type", "default")
    rotary = rope.number("partial_rotary_factor", given.number("partial_rotary_factor", 0.5))
    if int(given.multiple("hidden_size", heads, width) * rotary) % 2:
        raise DataError(
            f"{given.source}: partial_rotary_factor: {rotary} of a head is an odd number of channels"
        )
    layers = {
        "recurrent": {
            "name": "rglru",
            "d_rnn": given.whole("lru_width", width),
            "heads": heads,
            "d_conv": given.whole("conv1d_width", 4),
        },
        "attention": {
            "name": "local_attention",
            "window": given.whole("attention_window_size", 2048),
            "heads": heads,
            "kv_heads": given.whole("num_key_value_heads", heads),
            "rotary": rotary,
            "base": rope.number("rope_theta", given.number("rope_theta", 10000.0)),
        },
    }
    kinds = given.words("block_types", ("recurrent", "recurrent", "attention"), layers)
    return {
        "d_model": width,
        "depth": given.whole("num_hidden_layers"),
        "d_ff": given.multiple("intermediate_size", 2, 3 * width),
        "activation": "gelu_tanh",
        "norm_eps": given.number("rms_norm_eps", 1e-6),
        "tied": given.flag("tie_word_embeddings", True),
        "scale": scale(width),
        "soft_cap": given.number("logits_soft_cap", 30.0),
        "vocabulary": given.whole("vocab_size"),
        "layer": [layers[kind] for kind in kinds],
    }


def config(model: Language) -> dict[str, Any]:
    own, found = model.config, {}
    for block in model.blocks:
        found.setdefault(block.layer.config.name, block.layer)
    gates, attention = found.get("rglru"), found.get("local_attention")
    heads = {len(gates.input_gate_weight)} if gates else set()
    heads |= {attention.config.heads} if attention else set()
    refuse(own.scale != scale(own.d_model), f"scale={scale(own.d_model)}, the root of d_model")
    refuse(not own.soft_cap or not own.d_ff, "a soft_cap and an MLP, d_ff")
    refuse(len(heads) > 1, "as many heads in rglru as in local_attention")
    names = {ours: theirs for theirs, ours in BLOCKS.items()}
    kinds = own.layer if isinstance(own.layer, list) else [own.layer]
    window = (
        {
            "attention_window_size": attention.config.window,
            "num_key_value_heads": attention.config.kv_heads,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": attention.config.base,
                "partial_rotary_factor": attention.config.rotary,
            },
        }
        if attention
        else {}
    )
    return {
        "hidden_size": own.d_model,
        "num_hidden_layers": own.depth,
        "intermediate_size": 2 * own.d_ff,
        "num_attention_heads": heads.pop(),
        "lru_width": len(gates.recurrent_param) if gates else own.d_model,
        "conv1d_width": gates.config.d_conv if gates else 4,
        "rms_norm_eps": own.norm_eps,
        "logits_soft_cap": own.soft_cap,
        "block_types": [names[kind.name] for kind in kinds],
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        **window,
    }


def refuse(wrong: bool, wanted: str) -> None:
    """Raises UserError if the model has not what every model of this layout has."""
    if wrong:
        raise UserError(f"{LAYOUT.architecture} has {wanted}; this model has not")


def scale(width: int) -> float:
    """√width as the source keeps it, in bfloat16."""
    return float(torch.tensor(math.sqrt(width), dtype=torch.bfloat16))
