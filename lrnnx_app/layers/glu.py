"""A layer followed by GELU and a gated linear unit over channels, as the blocks of S4 and S4D end."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrnnx_app.errors import RecipeError, one_of
from lrnnx_app.layers._base import Layer
from lrnnx_app.layers._build import build_layer
from lrnnx_app.layers._definition import affine, definition_of
from lrnnx_app.layers._linear import Linear, linear
from lrnnx_app.registry import LAYERS
from lrnnx_app.spec import Rows


@contextmanager
def _inside() -> Iterator[None]:
    """Errors of the layer inside name the key that its options stand at."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(f"options.{error}") from error


class GLU(Layer):
    """p, q = W GELU(layer(x)) + b; y = p∘σ(q)."""

    paper = "Gu et al. 2022, arXiv 2111.00396"
    cost = "its layer's + D²"
    examples = ({"options": {"d_state": 4}},)

    @dataclass
    class Config:
        layer: str = "s4d"  # name of the layer inside
        options: Any = None  # that layer's own options; in Python its Config, or a mapping of some of them

        def __post_init__(self) -> None:
            kind = LAYERS.find(self.layer, "layer").Config
            if isinstance(self.options, kind):
                return
            given = dict(self.options or {})
            known = [option.name for option in fields(kind)]
            for name in given:
                one_of("options", name, known)
            with _inside():
                self.options = kind(**given)

    def __init__(self, d_model: int, config: Config) -> None:
        super().__init__(d_model)
        with _inside():
            self.layer: Any = build_layer(config.layer, d_model, config.options)
        self.output_linear = Linear(d_model, 2 * d_model)
        self.causal, self.uses_dt = self.layer.causal, self.layer.uses_dt

    def init_state(self, batch: int) -> Any:
        return self.layer.init_state(batch)

    def run(self, x: Tensor, state: Any, rows: Rows) -> tuple[Tensor, Any]:
        y, state = self.layer(x, state, **rows._asdict())
        return self._gated(y), state

    def step(self, x: Tensor, state: Any, dt: Tensor | None = None) -> tuple[Tensor, Any]:
        y, state = self.layer.step(x, state, dt)
        return self._gated(y), state

    def recurrent_parameters(self) -> Iterator[nn.Parameter]:
        return self.layer.recurrent_parameters()

    def _gated(self, y: Tensor) -> Tensor:
        return F.glu(linear(self.output_linear, y, gelu=True))

    @property
    def rule_name(self) -> str:
        return self.layer.rule_name

    @property
    def n_states(self) -> str:
        return self.layer.n_states


def definition(layer: GLU, x: Tensor, dt: Tensor | None = None) -> Tensor:
    """p∘σ(q) with p, q = W GELU(y) + b, y by the definition of the layer inside."""
    y = definition_of(type(layer.layer))(layer.layer, x, dt)
    p, q = affine(layer.output_linear, F.gelu(y)).chunk(2, -1)
    return p * torch.sigmoid(q)
