"""What data, models and tasks agree on: batches, examples, and what a model must know of its data."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

SPLITS = ("train", "valid", "test")
TARGETS = {  # kinds of y
    "class": "the index of a class",
    "step": "numbers (T, d_output), or tokens (T,), for every step",
    "vector": "numbers (d_output,) for the whole example",
}


class Batch(NamedTuple):
    """Several examples, right-padded.

    Attributes:
        x: (B, T, d_input) float or (B, T) tokens.
        y: as `DataSpec.target` says, with the batch first.
        lengths: (B,), or None if all rows are full.
        dt: (B, T) time since the previous sample, or None.
        names: of the rows' sources.
        reset: (B, T) true where an example starts in rows that hold several; y has one entry for each then.
    """

    x: Tensor
    y: Tensor
    lengths: Tensor | None = None
    dt: Tensor | None = None
    names: tuple[str, ...] = ()
    reset: Tensor | None = None


class Example(NamedTuple):
    """One row of a batch: x (T, d_input) or (T,) tokens, y as `DataSpec.target` says, dt (T,) or None."""

    x: Tensor
    y: Tensor
    dt: Tensor | None = None
    name: str = ""


@dataclass(frozen=True)
class DataSpec:
    """What a model must know of its data; kept in the checkpoint so that a run needs no data to be used."""

    d_input: int
    d_output: int
    tokens: bool = False  # x holds integers below d_input
    classes: tuple[str, ...] = ()
    sample_rate: int = 0  # of audio, in Hz
    target: str = ""  # one of TARGETS; "" in checkpoints from before there was a choice

    @classmethod
    def read(cls, content: dict[str, Any]) -> "DataSpec":
        """The inverse of `dataclasses.asdict`, from a checkpoint or JSON.

        Raises:
            KeyError, TypeError, ValueError: it is of no data set.
        """
        spec = cls(**{**content, "classes": tuple(content["classes"])})
        numbers = (spec.d_input, spec.d_output, spec.sample_rate)
        if any(type(number) is not int for number in numbers) or min(numbers[:2]) < 1 or spec.sample_rate < 0:
            raise ValueError(f"inputs, outputs and a rate of {numbers}; expected positive whole numbers")
        if spec.target not in ("", *TARGETS):
            raise ValueError(f"a target of kind {spec.target!r}; expected one of {', '.join(TARGETS)}")
        if any(type(name) is not str for name in spec.classes) or type(spec.tokens) is not bool:
            raise TypeError("classes that are no names")
        return spec
