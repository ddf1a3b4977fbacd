"""A layer in both directions: one copy forward, one over time reversed within each sequence."""

from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from lrnnx_app.errors import StreamError, one_of
from lrnnx_app.layers import _relay
from lrnnx_app.layers._base import Layer
from lrnnx_app.layers._definition import affine, definition_of
from lrnnx_app.layers._linear import Linear
from lrnnx_app.spec import Rows

JOINS = ("concat", "sum")


class Bidirectional(Layer):
    """y = W [forward(x), backward(x)] (`concat`) or their sum, with two layers from `make`.

    A row is reversed within its valid `lengths`, and a packed row within each of its sequences. Nothing can
    be carried between calls, since the backward copy starts at the end of a sequence: a state is refused, and
    the one that is returned is None.
    """

    causal = False

    def __init__(self, make: Callable[[], Layer], join: str = "concat") -> None:
        ahead = make()
        super().__init__(ahead.d_model)
        one_of("join", join, JOINS)
        self.ahead, self.back = ahead, make()
        self.uses_dt, self.rule = ahead.uses_dt, ahead.rule
        self.join = Linear(2 * self.d_model, self.d_model) if join == "concat" else None

    def check_dt(self, dt: Tensor | None) -> None:
        self.ahead.check_dt(dt)

    def run(self, x: Tensor, state: Any, rows: Rows) -> tuple[Tensor, None]:
        if state is not None:
            refuse_stream(type(self.ahead).__name__)
        there, _ = carried(self.ahead, x, None, rows)
        back = self._backward(x, rows)
        return (there + back if self.join is None else self.join(torch.cat((there, back), -1))), None

    def _backward(self, x: Tensor, rows: Rows) -> Tensor:
        if (relay := _relay.current()) is None:
            mirror = rows.mirror(x)
            back, _ = self.back(_take(x, mirror), **rows.mirrored(mirror)._asdict())
            return _take(back, mirror)
        mirrored, options = _take(x, relay.mirror), relay.mirrored._asdict()
        state = self.back.init_state(len(x))
        back, _ = relay.run(lambda state: self.back(mirrored, state, **options), state, back=True)
        return _take(back, relay.mirror)

    def init_state(self, batch: int) -> NoReturn:
        """Raises StreamError."""
        refuse_stream(type(self.ahead).__name__)

    def step(self, x: Tensor, state: Any, dt: Tensor | None = None) -> NoReturn:
        """Raises StreamError."""
        refuse_stream(type(self.ahead).__name__)

    def recurrent_parameters(self) -> Iterator[nn.Parameter]:
        """The recurrent parameters of both copies."""
        yield from self.ahead.recurrent_parameters()
        yield from self.back.recurrent_parameters()

    def extra_repr(self) -> str:
        return f"d_model={self.d_model}, join={'sum' if self.join is None else 'concat'}"


def carried(layer: Layer, x: Tensor, state: Any, rows: Rows) -> tuple[Tensor, Any]:
    """What the layer returns; if time is split over processes, with the state of the part before."""
    if isinstance(layer, Bidirectional):  # whose copies are carried each
        return layer(x, state, **rows._asdict())
    return _relay.through(
        lambda state: layer(x, state, **rows._asdict()), state, lambda: layer.init_state(len(x))
    )


def refuse_stream(name: str) -> NoReturn:
    raise StreamError(
        f"a bidirectional {name} needs the end of a sequence before its first output: "
        "train with bidirectional: false to stream"
    )


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
