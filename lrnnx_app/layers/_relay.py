"""One sequence split in time over several processes: each layer hands its state on to the next process.

While a process waits for the state of a layer's part before, the process before goes on with its next layer.
So n processes take the time of about 1 / n of the sequence, and (n − 1) layers more. What is exchanged is
the state of each layer, once forward and once, as its gradient, backward.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property, reduce
from typing import Any

import torch
from torch import Tensor, distributed
from torch.utils._pytree import tree_flatten, tree_unflatten

from lrnnx_app.spec import Rows

_current: ContextVar["Relay | None"] = ContextVar("relay", default=None)


@dataclass
class Relay:
    """This process's part of a batch's sequences, and the processes with the parts before and after.

    Args:
        rows: of the whole sequences.
        batch: number of rows.
        time: steps of the whole sequences, at least one for each process.
        ranks: the processes of the sequences, in the order of time.
        group: of these processes.
        device: of the batch.

    Attributes:
        sent: bytes that this process has handed on.
    """

    rows: Rows
    batch: int
    time: int
    ranks: list[int]
    group: Any
    device: torch.device
    sent: int = 0
    _waiting: list[tuple[Any, Tensor]] = field(default_factory=list)
    _kept: list[Tensor] | None = None  # takes the messages that arrive
    _again: Iterator[Tensor] | None = None  # messages that have arrived before, instead of new ones

    def __post_init__(self) -> None:
        self.place = self.ranks.index(distributed.get_rank())
        self.start, self.stop = (self.time * at // len(self.ranks) for at in (self.place, self.place + 1))
        # It has a gradient, so that every process takes part in the backward pass whatever is frozen.
        self.anchor = torch.zeros((), device=self.device, requires_grad=True)

    def of(self, x: Tensor) -> Tensor:
        """This process's steps of x (B, T, …)."""
        return x[:, self.start : self.stop]

    @property
    def own(self) -> Rows:
        return self.rows.part(self.start, self.stop)

    def run(
        self, step: Callable[[Any], tuple[Tensor, Any]], state: Any, back: bool = False
    ) -> tuple[Tensor, Any]:
        """y and state of `step(state)`, from the state that the process before hands on.

        Args:
            state: that of the first process, of the same shapes and types as all.
            back: time runs backward, so that the process after hands its state on to this one.
        """
        source, target = self._neighbours(back)
        if source is not None:
            leaves, form = tree_flatten(state)
            state = tree_unflatten(list(_Receive.apply(self.anchor, self, source, *leaves)), form)
        y, state = step(state)
        if target is not None:
            y = _Send.apply(self.anchor, self, target, y, *tree_flatten(state)[0])
        return y, state

    def _neighbours(self, back: bool) -> tuple[int | None, int | None]:
        """The ranks that hand on to this process, and that it hands on to."""
        before = self.ranks[self.place - 1] if self.place else None
        after = self.ranks[self.place + 1] if self.place + 1 < len(self.ranks) else None
        return (after, before) if back else (before, after)

    def shared(self, y: Tensor) -> Tensor:
        """The y of the last process, for all."""
        return _Shared.apply(self.anchor, self, y)

    # ---- time backward ----
    @cached_property
    def mirror(self) -> Tensor:
        """(B, T of this part) for each step, the one in its place when time runs backward; padding stays."""
        t = torch.arange(self.stop - self.start, device=self.device).expand(self.batch, -1)
        lengths = self.own.lengths
        end = len(t[0]) if lengths is None else lengths[:, None]
        return torch.where(t < end, end - 1 - t, t)

    @cached_property
    def mirrored(self) -> Rows:
        """The rows of this part when time runs backward, as `Rows.mirrored` has them for whole sequences."""
        dt, reset, own = None, None, self.own
        if self.rows.reset is not None:  # a sequence starts where another begins in the step after
            reset = self.of(torch.nn.functional.pad(self.rows.reset[:, 1:], (0, 1))).gather(1, self.mirror)
        if self.rows.dt is not None:
            whole = self.rows.mirror(self.rows.dt)
            gaps = self.rows.mirrored(whole).dt
            assert gaps is not None
            dt = self.of(gaps.gather(1, whole)).gather(1, self.mirror)
        return Rows(dt, own.lengths, reset)

    # ---- messages ----
    def send(self, tensors: tuple[Tensor, ...], target: int) -> None:
        """Hand tensors on as one message, and go on at once."""
        if self._again is not None:
            return
        dtype = _widest(tensors)
        message = torch.cat([tensor.detach().to(dtype).flatten() for tensor in tensors])
        self.sent += message.nbytes
        self._waiting.append((distributed.isend(message, target, self.group), message))

    def receive(self, like: tuple[Tensor, ...], source: int) -> list[Tensor]:
        """Tensors as these from another process."""
        if self._again is not None:
            message = next(self._again)
        else:
            size = sum(tensor.numel() for tensor in like)
            message = torch.empty(size, dtype=_widest(like), device=self.device)
            distributed.recv(message, source, self.group)
        if self._kept is not None:
            self._kept.append(message)
        parts = message.split([math.prod(tensor.shape) for tensor in like])
        return [part.view(t.shape).to(t.dtype) for part, t in zip(parts, like, strict=True)]

    @contextmanager
    def keeping(self, messages: list[Tensor]) -> Iterator[None]:
        """Within it, the messages that arrive are put into `messages`."""
        self._kept = messages
        try:
            yield
        finally:
            self._kept = None

    @contextmanager
    def repeating(self, messages: list[Tensor]) -> Iterator[None]:
        """Within it, `messages` arrive once more, and nothing is sent."""
        self._again = iter(messages)
        try:
            with relayed(self):
                yield
        finally:
            self._again = None

    def finish(self) -> None:
        """Wait until all messages have gone; call it once the backward pass has ended."""
        for work, _ in self._waiting:
            work.wait()
        self._waiting.clear()


