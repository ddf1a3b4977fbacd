"""A layer in both directions: one copy forward, one over time reversed within each sequence."""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from lrnnx_app.errors import StreamError, one_of
from lrnnx_app.layers._base import Layer
from lrnnx_app.layers._definition import affine, definition_of
from lrnnx_app.layers._linear import Linear
from lrnnx_app.layers._taken import of_any

JOINS = ("concat", "sum")


class Bidirectional(nn.Module):
    """y = W [forward(x), backward(x)] (`concat`) or their sum, with two layers from `make`.

    A row is reversed within its valid `lengths`, and a packed row within each of its sequences. Nothing can
    be carried between calls, since the backward copy starts at the end of a sequence.
    """

    causal = False

    def __init__(self, make: Callable[[], Layer], join: str = "concat") -> None:
        super().__init__()
        one_of("join", join, JOINS)
        self.ahead, self.back = make(), make()
        self.d_model, self.uses_dt = self.ahead.d_model, self.ahead.uses_dt
        self.join = Linear(2 * self.d_model, self.d_model) if join == "concat" else None

    @of_any
    def forward(
        self,
        x: Tensor,
        state: Any = None,
        *,
        dt: Tensor | None = None,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Run whole sequences; arguments as of `Layer.forward`. There is no state to hand on: it is None.

        Raises:
            StreamError: a state is given.
        """
        if state is not None:
            refuse_stream(type(self.ahead).__name__)
        mirror, first = reversal(x, lengths, reset)
        gaps = None if dt is None else reversed_gaps(dt, mirror, first)
        there, _ = self.ahead(x, dt=dt, lengths=lengths, reset=reset)
        back, _ = self.back(_take(x, mirror), dt=gaps, lengths=lengths, reset=reset)
        back = _take(back, mirror)
        return (there + back if self.join is None else self.join(torch.cat((there, back), -1))), None

    def init_state(self, batch: int) -> NoReturn:
        """Raises StreamError."""
        refuse_stream(type(self.ahead).__name__)

    def step(self, x: Tensor, state: Any, dt: Tensor | None = None) -> NoReturn:
        """Raises StreamError."""
        refuse_stream(type(self.ahead).__name__)

    def recurrent_parameters(self):
        """The recurrent parameters of both copies."""
        yield from self.ahead.recurrent_parameters()
        yield from self.back.recurrent_parameters()

    def extra_repr(self) -> str:
        return f"d_model={self.d_model}, join={'sum' if self.join is None else 'concat'}"


def refuse_stream(name: str) -> NoReturn:
    raise StreamError(
        f"a bidirectional {name} needs the end of a sequence before its first output: "
        "train with bidirectional: false to stream"
    )


def reversal(x: Tensor, lengths: Tensor | None, reset: Tensor | None) -> tuple[Tensor, Tensor]:
    """For every step of x (B, T, …), its mirror image in its own sequence; and its sequence's first step.

    Steps beyond a row's length are their own image. Both are (B, T) indices of time, and mirroring twice is
    the identity.
    """
    batch, time = x.shape[:2]
    t = torch.arange(time, device=x.device).expand(batch, time)
    end = x.new_full((batch, 1), time, dtype=torch.long) if lengths is None else lengths[:, None].long()
    starts = t == 0 if reset is None else reset | (t == 0)
    first = torch.where(starts, t, 0).cummax(1).values
    following = torch.where(starts, t, end).roll(-1, 1)
    following = torch.cat((following[:, :-1], end), 1)
    after = torch.minimum(following.flip(1).cummin(1).values.flip(1), end)
    return torch.where(t < end, first + after - 1 - t, t), first


def reversed_gaps(dt: Tensor, mirror: Tensor, first: Tensor) -> Tensor:
    """Elapsed time (B, T) as a reversed sequence sees it: the gap to the sample that came after.

    The last sample, which opens the reversed sequence, gets the gap that opened the original one.
    """
    t = torch.arange(dt.shape[1], device=dt.device)
    inside = (mirror + 1).clamp_max(dt.shape[1] - 1)
    return dt.gather(1, torch.where(t == first, first, inside))


def _take(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index[..., None].expand_as(x))


def definition(layer: Bidirectional, x: Tensor, dt: Tensor | None = None) -> Tensor:
    """forward(x) and backward(x reversed) reversed, by the definition of the layer, joined by W or their sum.

    Gaps of time are between the same samples both ways; the one before the first sample opens both passes.
    """
    defined = definition_of(type(layer.ahead))
    gaps = None if dt is None else torch.cat((dt[:, :1], dt[:, 1:].flip(1)), 1)
    there, back = defined(layer.ahead, x, dt), defined(layer.back, x.flip(1), gaps).flip(1)
    return there + back if layer.join is None else affine(layer.join, torch.cat((there, back), -1))
