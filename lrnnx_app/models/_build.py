"""Builds a model from names and options, as a recipe gives them."""

from collections.abc import Mapping
from typing import Any

from lrnnx_app.models._base import Model
from lrnnx_app.registry import LAYERS, MODELS
from lrnnx_app.spec import DataSpec


def model(
    name: str,
    d_input: int,
    d_output: int,
    layer: Any = "lru",
    *,
    tokens: bool = False,
    sample_rate: int = 0,
    **options: Any,
) -> Model:
    """A model with fresh weights: `model("backbone", 1, 10, layer={"name": "s5", "blocks": 4}, depth=6)`.

    It maps x (B, T, d_input), or (B, T) tokens, to (y, state); y is (B, T, d_output), or (B, d_output) of a
    model that pools over time.

    Args:
        name: one of `lrnnx_app.registry.MODELS`, such as backbone or unet.
        layer: a layer's name, or a mapping of its name and options, or a list of these.
        tokens: x holds integers below d_input.
        sample_rate: of audio, in Hz.
        options: of the model's Config.

    Raises:
        RecipeError: there is no such model, layer or option, and the nearest one is named; or a value does
            not fit.
    """
    layers = [_config(one) for one in layer] if isinstance(layer, list) else _config(layer)
    spec = DataSpec(d_input, d_output, tokens=tokens, sample_rate=sample_rate)
    return MODELS.find(name)(spec, MODELS.config(name, layer=layers, **options))


def _config(layer: str | Mapping[str, Any]) -> Any:
    return LAYERS.config(**({"name": layer} if isinstance(layer, str) else layer))
