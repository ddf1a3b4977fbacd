"""Where a published language model keeps what ours has: names both ways, and the settings of its config."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lrnnx_app.errors import DataError, UserError, nearest
from lrnnx_app.models.language import Language

Names = Mapping[str, str | tuple[str, ...]]  # ours -> theirs; of several theirs the rows follow one another
NORM = re.compile(r"(^|\.)(mlp_)?norm\.weight$")


@dataclass(frozen=True)
class Layout:
    """Names of a published model's tensors.

    A name stands for all that begins with it and a dot; what is in no table has the same name in both.

    Attributes:
        architecture: the class in transformers.
        options: of model `language`, which every model of the layout has.
        layers: name of a layer -> options that it has in every model of the layout.
        model: outside the blocks, such as {"encoder": "backbone.embeddings"}.
        block: of a block, with {} for its number.
        parts: in a block.
        layer: of a block's layer, in the block.
        inside: name of a layer -> names in it.
        less_one: whether the weights of norms are kept less 1.
        ignored: a pattern of tensors that hold no weights.
    """

    architecture: str
    options: Mapping[str, Any]
    layers: Mapping[str, Mapping[str, Any]]
    model: Names
    block: str
    layer: str
    parts: Names = field(default_factory=dict)
    inside: Mapping[str, Names] = field(default_factory=dict)
    less_one: bool = False
    ignored: str = r"$."

    def check(self, model: Language) -> None:
        """Raises:
        UserError: the model has an option that no model of this layout has.
        """
        given, seen = [("model", model.config, self.options)], {}
        for config in (block.layer.config for block in model.blocks):
            if vars(seen.setdefault(config.name, config)) != vars(config):
                raise UserError(f"{self.architecture} has equal options in every layer {config.name}")
            if config.name not in self.layers:
                raise UserError(
                    f"{self.architecture} has no layer {config.name}; it has {' and '.join(self.layers)}"
                )
            given.append((f"layer {config.name}", config, self.layers[config.name]))
        for part, config, options in given:
            for key, wanted in options.items():
                if (value := getattr(config, key)) != wanted:
                    raise UserError(f"{self.architecture} has {part} with {key}={wanted}, not {key}={value}")

    def names(self, model: Language) -> dict[str, tuple[str, ...]]:
        """Our name of each of a model's tensors -> theirs."""
        found, blocks = {}, list(model.blocks)
        for name in model.state_dict():
            part = re.fullmatch(r"blocks\.(\d+)\.(?:(layer)\.)?(.+)", name)
            if part is None:
                found[name] = _translated(name, self.model)
                continue
            number, layer, rest = part.groups()
            block = self.block.format(number)
            if layer is None:
                found[name] = tuple(block + theirs for theirs in _translated(rest, self.parts))
                continue
            table = self.inside.get(blocks[int(number)].layer.config.name, {})
            found[name] = tuple(f"{block}{self.layer}.{theirs}" for theirs in _translated(rest, table))
        return found

    def taken(self, model: Language, given: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """A state_dict of `model`, which may be on the device meta, from their tensors.

        Raises:
            DataError: a tensor is missing, has another shape or type, or has no place in the model.
        """
        left = {name for name in given if not re.search(self.ignored, name)}
        found = {}
        own = model.state_dict()
        for name, theirs in self.names(model).items():
            parts = [_tensor(given, part, source) for part in theirs]
            value = parts[0] if len(parts) == 1 else torch.cat(parts)
            if value.shape != own[name].shape:
                shapes = " and ".join(f"'{part}' {tuple(given[part].shape)}" for part in theirs)
                raise DataError(f"{source}: {shapes}; expected {tuple(own[name].shape)} by its config")
            less_one = self.less_one and NORM.search(name)
            found[name] = 1 + value.float() if less_one else value.contiguous()
            left -= set(theirs)
        if model.head is None:
            left -= self._tied(given, source)
        if left:
            raise DataError(
                f"{source}: no use for '{min(left)}' ({len(left)} such tensors); expected no others than "
                "those of its config"
            )
        return found

    def given(self, model: Language, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Their tensors from a state_dict of `model`: the inverse of `taken`."""
        found: dict[str, Tensor] = {}
        for name, theirs in self.names(model).items():
            value = weights[name] - 1 if self.less_one and NORM.search(name) else weights[name]
            sizes = [len(value) // len(theirs)] * len(theirs)
            found |= zip(theirs, (part.contiguous() for part in value.split(sizes)), strict=True)
        return found

    def _tied(self, given: Mapping[str, Tensor], source: str) -> set[str]:
        """The names of the head that is the embedding, if the head is there at all."""
        head, embedding = (_translated(f"{part}.weight", self.model)[0] for part in ("head", "encoder"))
        if head in given and not torch.equal(given[head], given[embedding]):
            raise DataError(
                f"{source}: '{head}' is not '{embedding}', which the config ties to it; expected "
                "tie_word_embeddings: false, or equal tensors"
            )
        return {head}


def _translated(name: str, table: Names) -> tuple[str, ...]:
    """A name by the longest entry of the table that begins it."""
    pieces = name.split(".")
    for count in range(len(pieces), 0, -1):
        if (theirs := table.get(".".join(pieces[:count]))) is not None:
            heads = (theirs,) if isinstance(theirs, str) else theirs
            return tuple(".".join((head, *pieces[count:])) for head in heads)
    return (name,)


def _tensor(given: Mapping[str, Tensor], name: str, source: str) -> Tensor:
    if name not in given:
        raise DataError(f"{source}: '{name}' is missing; {nearest(name, given)}")
    if not given[name].is_floating_point():
        raise DataError(f"{source}: '{name}' holds {given[name].dtype}; expected floating point")
    return given[name]


class Settings:
    """The values of a config.json, each of the type that is asked for.

    Raises:
        DataError: a value is missing or of another type, or not the one that there is a layer for.
    """

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values, self.source = values, source

    def multiple(self, key: str, unit: int, default: int) -> int:
        """How many times `unit` an integer is."""
        value = self.whole(key, default)
        if value % unit:
            raise DataError(f"{self.source}: {key}: expected a multiple of {unit}, not {value}")
        return value // unit

    def whole(self, key: str, default: int | None = None) -> int:
        """An integer of at least 1; `default` if it is missing or null."""
        value = self.values.get(key)
        value = default if value is None else value
        if type(value) is not int or value < 1:
            raise DataError(f"{self.source}: {key}: expected a positive integer, not {value!a}")
        return value

    def number(self, key: str, default: float) -> float:
        """A number of at least 0."""
        value = self.values.get(key, default)
        if type(value) not in (int, float) or not 0 <= value < float("inf"):
            raise DataError(f"{self.source}: {key}: expected a number of at least 0, not {value!a}")
        return float(value)

    def part(self, key: str) -> "Settings":
        """The values in an object; none if it is missing or null."""
        values = self.values.get(key) or {}
        if not isinstance(values, dict):
            raise DataError(f"{self.source}: {key}: expected an object, not {values!a}")
        return Settings(values, f"{self.source}: {key}")

    def words(self, key: str, default: Sequence[str], known: Iterable[str]) -> list[str]:
        """A list of known words."""
        found = self.values.get(key) or list(default)
        if not isinstance(found, list) or not set(map(str, found)) <= set(known):
            raise DataError(f"{self.source}: {key}: expected a list of {' and '.join(known)}, not {found!a}")
        return found

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if type(value) is not bool:
            raise DataError(f"{self.source}: {key}: expected true or false, not {value!a}")
        return value

    def fixed(self, key: str, *wanted: Any) -> None:
        """Refuse a value for which there is no layer; a missing one is the first."""
        if (value := self.values.get(key, wanted[0])) not in wanted:
            raise DataError(
                f"{self.source}: {key} is {value!a}: there is no layer for it; expected {wanted[0]!a}"
            )
