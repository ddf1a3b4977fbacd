"""One chunk of a stream as a pure function of tensors, which the formats that hold a program share."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_flatten, tree_unflatten

from lrnnx_app.errors import StreamError
from lrnnx_app.layers._bank import BankLayer
from lrnnx_app.layers._base import Layer
from lrnnx_app.layers._constants import frozen, own_memory
from lrnnx_app.layers._event_pool import EventPool
from lrnnx_app.models._base import Model
from lrnnx_app.ops._table import TOLERANCE as ROUNDING
from lrnnx_app.streaming.session import named_tensors

CHUNKS = 5  # chunks on which a written program is compared with the model
TOLERANCE = 100 * ROUNDING[torch.float32]  # ‖program − model‖ / ‖model‖
Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]  # (x, [dt,] *state) -> (y, *state)


@dataclass(frozen=True)
class State:
    """A state tensor of a program: its shape without the batch, and its initial value."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    initial: Any


class Chunk(nn.Module):
    """A module (x, [dt,] *state) -> (y, *state) that runs a model on one chunk, with its state as tensors.

    Args:
        model: a causal model.
        chunk: samples of one call, a multiple of the model's hop; None is the hop, or 64 if the hop is 1.
        timed: elapsed time dt is a second input.

    Raises:
        StreamError: the model is not causal or takes no elapsed time, or the chunk is no multiple of its hop.
    """

    def __init__(self, model: Model, chunk: int | None = None, timed: bool = False) -> None:
        super().__init__()
        self.spec, self.hop, self.timed = model.spec, model.hop, timed
        self.lookahead, self.delay = model.lookahead, model.delay
        self.chunk = chunk or (model.hop if model.hop > 1 else 64)
        if self.chunk < 1 or self.chunk % model.hop:
            raise StreamError(f"chunk {self.chunk}: expected a multiple of the model's hop of {model.hop}")
        if timed and model.hop > 1:
            raise StreamError("timed: this model takes evenly spaced samples; leave it out")
        fresh = model.init_state(1)
        self.names = [name for name, _ in named_tensors(fresh)]
        leaves, self.tree = tree_flatten(fresh)
        self.states = [
            State(name, tuple(leaf.shape[1:]), str(leaf.dtype).removeprefix("torch."), _brief(leaf[0]))
            for name, leaf in zip(self.names, leaves, strict=True)
        ]
        self.fresh = leaves
        self.model = frozen(model)
        for module in self.model.modules():  # "auto" chooses by the batch, which is dynamic here
            if isinstance(module, Layer) and getattr(module, "path", "") == "auto":
                module.path = "chunk" if isinstance(module, BankLayer) else "fft"  # type: ignore[assignment]  (a str, no part)
        with torch.no_grad():
            self(*self.example(2))  # computes what depends on parameters alone; it becomes constants
        own_memory(self.model)

    def example(self, batch: int, seed: int = 0) -> list[Tensor]:
        """Random inputs for a first chunk, and the initial state."""
        generator = torch.Generator().manual_seed(seed)
        return [*self.signal(batch, self.chunk, generator), *self.start(batch)]

    def signal(self, batch: int, time: int, generator: torch.Generator) -> list[Tensor]:
        """Random x, and dt if the program takes it."""
        if self.spec.tokens:
            x = torch.randint(self.spec.d_input, (batch, time), generator=generator)
        else:
            x = torch.randn(batch, time, self.spec.d_input, generator=generator)
        return [x, *([torch.rand(batch, time, generator=generator) * 2] if self.timed else [])]

    def start(self, batch: int) -> list[Tensor]:
        """The state tensors before the first sample."""
        return [leaf.expand(batch, *leaf.shape[1:]).contiguous() for leaf in self.fresh]

    def forward(self, x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        dt, leaves = (rest[0], rest[1:]) if self.timed else (None, rest)
        y, state = self.model(x, tree_unflatten(list(leaves), self.tree), dt=dt)
        return y, *tree_flatten(state)[0]

    def inputs(self) -> list[str]:
        return ["x", *(["dt"] if self.timed else []), *(f"state.{name}" for name in self.names)]

    def outputs(self) -> list[str]:
        return ["y", *(f"next.{name}" for name in self.names)]

    def description(self) -> str:
        """A description of the program for its users, as JSON."""
        return json.dumps(
            {
                "chunk": self.chunk,
                "lookahead": self.lookahead,
                "delay": self.delay,
                "timed": self.timed,
                **asdict(self.spec),
                "states": [asdict(state) for state in self.states],
            }
        )


def traced(chunk: Chunk, batch: int | None = None) -> ExportedProgram:
    """The chunk as an exported program of torch's own operators, for one batch size, or any if None."""
    from lrnnx_app.ops._portable import DECOMPOSITIONS

    args, free = tuple(chunk.example(batch or 2)), Dim("batch", min=1)
    shapes = None if batch else ({0: free}, tuple({0: free} for _ in args[1:]))
    with torch.no_grad():
        program = torch.export.export(chunk.eval(), args, dynamic_shapes=shapes, strict=False)
        return program.run_decompositions(DECOMPOSITIONS)


def difference(chunk: Chunk, run: Run, batch: int = 3) -> float:
    """‖program − model‖ / ‖model‖ on random streams: the program runs chunk by chunk, the model once.

    The first stream begins with a chunk of silence, where numbers like x + 1e-10 count. If events are
    pooled, the last stage gets some groups.
    """
    generator = torch.Generator().manual_seed(1)
    group = math.prod(part.stride for part in chunk.model.modules() if isinstance(part, EventPool))
    whole = chunk.signal(batch, chunk.chunk * max(CHUNKS, -(-CHUNKS * group // chunk.chunk)), generator)
    if not chunk.spec.tokens:
        whole[0][0, : chunk.chunk] = 0
    state, ys = chunk.start(batch), []
    for start in range(0, whole[0].shape[1], chunk.chunk):
        y, *state = run([*(z[:, start : start + chunk.chunk].contiguous() for z in whole), *state])
        ys.append(y)
    with torch.no_grad():
        dt = whole[1] if chunk.timed else None
        expected, _ = chunk.model(whole[0], dt=dt)
    return float((joined(ys) - expected).norm() / expected.norm())


def joined(ys: list[Tensor]) -> Tensor:
    """The outputs of all chunks; of a pooled model, the last, which is of all samples."""
    return ys[-1] if ys[-1].ndim == 2 else torch.cat(ys, 1)


def streamed(run: Run, description: str, x: Tensor) -> Tensor:
    """The outputs of a written program for x (1, T, …); T is a multiple of its chunk."""
    about, ys = json.loads(description), []
    state = [
        torch.tensor(z["initial"], dtype=getattr(torch, z["dtype"])).expand(1, *z["shape"]).contiguous()
        for z in about["states"]
    ]
    for part in x.split(about["chunk"], 1):
        y, *state = run([part.contiguous(), *state])
        ys.append(y)
    return joined(ys)


def _brief(leaf: Tensor) -> Any:
    """One number if all numbers of the tensor are equal, else nested lists."""
    value = leaf.flatten()[0].item() if leaf.numel() else 0.0
    return value if bool((leaf == value).all()) else leaf.tolist()
