"""The types that data, layers, models and tasks exchange: rows, batches, examples, descriptions of data."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

SPLITS = ("train", "valid", "test")
TARGETS = {  # kinds of y
    "class": "the index of a class",
    "step": "numbers (T, d_output), or tokens (T,), for every step",
    "vector": "numbers (d_output,) for the whole example",
}


def within(lengths: Tensor, time: int, ndim: int) -> Tensor:
    """(B, T, 1, …) bool, of `ndim` axes: the steps before a row's end."""
    valid = torch.arange(time, device=lengths.device) < lengths[:, None]
    return valid[(...,) + (None,) * (ndim - 2)]


def unpadded(x: Any, lengths: Tensor | None, fill: float = 0.0) -> Any:
    """x (B, T, …) with `fill` beyond each row's length, where x may be NaN; None for None."""
    if x is None or lengths is None:
        return x
    return torch.where(within(lengths, x.shape[1], x.ndim), x, fill)


class Rows(NamedTuple):
    """Elapsed times, lengths and starts of sequences in the rows (B, T, …) of a batch.

    Attributes:
        dt: (B, T) elapsed time since the sample before; None if samples are evenly spaced.
        lengths: (B,) valid steps of right-padded rows; None if all rows are full.
        reset: (B, T) true where a packed sequence starts; None if every row is one sequence.
    """

    dt: Tensor | None = None
    lengths: Tensor | None = None
    reset: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether all rows are evenly sampled, full, and one sequence each."""
        return self.dt is None and self.lengths is None and self.reset is None

    def valid(self, x: Tensor) -> Tensor | None:
        """(B, T) true at the steps of x (B, T, …) that are not padding; None if none is padding."""
        return None if self.lengths is None else within(self.lengths, x.shape[1], 2)

    def unpadded(self, x: Tensor, fill: float = 0.0) -> Tensor:
        """x (B, T, …) with `fill` beyond each row's length, where x may be NaN."""
        return unpadded(x, self.lengths, fill)

    def counts(self, x: Tensor) -> Tensor:
        """(B,) valid steps of the rows of x (B, T, …)."""
        if self.lengths is not None:
            return self.lengths
        return torch.full((x.shape[0],), x.shape[1], dtype=torch.int64, device=x.device)

    def part(self, start: int, stop: int) -> "Rows":
        """The rows of steps `start` to `stop` − 1."""
        return Rows(
            None if self.dt is None else self.dt[:, start:stop],
            None if self.lengths is None else (self.lengths - start).clamp(0, stop - start),
            None if self.reset is None else self.reset[:, start:stop],
        )

    def mirror(self, x: Tensor) -> Tensor:
        """For every step of x (B, T, …), the step (B, T) in its place when each sequence is reversed.

        Padding keeps its place. Mirroring twice is the identity.
        """
        time = x.shape[1]
        t = torch.arange(time, device=x.device).expand(x.shape[:2])
        end = x.new_full((x.shape[0], 1), time, dtype=torch.long)
        end = end if self.lengths is None else self.lengths[:, None].long()
        starts = t == 0 if self.reset is None else self.reset | (t == 0)
        following = torch.where(starts, t, end).roll(-1, 1)
        following = torch.cat((following[:, :-1], end), 1)
        after = torch.minimum(following.flip(1).cummin(1).values.flip(1), end)
        return torch.where(t < end, self._first(t) + after - 1 - t, t)

    def mirrored(self, mirror: Tensor) -> "Rows":
        """The rows of mirrored sequences: dt is then the time to the sample after, in the original order.

        The last sample comes first in a mirrored sequence, and gets the dt of the original first sample.
        """
        if self.dt is None:
            return self
        t = torch.arange(self.dt.shape[1], device=self.dt.device).expand_as(self.dt)
        first, inside = self._first(t), (mirror + 1).clamp_max(self.dt.shape[1] - 1)
        return self._replace(dt=self.dt.gather(1, torch.where(t == first, first, inside)))

    def _first(self, t: Tensor) -> Tensor:
        """The first step of the sequence of each step t (B, T)."""
        starts = t == 0 if self.reset is None else self.reset | (t == 0)
        return torch.where(starts, t, 0).cummax(1).values


EVEN = Rows()  # for evenly sampled, full rows of one sequence each


class Batch(NamedTuple):
    """Several examples, right-padded.

    Attributes:
        x: (B, T, d_input) float or (B, T) tokens.
        y: targets of the kind `DataSpec.target`, with the batch as first axis.
        lengths: (B,) valid steps, or None if all rows are full.
        dt: (B, T) elapsed time since the sample before, or None.
        names: names of the examples.
        reset: (B, T) true where an example starts, in rows with several examples. A y of classes then has one
            for each example.
        bytes: (B,) bytes of text in the y of tokens that are more than a byte; None for other data.
    """

    x: Tensor
    y: Tensor
    lengths: Tensor | None = None
    dt: Tensor | None = None
    names: tuple[str, ...] = ()
    reset: Tensor | None = None
    bytes: Tensor | None = None

    @property
    def rows(self) -> Rows:
        return Rows(self.dt, self.lengths, self.reset)


class Example(NamedTuple):
    """One row of a batch: x (T, d_input) or (T,) tokens, y of the kind `DataSpec.target`, dt (T,) or None."""

    x: Tensor
    y: Tensor
    dt: Tensor | None = None
    name: str = ""


@dataclass(frozen=True)
class DataSpec:
    """The description of data that a model needs; checkpoints hold it, so a run is usable without data."""

    d_input: int
    d_output: int
    tokens: bool = False  # x holds integers below d_input
    classes: tuple[str, ...] = ()
    sample_rate: int = 0  # of audio, in Hz
    target: str = ""  # one of TARGETS; "" in older checkpoints

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
