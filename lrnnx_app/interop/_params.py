"""Parameters of a foreign layer by name. Each must be used, so that none is ignored silently."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lrnnx_app.errors import UserError, nearest

TERM = re.compile(r"(\d*)([A-Za-z]\w*)|(\d+)")  # 2D: twice the size named D; D: that size; 2: the number


class Converted(NamedTuple):
    """A layer's name in the registry, its width, its Config, and its state_dict."""

    layer: str
    d_model: int
    config: Any
    state: dict[str, Tensor]


class Params:
    """Parameters of one source by its names, numpy arrays or tensors; each can be taken as a tensor.

    A size that has a name is the same wherever that name occurs. A module's state_dict remembers its parts,
    so that those without parameters are checked too.
    """

    def __init__(self, source: str, params: Mapping[str, Any] | nn.Module) -> None:
        self.source = source
        self._params = params.state_dict() if isinstance(params, nn.Module) else params
        self._parts = set(getattr(self._params, "_metadata", ()))
        self._left = set(self._params)
        self._known = {""}
        self._sizes: dict[str, int] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._params

    def take(self, name: str, shape: str) -> Tensor:
        """The parameter as a tensor; `shape` names its sizes, one for each axis, as "N H 2" or "R+2N D".

        A sum or a multiple is of sizes that were named before.

        Raises:
            UserError: there is none, its numbers are not real or not of floating point, or a size differs.
        """
        value = self._tensor(name)
        if not value.is_floating_point() or value.is_meta:
            kind = "meta" if value.is_meta else value.dtype
            raise self.error(f"'{name}' must be real numbers of floating point, not {kind}")
        return self._shaped(name, value, shape)

    def _tensor(self, name: str) -> Tensor:
        if name not in self._params:
            raise self.error(f"parameter '{name}' is missing; {nearest(name, self._params)}")
        try:
            return torch.as_tensor(self._params[name]).detach()
        except (TypeError, ValueError, RuntimeError):
            raise self.error(f"'{name}' must be an array of numbers") from None

    def _shaped(self, name: str, value: Tensor, shape: str) -> Tensor:
        sizes = shape.split()
        known = [self._size(size) for size in sizes]
        named = dict(zip(sizes, value.shape, strict=False))
        if value.ndim != len(sizes) or any(
            (named[size] if wanted is None else wanted) != n
            for size, wanted, n in zip(sizes, known, value.shape, strict=True)
        ):
            plain = [s if n is None or s.isdigit() else f"{s}={n}" for s, n in zip(sizes, known, strict=True)]
            raise self.error(f"'{name}' must be ({', '.join(plain)}), not {tuple(value.shape)}")
        self._sizes |= {size: n for size, n in named.items() if size.isidentifier()}
        self._left.discard(name)
        return value

    def _size(self, size: str) -> int | None:
        """The value that a size must have; None if the name of the size has not been used yet."""
        if size.isidentifier():
            return self._sizes.get(size)
        terms = TERM.findall(size)
        return sum(
            int(number) if number else int(factor or 1) * self._sizes[name] for factor, name, number in terms
        )

    def number(self, name: str) -> int:
        """A parameter that is one integer."""
        return int(self._shaped(name, self._tensor(name), ""))

    def part(self, name: str) -> None:
        """Take a part without parameters, which a dict of tensors does not tell.

        Raises:
            UserError: the module has no such part.
        """
        if self._parts and name not in self._parts:
            raise self.error(f"this module has no '{name}', which is of this source; name its own")
        self._known.add(name)

    def error(self, text: str) -> UserError:
        """The error to raise: one line that begins with the name of the source."""
        return UserError(f"{self.source}: {text}")

    def finish(self, parts: tuple[str, ...] = ()) -> None:
        """Raises UserError if there is a parameter or a part that the source does not have.

        Args:
            parts: what the source's module may have besides, without parameters.
        """
        if self._left:
            raise self.error(f"no use for parameter '{min(self._left)}'; leave it out")
        known = {*self._known, *parts}
        for name in self._params:
            pieces = name.split(".")
            known |= {".".join(pieces[:k]) for k in range(1, len(pieces))}
        if unknown := self._parts - known:
            raise self.error(f"this module has a '{min(unknown)}', which is not of this source; name its own")
