"""Runs live streams through a model chunk by chunk, on a GPU by a CUDA graph; states can be saved."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lrnnx_app.errors import StreamError
from lrnnx_app.layers._constants import frozen
from lrnnx_app.models._base import Model, each
from lrnnx_app.ops._operands import INTEGER
from lrnnx_app.ops.advance import advance
from lrnnx_app.ops.capture import CaptureError, capture
from lrnnx_app.spec import Rows
from lrnnx_app.streaming.health import Health
from lrnnx_app.streaming.numbers import Flushing, bounded

CHUNK_SECONDS = 0.016  # chunk for a model without a hop
CHUNK_STEPS = 64  # chunk for a model without hop and sampling rate
WAITING = "waiting"  # in a saved state, the name of the samples that do not yet fill a hop


@dataclass
class _Pass:
    """The input and output buffers of the usual chunk, and its graph if it has one."""

    x: Tensor
    dt: Tensor | None
    graph: torch.cuda.CUDAGraph | None = None
    y: Tensor | None = None


class StreamingSession:
    """Feeds a model in evaluation mode chunk by chunk and carries the state of `batch` streams.

    On a GPU the work of one chunk is captured as a CUDA graph and replayed. On a CPU, or where a capture
    fails, the same code runs without a graph. The session uses the weights that the model has when the
    session is made; make a new session after changing them.

    If the output or state of a stream is not finite, the stream is reset; until then its output is zero.
    Other streams are not affected. Sound is clipped to ±16 full scales. On a CPU, the thread that calls
    `push` treats subnormal numbers as zero during the call.

    Args:
        model: any causal model. Its own training or evaluation mode is not changed.
        batch: number of streams; each may start, pause and end on its own.
        chunk: samples of the usual push; None is the model's hop. A push of another size works too.
        graph: False runs without a CUDA graph.

    Attributes:
        graph_reason: why no graph runs; "" if one runs or will at the first push.
        restarts: for each stream, how often it was reset because its numbers were not finite.

    Raises:
        StreamError: the model is not causal, or chunk or batch is below 1.
    """

    def __init__(self, model: Model, batch: int = 1, chunk: int | None = None, *, graph: bool = True) -> None:
        self.chunk, self.batch, self.hop = model.hop if chunk is None else chunk, batch, model.hop
        if min(self.chunk, batch) < 1:
            raise StreamError(f"chunk {self.chunk} and batch {batch}: expected at least 1")
        self.usual = max(self.hop, self.chunk // self.hop * self.hop)  # samples of one pass
        self.spec = model.spec
        self._model = frozen(model)
        like = next(self._model.parameters())
        self.device, self._real = like.device, like.dtype
        self._fresh = _tensors(self._model.init_state(1))
        self._state = each(_cloned, self._model.init_state(batch))
        self._names, self._leaves = zip(*named_tensors(self._state), strict=True)
        self._active = torch.ones(batch, dtype=torch.bool, device=self.device)
        self._all_active = True
        self._passes: dict[bool, _Pass] = {}
        self._waiting = self._input(0)
        self._health = Health(batch, self.device)
        self.graph_reason = ""
        if not graph:
            self.graph_reason = "switched off"
        elif self.device.type != "cuda":
            self.graph_reason = "the model is on the CPU"

    @property
    def restarts(self) -> list[int]:
        return self._health.restarts

    def warm_up(self, timed: bool = False) -> None:
        """Do now what would make the first push slow. The states of streams do not change.

        Args:
            timed: whether pushes will have dt.
        """
        usual = self._pass(timed)
        if usual.graph is None:
            with self._untouched():
                self._run_model(usual.x, usual.dt)

    def push(
        self,
        x: Tensor,
        dt: Tensor | None = None,
        *,
        active: Tensor | Sequence[bool] | None = None,
        lengths: Tensor | Sequence[int] | None = None,
        last: bool = False,
    ) -> Tensor:
        """Feed samples to the streams, and return the outputs of all hops that they complete.

        Args:
            x: (B, T, d_input), or (B, T) tokens, T ≥ 1; moved to the model's device and dtype.
            dt: (B, T) elapsed time since the sample before each one.
            active: (B,) bool; false for streams that pause. Ignore their output.
            lengths: (B,) number of samples of x that belong to each stream; 0 pauses it.
            last: x goes through the model in one pass, by its parallel form, and only the output after the
                last sample of each stream is made; for what is not live, such as a prompt.

        Returns:
            y (B, T', d_output), where T' counts whole hops; or (B, d_output) of a model that pools over time,
            and with `last`.

        Raises:
            StreamError: a shape or an option does not fit; says which was expected. Lengths on a GPU are
                held to 0 … T instead.
        """
        self._check(x, dt, active is not None or lengths is not None)
        lengths = None if lengths is None else self._lengths(lengths, x.shape[1])
        if self.hop > 1 and (self._waiting.shape[1] or x.shape[1] % self.hop):
            x = torch.cat((self._waiting, x.to(self._waiting)), 1)
            whole = x.shape[1] // self.hop * self.hop
            self._waiting = x[:, whole:].clone()
            x = x[:, :whole]
        if lengths is not None:
            active = lengths > 0 if active is None else active
        self._activate(active)
        self._heal()
        size = max(self.usual, x.shape[1]) if last else self.usual
        parts = [
            self._run(part, None if dt is None else dt[:, i * size :][:, :size], limit, last)
            for i, part in enumerate(x.split(size, 1))
            for limit in [None if lengths is None else (lengths - i * size).clamp(0, part.shape[1])]
            if part.shape[1]
        ]
        if not parts:
            return self._nothing()
        self._health.report(self._leaves)
        if self.device.type == "cpu":
            self._heal()
        return torch.cat(parts, 1) if len(parts) > 1 and parts[0].ndim == 3 else parts[-1]

    def finish(self) -> Tensor:
        """Fill the last hop with silence, return its outputs, and reset all streams."""
        count = self._waiting.shape[1]
        y = self.push(self._input(-count % self.hop)) if count else self._nothing()
        self.reset()
        return y[:, :count]

    def reset(self, streams: Tensor | Sequence[bool] | None = None) -> None:
        """Reset the states of the streams where `streams` (B,) is true; None resets all.

        Raises:
            StreamError: single streams, while samples wait for the end of their hop.
        """
        if streams is None:
            self._waiting = self._input(0)
        elif self._waiting.shape[1]:
            raise StreamError(self._between_hops("reset single streams"))
        self._restart(torch.ones(self.batch, dtype=torch.bool) if streams is None else self._mask(streams))

    def _heal(self) -> None:
        """Reset the streams whose numbers were found not to be finite."""
        if (bad := self._health.told()) is not None:
            self._restart(bad)

    def _restart(self, mask: Tensor) -> None:
        mask = mask.to(self.device)
        with torch.inference_mode():
            for leaf, fresh in zip(self._leaves, self._fresh, strict=True):
                torch.where(mask.view(-1, *[1] * (leaf.ndim - 1)), fresh, leaf, out=leaf)

    def state(self, streams: Sequence[int] | None = None) -> dict[str, Tensor]:
        """A copy of the streams' states by name, batch first; all streams if None."""
        everything = dict(zip(self._names, self._leaves, strict=True))
        if self.hop > 1:
            everything[WAITING] = self._waiting
        rows = list(range(self.batch)) if streams is None else list(streams)
        return {name: tensor[rows].clone() for name, tensor in everything.items()}

    def load_state(self, state: dict[str, Tensor], streams: Sequence[int] | None = None) -> None:
        """Continue these streams (all if None) from the states that `state` returned, here or elsewhere.

        Raises:
            StreamError: it is another model's, or for another number of streams.
        """
        rows = list(range(self.batch)) if streams is None else list(streams)
        expected = {
            name: (len(rows), *leaf.shape[1:]) for name, leaf in zip(self._names, self._leaves, strict=True)
        }
        found = {name: tuple(tensor.shape) for name, tensor in state.items() if name != WAITING}
        differing = sorted(name for name in expected | found if expected.get(name) != found.get(name))
        if differing:
            name = differing[0]
            wanted, given = expected.get(name, "no such tensor"), found.get(name, "missing")
            raise StreamError(
                f"state {name} is {given}: expected {wanted}, as of this model and {len(rows)} streams"
            )
        waiting = state.get(WAITING, self._waiting[rows, :0]).to(self._waiting)
        if len(rows) < self.batch and waiting.shape[1] != self._waiting.shape[1]:
            raise StreamError(self._between_hops("load single streams"))
        for name, leaf in zip(self._names, self._leaves, strict=True):
            leaf[rows] = state[name].to(leaf)
        if len(rows) == self.batch:
            self._waiting = waiting[torch.argsort(torch.tensor(rows))].clone()
        else:
            self._waiting[rows] = waiting

    def save(self, path: Path, streams: Sequence[int] | None = None) -> None:
        """Write the streams' states as safetensors."""
        save_file({name: tensor.cpu().contiguous() for name, tensor in self.state(streams).items()}, path)

    def load(self, path: Path, streams: Sequence[int] | None = None) -> None:
        """Continue from a file that `save` wrote.

        Raises:
            StreamError: the file is missing, unreadable, or another model's.
        """
        try:
            state = load_file(path)
        except (OSError, SafetensorError) as error:
            raise StreamError(
                f"{path}: not a saved stream ({error}); expected a file that `save` wrote"
            ) from error
        self.load_state(state, streams)

    def _run(self, x: Tensor, dt: Tensor | None, lengths: Tensor | None, last: bool) -> Tensor:
        if last or lengths is not None or x.shape[1] != self.usual:
            dt = None if dt is None else dt.to(self.device, self._real)
            y = self._run_model(x.to(self._waiting), dt, lengths, last)
        else:
            usual = self._pass(dt is not None)
            usual.x.copy_(x)
            if dt is not None and usual.dt is not None:
                usual.dt.copy_(dt)
            if usual.graph is None:
                y = self._run_model(usual.x, usual.dt)
            else:
                usual.graph.replay()
                assert usual.y is not None
                y = usual.y
        return y.clone()  # a graph's result is overwritten by the next replay

    def _run_model(
        self, x: Tensor, dt: Tensor | None, lengths: Tensor | None = None, last: bool = False
    ) -> Tensor:
        """Run the model once; overwrites the states of active streams and returns its outputs."""
        in_parts = last and self._model.splits
        with torch.inference_mode(), Flushing() if self.device.type == "cpu" else nullcontext():
            x = bounded(x, self.spec)
            y, state = self._model(x, self._state, dt=dt, lengths=lengths, read=not in_parts)
            if last and y.ndim == 3:
                ends = Rows(lengths=lengths).counts(y).clamp_min(1) - 1
                y = y[torch.arange(len(y), device=y.device), ends]
            y = self._model.readout(y) if in_parts else y
            advance(self._leaves, _tensors(state), self._active)
            return self._health.seen(y, self._active, lengths)

    def _pass(self, timed: bool) -> _Pass:
        """The buffers of the usual chunk, and its graph, which the first call captures if it can."""
        if timed not in self._passes:
            dt = torch.ones(self.batch, self.usual, device=self.device, dtype=self._real)
            made = _Pass(self._input(self.usual), dt if timed else None)
            if not self.graph_reason:
                try:
                    with self._untouched():
                        made.graph, made.y = capture(lambda: self._run_model(made.x, made.dt), self.device)
                except CaptureError as error:
                    self.graph_reason = str(error)
            self._passes[timed] = made
        return self._passes[timed]

    @contextmanager
    def _untouched(self) -> Iterator[None]:
        before = [leaf.clone() for leaf in self._leaves]
        try:
            yield
        finally:
            for leaf, value in zip(self._leaves, before, strict=True):
                leaf.copy_(value)

    def _input(self, time: int) -> Tensor:
        shape = (self.batch, time) if self.spec.tokens else (self.batch, time, self.spec.d_input)
        return torch.zeros(shape, device=self.device, dtype=torch.int64 if self.spec.tokens else self._real)

    def _nothing(self) -> Tensor:
        return torch.zeros(self.batch, 0, self.spec.d_output, device=self.device, dtype=self._real)

    def _activate(self, active: Tensor | Sequence[bool] | None) -> None:
        if active is not None:
            self._active.copy_(self._mask(active))
        elif not self._all_active:
            self._active.fill_(True)
        self._all_active = active is None

    def _mask(self, streams: Tensor | Sequence[bool]) -> Tensor:
        mask = torch.as_tensor(streams, dtype=torch.bool)
        if mask.shape != (self.batch,):
            raise StreamError(
                f"a mask of shape {tuple(mask.shape)}: expected one entry for each of {self.batch} streams"
            )
        return mask

    def _lengths(self, lengths: Tensor | Sequence[int], time: int) -> Tensor:
        given = torch.as_tensor(lengths)
        if given.shape != (self.batch,) or given.dtype not in INTEGER:
            shown = f"{tuple(given.shape)}, {given.dtype}".replace("torch.", "")
            raise StreamError(f"lengths ({shown}): expected an integer for each of {self.batch} streams")
        if not given.is_cuda and ((given < 0) | (given > time)).any():
            raise StreamError(f"lengths {given.tolist()}: expected 0 to {time}, the samples of this push")
        return given.to(self.device)

    def _check(self, x: Tensor, dt: Tensor | None, single: bool) -> None:
        expected = (self.batch, "T ≥ 1", *([] if self.spec.tokens else [self.spec.d_input]))
        if (
            x.ndim != len(expected)
            or x.shape[0] != self.batch
            or x.shape[2:] != expected[2:]
            or not x.shape[1]
        ):
            raise StreamError(f"a push of {tuple(x.shape)}: expected {expected}".replace("'", ""))
        if dt is not None and self.hop > 1:
            raise StreamError("dt: this model takes evenly spaced samples; leave it out")
        if dt is not None and dt.shape != x.shape[:2]:
            raise StreamError(f"dt of {tuple(dt.shape)}: expected {tuple(x.shape[:2])}")
        if single and self.hop > 1 and (self._waiting.shape[1] or x.shape[1] % self.hop):
            raise StreamError(self._between_hops("push single streams"))

    def _between_hops(self, what: str) -> str:
        return f"samples wait for the end of their hop of {self.hop}: expected whole hops in order to {what}"


def live_chunk(model: Model) -> int:
    """Steps of a live stream's chunk: the model's hop, or some milliseconds for a model without one."""
    return model.hop if model.hop > 1 else round(CHUNK_SECONDS * model.spec.sample_rate) or CHUNK_STEPS


def named_tensors(state: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested tuples with their dotted names."""
    if isinstance(state, Tensor):
        yield prefix, state
        return
    keys = getattr(state, "_fields", range(len(state)))
    for key, value in zip(keys, state, strict=True):
        yield from named_tensors(value, f"{prefix}.{key}" if prefix else str(key))


def _tensors(state: Any) -> list[Tensor]:
    """The tensors of nested tuples, in the order of `named_tensors`."""
    return [state] if isinstance(state, Tensor) else [leaf for part in state for leaf in _tensors(part)]


def _cloned(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)
