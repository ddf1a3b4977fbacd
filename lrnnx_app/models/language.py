"""A stack of layers in the layout of published language models, such as Mamba and RecurrentGemma."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lrnnx_app.errors import RecipeError, one_of
from lrnnx_app.layers._linear import Linear, linear
from lrnnx_app.models._base import Blocks, Model, Residual
from lrnnx_app.spec import DataSpec, Rows

NORMS: dict[str, Callable[..., nn.Module]] = {"rms": nn.RMSNorm, "layer": nn.LayerNorm}
ACTIVATIONS = ("silu", "gelu_tanh")
START = 0.02  # standard deviation of a fresh embedding


class Mlp(nn.Module):
    """down_proj(act(gate_proj x)∘up_proj x): a gated MLP (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, d_model: int, d_ff: int, activation: str) -> None:
        super().__init__()
        self.activation = activation
        self.gate_proj, self.up_proj = Linear(d_model, d_ff), Linear(d_model, d_ff)
        self.down_proj = Linear(d_ff, d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(linear(self.gate_proj, x, activation=self.activation, times=self.up_proj(x)))


class Mixer(Residual):
    """x + layer(norm(x)); then, if there is an MLP, x + mlp(mlp_norm(x))."""

    def __init__(self, config: "Language.Config", d_model: int, layer_config: Any, **options: Any) -> None:
        super().__init__(normalized(config), d_model, layer_config, **options)
        self.mlp_norm = normalized(config) if config.d_ff else None
        self.mlp = Mlp(d_model, config.d_ff, config.activation) if config.d_ff else None

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        x = x + self.dropout(y)
        if self.mlp is None or self.mlp_norm is None:
            return x
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class Language(Model):
    """Embedding·scale → (x + layer(norm x), x + MLP(norm x)) for each block → norm → head → soft cap.

    The output holds logits (B, T, d_output) of the next token, or of whatever the data ask for at each step.
    """

    packs = True
    small: ClassVar = {"d_model": 8, "depth": 2, "tied": False}
    forms = ({}, {"d_ff": 12, "norm": "layer", "scale": 2.0, "soft_cap": 3.0, "activation": "gelu_tanh"})

    @dataclass
    class Config:
        d_model: int = 64  # channels between layers
        depth: int = 4  # blocks, each with a layer
        dropout: float = 0.0  # share of channels that training drops
        d_ff: int = 0  # width of a gated MLP after each layer; 0: none
        activation: str = "silu"  # silu | gelu_tanh: of the MLP's gate
        norm: str = "rms"  # rms | layer
        norm_eps: float = 1e-5  # added to the variance in each norm
        tied: bool = True  # the head has the embedding's weights
        scale: float = 1.0  # factor of the embedding's output
        soft_cap: float = 0.0  # c: logits become c·tanh(logits / c); 0: they stay
        vocabulary: int = 0  # rows of the embedding, if it is padded; 0: one for each token
        layer: Any = None  # one layer, or a list that the blocks take in turn

        def __post_init__(self) -> None:
            one_of("norm", self.norm, tuple(NORMS))
            one_of("activation", self.activation, ACTIVATIONS)
            if min(self.d_model, self.depth) < 1:
                raise RecipeError("d_model and depth: expected positive integers")
            if min(self.d_ff, self.vocabulary, self.soft_cap, self.norm_eps) < 0:
                raise RecipeError("d_ff, vocabulary, soft_cap and norm_eps: expected at least 0")

    def __init__(self, spec: DataSpec, config: Config) -> None:
        super().__init__(spec)
        self.config = config
        if config.tied and not (spec.tokens and spec.d_input == spec.d_output):
            raise RecipeError("model.tied: the head can be the embedding only of tokens that predict tokens")
        rows = config.vocabulary or spec.d_input
        if spec.tokens and rows < max(spec.d_input, spec.d_output):
            raise RecipeError(
                f"model.vocabulary: {rows} rows for {spec.d_input} tokens; expected as many or more"
            )
        width = config.d_model
        self.encoder = nn.Embedding(rows, width) if spec.tokens else Linear(spec.d_input, width)
        if isinstance(self.encoder, nn.Embedding):
            nn.init.normal_(self.encoder.weight, std=START)
        self.blocks = Blocks(
            [width] * config.depth, config.layer, config.dropout, kind=partial(Mixer, config)
        )
        self.norm = normalized(config)
        outputs = rows if spec.tokens else spec.d_output
        self.head = None if config.tied else Linear(width, outputs, bias=False)

    def init_state(self, batch: int) -> tuple[Any, ...]:
        return self.blocks.init_state(batch)

    def features(self, x: Tensor, state: Any, rows: Rows) -> tuple[Tensor, tuple[Any, ...]]:
        """What the head reads (B, T, d_model)."""
        x, state = self.blocks.run(self._embedded(x), state, rows)
        return self.norm(x), state

    def step(self, x: Tensor, state: Any, dt: Tensor | None = None) -> tuple[Tensor, tuple[Any, ...]]:
        """One token: x (B,), or a sample (B, d_input); the output has no time axis."""
        x, state = self.blocks.step(self._embedded(x), state, dt)
        return self.readout(self.norm(x)), state

    def readout(self, features: Tensor) -> Tensor:
        """The logits (…, d_output) of features (…, d_model), without those of padding."""
        head = self.head or partial(nn.functional.linear, weight=self.encoder.weight)
        logits = head(features)
        logits = logits[..., : self.spec.d_output]
        cap = self.config.soft_cap
        return cap * torch.tanh(logits / cap) if cap else logits

    def _embedded(self, x: Tensor) -> Tensor:
        x = self.encoder(x)
        return x if self.config.scale == 1 else x * self.config.scale


def normalized(config: Language.Config) -> nn.Module:
    """A norm as the Config says."""
    return NORMS[config.norm](config.d_model, eps=config.norm_eps)
