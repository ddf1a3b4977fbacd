"""What a source's function works with: parameters by name, every one of which must be used."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lrnnx_app.errors import UserError, nearest


class Converted(NamedTuple):
    """A layer's name in the registry, its width, its Config, and its state_dict."""

    layer: str
    d_model: int
    config: Any
    state: dict[str, Tensor]


class Params:
    """Parameters of one source by its names, numpy arrays or tensors; each can be taken as a tensor."""

    def __init__(self, source: str, params: Mapping[str, Any]) -> None:
        self.source = source
        self._params = params
        self._left = set(params)

    def __contains__(self, name: str) -> bool:
        return name in self._params

    def take(self, name: str, shape: str) -> Tensor:
        """The parameter as a tensor; `shape` names its sizes, one letter or number an axis, as "N H 2".

        Raises:
            UserError: there is none, or its rank or a numbered size differs.
        """
        if name not in self._params:
            raise UserError(f"{self.source}: parameter '{name}' is missing; {nearest(name, self._params)}")
        value = torch.as_tensor(self._params[name]).detach()
        sizes = shape.split()
        fits = value.ndim == len(sizes) and all(
            not size.isdigit() or int(size) == n for size, n in zip(sizes, value.shape, strict=True)
        )
        if not fits:
            raise UserError(f"{self.source}: '{name}' must be ({', '.join(sizes)}), not {tuple(value.shape)}")
        self._left.discard(name)
        return value

    def number(self, name: str) -> int:
        """A parameter that is one integer."""
        return int(self.take(name, ""))

    def finish(self) -> None:
        """Raises UserError if a parameter was given that the source does not have."""
        if self._left:
            raise UserError(f"{self.source}: no use for parameter '{min(self._left)}'; leave it out")
