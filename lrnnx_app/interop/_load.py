"""`convert` and `load`: from another implementation's parameters to a layer of this one."""

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from lrnnx_app.errors import UserError, nearest
from lrnnx_app.interop._params import Converted, Params
from lrnnx_app.layers._base import Layer
from lrnnx_app.registry import LAYERS

SOURCES = sorted(
    module.name.replace("_", "-")
    for module in pkgutil.iter_modules([str(Path(__file__).parent)])
    if not module.name.startswith("_")
)


def convert(
    source: str, params: Mapping[str, Any] | nn.Module, config: Any = None, **options: Any
) -> tuple[str, Any, dict[str, Tensor]]:
    """Translate parameters; arguments and errors as of `load`.

    Returns:
        name of the layer, its Config, and its state_dict.
    """
    found = converted(source, params, config, **options)
    return found.layer, found.config, found.state


def load(source: str, params: Mapping[str, Any] | nn.Module, config: Any = None, **options: Any) -> Layer:
    """A layer that computes what another implementation's layer does, with its weights, in their precision.

    It maps x (B, T, d_model) to (y, state) as every layer of `LAYERS` does.

    A source is one way to compute: two that save the same names have a name each, such as `mamba` and
    `falcon-mamba`. A module, or its `state_dict()` as it was returned, is checked to be of the source. A
    plain dict of tensors cannot be, but by the model's config: else the source is taken at its word.

    Args:
        source: one of `lrnnx_app.interop.SOURCES`.
        params: the source's module, which tells its options too; or its parameter names -> numpy arrays or
            tensors.
        config: the settings of the source's model, a mapping or an object with attributes, such as
            transformers' config. Its model_type is checked, and options of the same names are taken.
        options: what the parameters do not tell; see the source's file. They go before the others.

    Raises:
        UserError: an unknown source or option, a module or config of another source, a parameter that is
            missing, misshapen or not of the source.
    """
    name, d_model, settings, state = converted(source, params, config, **options)
    layer = LAYERS[name](d_model, settings)
    layer.to(reduce(torch.promote_types, (tensor.dtype for tensor in state.values())))
    layer.load_state_dict(state)
    return layer


def key(source: str) -> str:
    """The name of a parameter that every layer of a source has.

    Raises:
        UserError: an unknown source.
    """
    return _module(source).KEY


def _module(source: str) -> ModuleType:
    if source not in SOURCES:
        raise UserError(f"unknown source '{source}'; {nearest(source, SOURCES)}")
    return importlib.import_module(f"lrnnx_app.interop.{source.replace('-', '_')}")


def converted(
    source: str, params: Mapping[str, Any] | nn.Module, config: Any = None, **options: Any
) -> Converted:
    """As `convert`, with the width."""
    module = _module(source)
    known = list(inspect.signature(module.convert).parameters)[1:]
    for option in options:
        if option not in known:
            hint = nearest(option, known) if known else "it has none"
            raise UserError(f"{source}: unknown option '{option}'; {hint}")
    given = Params(source, params)
    if config is not None:
        options = _configured(given, module, config, known) | options
    if isinstance(params, nn.Module):
        options = _told(given, module, params) | options
    found = module.convert(given, **options)
    given.finish(getattr(module, "PARTS", ()))
    return found


def _configured(given: Params, source: ModuleType, config: Any, known: list[str]) -> dict[str, Any]:
    """The options that a model's config has.

    Raises:
        UserError: it is of another model.
    """
    values = config if isinstance(config, Mapping) else vars(config)
    kind, own = getattr(config, "model_type", values.get("model_type")), getattr(source, "MODEL_TYPE", None)
    if kind not in (None, own):
        raise given.error(f"a config of model_type '{kind}' is not of this source")
    return {option: values[option] for option in known if option in values}


def _told(given: Params, source: ModuleType, params: nn.Module) -> dict[str, Any]:
    """The options that a source's module tells by its attributes (OPTIONS: name -> path).

    Raises:
        UserError: its class is none of the source's (MODULES), or a setting (FIXED) is another.
    """
    name, classes = type(params).__name__, getattr(source, "MODULES", ())
    if name not in classes:
        expected = f"expected {' or '.join(classes)}" if classes else "give its parameters by name"
        raise given.error(f"a {name} is not of this source; {expected}")
    for path, wanted in getattr(source, "FIXED", {}).items():
        if (value := _attribute(params, path)) not in (None, wanted):
            raise given.error(f"{path} must be {wanted}, not {value}: there is no layer for it")
    found = {option: _attribute(params, path) for option, path in getattr(source, "OPTIONS", {}).items()}
    return {option: value for option, value in found.items() if value is not None}


def _attribute(module: nn.Module, path: str) -> Any:
    """The attribute at a dotted path, or None if there is none; a module stands for the name of its class."""
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name, None)
    return type(value).__name__ if isinstance(value, nn.Module) else value