@contextmanager
def relayed(relay: Relay) -> Iterator[Relay]:
    """Within it, layers and pools work on this process's part of time."""
    token = _current.set(relay)
    try:
        yield relay
    finally:
        _current.reset(token)


def through(
    step: Callable[[Any], tuple[Tensor, Any]], state: Any, first: Callable[[], Any] | None = None
) -> tuple[Tensor, Any]:
    """`step(state)`; within `relayed`, the first process's state, `first()` if it is None, is handed on."""
    relay = current()
    if relay is None:
        return step(state)
    return relay.run(step, first() if first is not None and state is None else state)


def shared(y: Tensor) -> Tensor:
    """y; within `relayed`, that of the process with the end of time."""
    relay = current()
    return y if relay is None else relay.shared(y)


def current() -> Relay | None:
    """What `relayed` set. Nothing in compiled code, which takes whole sequences and cannot look there."""
    return None if torch.compiler.is_compiling() else _current.get()


def twice() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The contexts of a run and of its repetition, as `context_fn` of torch's checkpoint: what the run has
    received is there again, and what it has sent is not sent again.
    """
    relay, messages = current(), []
    if relay is None:
        return nullcontext(), nullcontext()
    return relay.keeping(messages), relay.repeating(messages)


def _widest(tensors: tuple[Tensor, ...]) -> torch.dtype:
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors))


class _Receive(torch.autograd.Function):
    """A state from another process; its gradient goes back there."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, relay: Relay, source: int, *like: Tensor) -> tuple[Tensor, ...]:
        ctx.relay, ctx.source = relay, source
        return tuple(relay.receive(like, source))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ctx.relay.send(gradients, ctx.source)
        return (torch.zeros_like(ctx.relay.anchor), None, None, *[None] * len(gradients))


class _Send(torch.autograd.Function):
    """A state to another process, and y unchanged; the gradient of the state comes from there."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, relay: Relay, target: int, y: Tensor, *state: Tensor) -> Tensor:
        ctx.relay, ctx.target = relay, target
        ctx.like = tuple(torch.empty_like(tensor, device="meta") for tensor in state)
        relay.send(state, target)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  (of y)
        return (
            torch.zeros_like(ctx.relay.anchor),
            None,
            None,
            gradient,
            *ctx.relay.receive(ctx.like, ctx.target),
        )


class _Shared(torch.autograd.Function):
    """The last process's y in every process; their gradients are summed there."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, relay: Relay, y: Tensor) -> Tensor:
        ctx.relay = relay
        y = y.detach().clone()
        distributed.broadcast(y, relay.ranks[-1], relay.group)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  (of y)
        relay, total = ctx.relay, gradient.clone()
        distributed.reduce(total, relay.ranks[-1], group=relay.group)
        last = relay.place + 1 == len(relay.ranks)
        return torch.zeros_like(relay.anchor), None, total if last else torch.zeros_like(total)
