"""A layer followed by GELU and a gated linear unit over channels, as the blocks of S4 and S4D end."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from lrnnx_app.errors import one_of
from lrnnx_app.layers._base import Layer
from lrnnx_app.layers._linear import Linear, linear
from lrnnx_app.registry import LAYERS


class GLU(Layer):
    """p, q = W GELU(layer(x)) + b; y = p∘σ(q)."""

    paper = "Gu et al. 2022, arXiv 2111.00396"
    cost = "its layer's + D²"

    @dataclass
    class Config:
        layer: str = "s4d"  # name of the layer inside
        options: dict[str, Any] = field(default_factory=dict)  # its options that differ from their defaults

        def __post_init__(self) -> None:
            known = [option.name for option in fields(LAYERS.find(self.layer, "layer").Config)]
            for name in self.options:
                one_of("options", name, known)

    def __init__(self, d_model: int, config: Config) -> None:
        super().__init__(d_model)
        entry = LAYERS[config.layer]
        self.layer = entry(d_model, entry.Config(**config.options))
        self.output_linear = Linear(d_model, 2 * d_model)
        self.causal, self.rule_name = self.layer.causal, self.layer.rule_name

    def init_state(self, batch: int) -> Any:
        return self.layer.init_state(batch)

    def forward(
        self,
        x: Tensor,
        state: Any = None,
        *,
        dt: Tensor | None = None,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        y, state = self.layer(x, state, dt=dt, lengths=lengths, reset=reset)
        return self._gated(y), state

    def step(self, x: Tensor, state: Any, dt: Tensor | None = None) -> tuple[Tensor, Any]:
        y, state = self.layer.step(x, state, dt)
        return self._gated(y), state

    def recurrent_parameters(self) -> Iterator[nn.Parameter]:
        return self.layer.recurrent_parameters()

    def _gated(self, y: Tensor) -> Tensor:
        return F.glu(linear(self.output_linear, y, gelu=True))

    @property
    def n_states(self) -> str:
        return self.layer.n_states
