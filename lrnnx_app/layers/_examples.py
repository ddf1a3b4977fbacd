"""Small layers to try out: what each layer of the registry gives as `examples`, in one or both directions."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from lrnnx_app.layers._build import build_layer
from lrnnx_app.ops.rules import OWN
from lrnnx_app.registry import LAYERS

D_MODEL = 4
TWO_TAPS = tuple(name for name, rule in OWN.items() if rule.taps == 2)


class Case(NamedTuple):
    """A layer with some of its options, in one or both directions."""

    name: str
    options: dict[str, Any]
    bidirectional: bool = False

    def build(self, dtype: torch.dtype = torch.float64) -> Any:
        """The layer of D_MODEL channels, the same at every call."""
        torch.manual_seed(0)
        config = LAYERS[self.name].Config(**self.options)
        return build_layer(self.name, D_MODEL, config, self.bidirectional).to(dtype)

    def by_each_rule(self) -> "Iterator[Case]":
        """This case, and the same by each other discretization that its layer lets one choose."""
        yield self
        entry = LAYERS[self.name]
        for rule in entry.rules():
            if rule != entry.Config(**self.options).rule:
                yield self.by(rule)

    def by(self, rule: str) -> "Case":
        """The same by another discretization."""
        return Case(self.name, {**self.options, "rule": rule}, self.bidirectional)

    def __str__(self) -> str:
        words = [self.name, *(str(value) for value in self.options.values())]
        return "-".join(words + ["both"] * self.bidirectional)


def examples(name: str) -> list[Case]:
    """The examples of one layer in one direction, its own two-way form included, and one by two taps."""
    entry = LAYERS[name]
    given = [Case(name, dict(options)) for options in entry.examples]
    return given + [given[0].by(rule) for rule in entry.rules() if rule in TWO_TAPS][:1]
