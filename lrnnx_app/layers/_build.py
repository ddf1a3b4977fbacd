"""From a recipe's words to a layer."""

from typing import Any

from lrnnx_app.errors import RecipeError
from lrnnx_app.layers._base import Layer
from lrnnx_app.layers._bidirectional import Bidirectional
from lrnnx_app.registry import LAYERS


def build_layer(
    name: str, d_model: int, config: Any = None, bidirectional: bool = False, join: str = "concat"
) -> Layer | Bidirectional:
    """The layer called `name` with its `Config` (the default one if None), in one or both directions.

    Raises:
        RecipeError: there is no such layer, no such way of joining directions, the layer would have no
            states, or it would change the number of channels.
    """
    entry = LAYERS.find(name)
    config = entry.Config() if config is None else config
    if getattr(config, "d_state", 1) < 1:
        raise RecipeError(f"d_state: expected at least 1, not {config.d_state}")
    if getattr(config, "d_output", None) not in (None, d_model):
        raise RecipeError(f"d_output: a layer of a model keeps its {d_model} channels; leave it out")

    def make() -> Layer:
        return entry(d_model, config)

    return Bidirectional(make, join) if bidirectional else make()
