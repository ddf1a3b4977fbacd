"""The weights with which a training begins: those of another model that fit, and which of them stay."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from lrnnx_app.errors import RecipeError, RunError, nearest
from lrnnx_app.runs import weights_file
from lrnnx_app.runs.run import Run

SHOWN = 6  # names in a line of a terminal; the run folder has all


class Taken(NamedTuple):
    """What a model took of another one's weights, and what it did not.

    Attributes:
        source: the run, file or shipped model.
        taken: numbers of those weights that fit.
        of: numbers in the model.
        new: names that the other model lacks.
        reshaped: the shapes here and there, by name.
        left: names that this model lacks.
    """

    source: str
    taken: int
    of: int
    new: list[str]
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    left: list[str]

    def content(self) -> dict[str, Any]:
        """As for JSON, in the words that are shown."""
        shapes = {name: {"here": here, "there": there} for name, (here, there) in self.reshaped.items()}
        return {
            "init_from": self.source,
            "taken": self.taken,
            "of": self.of,
            "new": self.new,
            "of another shape": shapes,
            "left over there": self.left,
        }

    def lines(self) -> Iterator[str]:
        """For a terminal."""
        yield f"{self.source}: took {self.taken:,} of {self.of:,} weights"
        shapes = [f"{name} {here} here, {there} there" for name, (here, there) in self.reshaped.items()]
        lists = {"new": self.new, "of another shape": shapes, "left over there": self.left}
        for title, names in lists.items():
            if names:
                more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                yield f"  {title}: {', '.join(names[:SHOWN])}{more}"


@torch.no_grad()
def take(model: nn.Module, source: str) -> Taken:
    """Load those weights whose names and shapes fit, in place.

    Args:
        source: a run, a shipped model, or a file of a model or of layers.

    Raises:
        RunError: `source` has no readable weights, or none that fits.
    """
    own, theirs = model.state_dict(), weights_file.read_layers(Path(source))
    theirs = Run(source).task().model.state_dict() if theirs is None else theirs
    new = [name for name in own if name not in theirs]
    shapes = {name: (tuple(own[name].shape), tuple(theirs[name].shape)) for name in own if name in theirs}
    reshaped = {name: (here, there) for name, (here, there) in shapes.items() if here != there}
    fitting = {name: theirs[name] for name in shapes if name not in reshaped}
    if not fitting:
        name, (here, there) = next(iter(reshaped.items()), (next(iter(own)), ((), ())))
        why = f"{name} is {here} here and {there} there" if reshaped else f"{name} is not among them"
        raise RunError(f"init_from: no weight of {source} fits this model: {why}; expected one like it")
    model.load_state_dict(fitting, strict=False)
    left = [name for name in theirs if name not in own]
    return Taken(source, _count(fitting.values()), _count(own.values()), new, reshaped, left)


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Let parameters stay as they are: those whose names match a pattern of `fnmatch`, such as encoder.*

    Raises:
        RecipeError: a pattern matches none, and the nearest name is told; or no parameter is left to train.
    """
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        matching = [name for name in parameters if fnmatchcase(name, pattern)]
        if not matching:
            raise RecipeError(f"freeze: no parameter matches '{pattern}'; {nearest(pattern, parameters)}")
        for name in matching:
            parameters[name].requires_grad_(False)
    if not trained(model):
        raise RecipeError(f"freeze: {', '.join(patterns)} match every parameter; expected some to train")


def trained(module: nn.Module) -> int:
    """Numbers in the parameters that training changes."""
    return _count(p for p in module.parameters() if p.requires_grad)


def _count(tensors: Any) -> int:
    return sum(t.numel() for t in tensors)
