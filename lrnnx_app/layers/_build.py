"""From a recipe's words to a layer."""

import math
from dataclasses import fields
from typing import Any

from lrnnx_app.errors import RecipeError
from lrnnx_app.layers._base import Layer
from lrnnx_app.layers._bidirectional import Bidirectional
from lrnnx_app.registry import LAYERS


def layer(name: str, d_model: int, **options: Any) -> Layer:
    """A layer with fresh weights: `layer("s5", 64, d_state=128)`.

    It maps x (B, T, d_model) to (y, state), y (B, T, d_model); `layer.step` takes one step x (B, d_model) and
    the state on from there. Elapsed time `dt` (B, T), in the unit of the data's time steps, is optional.

    Args:
        name: one of `LAYERS`; `lrnnx layers` lists them.
        options: of its Config; `LAYERS[name].Config` has them all.

    Raises:
        RecipeError: there is no such layer or option, and the nearest one is named; or a value does not fit.
    """
    return build_layer(name, d_model, LAYERS.config(name, **options))  # type: ignore[return-value]  (one way)


def build_layer(
    name: str, d_model: int, config: Any = None, bidirectional: bool = False, join: str = "concat"
) -> Layer | Bidirectional:
    """The layer called `name` with its `Config` (the default one if None), in one or both directions.

    Raises:
        RecipeError: there is no such layer, no such way of joining directions, a size is less than one, or
            the layer would change the number of channels.
    """
    entry = LAYERS.find(name)
    config = entry.Config() if config is None else config
    check_numbers(config)
    if getattr(config, "d_output", None) not in (None, d_model):
        raise RecipeError(f"d_output: a layer of a model keeps its {d_model} channels; leave it out")

    def make() -> Layer:
        return entry(d_model, config)

    return Bidirectional(make, join) if bidirectional else make()


def check_numbers(config: Any) -> None:
    """Refuse whole numbers below 1 (below 0 where the default is 0), numbers that are not finite, and a range
    of timescales that holds none.

    Raises:
        RecipeError: names the option and what it may be.
    """
    for option in fields(config):
        value, least = getattr(config, option.name), int(option.default != 0)
        if type(value) is int and value < least:
            raise RecipeError(f"{option.name}: expected at least {least}, not {value}")
        if type(value) is float and not math.isfinite(value):
            raise RecipeError(f"{option.name}: expected a finite number, not {value}")
    low, high = getattr(config, "dt_min", 1), getattr(config, "dt_max", 1)
    if not 0 < low <= high:
        raise RecipeError(f"dt_min: expected more than 0 and at most dt_max = {high:g}, not {low:g}")
