"""`convert` and `load`: from another implementation's parameters to a layer of this one."""

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrnnx_app.errors import UserError, nearest
from lrnnx_app.interop._params import Converted, Params
from lrnnx_app.layers._base import Layer
from lrnnx_app.registry import LAYERS

SOURCES = sorted(
    module.name.replace("_", "-")
    for module in pkgutil.iter_modules([str(Path(__file__).parent)])
    if not module.name.startswith("_")
)


def convert(source: str, params: Mapping[str, Any], **options: Any) -> tuple[str, Any, dict[str, Tensor]]:
    """Translate parameters.

    Args:
        source: one of SOURCES.
        params: that source's parameter names -> numpy arrays or tensors.
        options: what the parameters do not tell; see the source's file.

    Returns:
        name of the layer, its Config, and its state_dict.

    Raises:
        UserError: an unknown source or option, a parameter that is missing, misshapen or not of the source.
    """
    converted = _convert(source, params, options)
    return converted.layer, converted.config, converted.state


def load(source: str, params: Mapping[str, Any], **options: Any) -> Layer:
    """A layer with these parameters, in their precision; arguments and errors as of `convert`."""
    name, d_model, config, state = _convert(source, params, options)
    layer = LAYERS[name](d_model, config)
    layer.to(reduce(torch.promote_types, (tensor.dtype for tensor in state.values())))
    layer.load_state_dict(state)
    return layer


def _convert(source: str, params: Mapping[str, Any], options: dict[str, Any]) -> Converted:
    if source not in SOURCES:
        raise UserError(f"unknown source '{source}'; {nearest(source, SOURCES)}")
    translate = importlib.import_module(f"lrnnx_app.interop.{source.replace('-', '_')}").convert
    known = list(inspect.signature(translate).parameters)[1:]
    for option in options:
        if option not in known:
            hint = nearest(option, known) if known else "it has none"
            raise UserError(f"{source}: unknown option '{option}'; {hint}")
    given = Params(source, params)
    converted = translate(given, **options)
    given.finish()
    return converted
