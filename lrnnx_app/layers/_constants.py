"""Values of a layer that follow from its parameters alone: a frozen copy makes each of them once.

Elsewhere they are made at every use, so that none can be older than the parameters.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import partial, wraps
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lrnnx_app.ops._transforms import transformed

Made = TypeVar("Made")
Owner = TypeVar("Owner", bound=nn.Module)
Arguments = ParamSpec("Arguments")
Stack = TypeVar("Stack", bound=nn.Module)


class constant(Generic[Made]):  # noqa: N801  (a decorator)
    """A property of a layer that looks at parameters alone, e.g. `@constant def system(self) -> Tensor`."""

    def __init__(self, make: Callable[[Any], Made]) -> None:
        self.make, self.key, self.__doc__ = make, make.__qualname__, make.__doc__

    @overload
    def __get__(self, layer: None, owner: type) -> "constant[Made]": ...
    @overload
    def __get__(self, layer: nn.Module, owner: type | None = None) -> Made: ...
    def __get__(self, layer: Any, owner: type | None = None) -> "Made | constant[Made]":
        return self if layer is None else _kept(layer, self.key, self.make, layer)


class costly(constant[Made]):  # noqa: N801  (a decorator)
    """A constant that an evaluation on a CPU without gradients keeps too, for as long as its parameters last.

    It is kept with copies of the parameters `of` which it is made, and is made anew unless they hold the same
    numbers: whoever wrote others, and however, no value is older than its parameters.
    """

    def __init__(self, *of: str) -> None:
        self.of = of

    def __call__(self, make: Callable[[Any], Made]) -> "costly[Made]":
        super().__init__(make)
        return self

    def __get__(self, layer: Any, owner: type | None = None) -> Any:
        return self if layer is None else _kept(layer, self.key, self._same, layer)

    def _same(self, layer: Any) -> Made:
        parameters = [getattr(layer, name) for name in self.of]
        if not all(p.is_cpu for p in parameters) or (
            torch.is_grad_enabled() or torch.compiler.is_compiling() or transformed()
        ):
            return self.make(layer)
        before, value = layer.__dict__.get(self.key, ((), None))
        if len(before) == len(parameters) and all(map(_equal, before, parameters)):
            return value
        value = self.make(layer)
        layer.__dict__[self.key] = [p.clone() for p in parameters], value
        return value


def constant_of(
    make: Callable[Concatenate[Owner, Arguments], Made],
) -> Callable[Concatenate[Owner, Arguments], Made]:
    """A method that looks at parameters and at hashable arguments alone: a constant for each of these."""

    @wraps(make)
    def value(layer: Owner, *args: Arguments.args, **options: Arguments.kwargs) -> Made:
        key = (make.__qualname__, *args, *options.items())
        return _kept(layer, key, make, layer, *args, **options)

    return value


def _kept(layer: Any, key: Any, make: Callable[..., Made], *args: Any, **options: Any) -> Made:
    """make(…), or in a frozen copy what it was at first."""
    kept = layer.kept
    if kept is None:
        return make(*args, **options)
    if key in kept:
        return kept[key]
    value = make(*args, **options)
    if not torch.compiler.is_compiling():  # which works on tensors without values
        kept[key] = value
    return value


def _equal(p: Tensor, q: Tensor) -> bool:
    return p.dtype is q.dtype and torch.equal(p, q)


def frozen(model: Stack) -> Stack:
    """A copy for inference that makes each constant once; its parameters share the model's memory.

    It does not follow later changes of the model, and keeps that memory alive as long as it lives itself.
    """
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    shared |= {id(b): b.detach() for b in model.buffers()}
    copy = deepcopy(model, shared).eval()
    for module in copy.modules():
        if hasattr(module, "kept"):
            module.kept = {}  # type: ignore[assignment]  (a dictionary, no part)
    return copy


def own_memory(model: nn.Module) -> None:
    """Let every constant that a frozen copy has made be a contiguous tensor, and no view of another."""
    for module in model.modules():
        if getattr(module, "kept", None):
            copied = partial(torch.clone, memory_format=torch.contiguous_format)
            module.kept = tree_map_only(Tensor, copied, module.kept)  # type: ignore[assignment]  (no part)
