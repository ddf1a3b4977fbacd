"""The base of models: stacks of layers that are called as layers are, with a hop and a look-ahead."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any, ClassVar

from torch import Tensor, nn

from lrnnx_app.errors import RecipeError
from lrnnx_app.layers._bidirectional import carried
from lrnnx_app.layers._build import build_layer
from lrnnx_app.layers._linear import Linear, hooked, linear
from lrnnx_app.ops._transforms import free
from lrnnx_app.ops.linear_scan import state_dtype
from lrnnx_app.recipe import layer_nodes
from lrnnx_app.spec import EVEN, DataSpec, Rows


class Model(nn.Module):
    """A model `MODELS[name](spec, Config(…))`; causal up to `lookahead` if its layers are.

    Attributes:
        spec: description of input and output.
        packs: whether a row may contain several sequences, see `Rows.reset`.
        hop: samples that the model takes at once; a stream's chunks are multiples of it.
        lookahead: how many samples after t the output at t depends on; less than hop.
        delay: by how many samples the output is later than the input: y[t] belongs to x[t − delay].
    """

    small: ClassVar[Mapping[str, Any]] = {"d_model": 8, "depth": 2}  # options of a small instance
    forms: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)  # further options, one set for each way through
    packs: ClassVar[bool] = False
    hop: int = 1
    lookahead: int = 0
    delay: int = 0

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.spec = spec

    def init_state(self, batch: int) -> Any:
        """The state before the first sample: a pytree of (batch, …) tensors."""
        raise NotImplementedError

    def _zeros(self, *shape: int) -> Tensor:
        """Zeros in the precision of a state, on the model's device."""
        like = next(self.parameters())
        return like.new_zeros(shape, dtype=state_dtype(like.dtype))

    def forward(
        self,
        x: Tensor,
        state: Any = None,
        *,
        dt: Tensor | None = None,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        read: bool = True,
    ) -> tuple[Tensor, Any]:
        """Run a sequence from a state; arguments as of `lrnnx_app.layers._base.Layer.forward`.

        Without `read` it gives `features`, for a loss that takes the readout in parts.

        Raises:
            ValueError: `reset` packs several sequences into a row, and the model takes one.
        """
        if reset is not None and not self.packs:
            raise ValueError(f"{type(self).__name__} takes one sequence a row: leave out reset")
        return (self.run if read else self.features)(x, state, Rows(dt, lengths, reset))

    def run(self, x: Tensor, state: Any, rows: Rows) -> tuple[Tensor, Any]:
        """The forward pass; each subclass defines it, or `features` and `readout`."""
        features, state = self.features(x, state, rows)
        return self.readout(features), state

    def features(self, x: Tensor, state: Any, rows: Rows) -> tuple[Tensor, Any]:
        """What the output is read from, (…, d), and the state."""
        raise NotImplementedError

    def readout(self, features: Tensor) -> Tensor:
        """The output (…, d_output) from features (…, d), each row by itself."""
        raise NotImplementedError

    @property
    def splits(self) -> bool:
        """Whether the model is one of `features` and `readout`."""
        return type(self).run is Model.run


class Residual(nn.Module):
    """A pre-norm residual block: what `add` makes of x and layer(norm(x)); each subclass defines `add`.

    Args:
        norm: of the layer's input, d_model wide.
        layer_config: the layer's Config, with its name.
        dropout: share of the channels that training drops.
    """

    layer: Any

    def __init__(
        self,
        norm: nn.Module,
        d_model: int,
        layer_config: Any,
        dropout: float = 0.0,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        self.norm = norm
        self.layer = build_layer(layer_config.name, d_model, layer_config, bidirectional)
        self.dropout = nn.Dropout(dropout)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """The block's output from its input x and the layer's output y, (…, d_model) each."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        state: Any = None,
        rows: Rows = EVEN,
    ) -> tuple[Tensor, Any]:
        single = not free(x.shape[1]) and x.shape[1] == 1 and state is not None
        single = single and rows.lengths is None and rows.reset is None
        if single and not hooked(self.layer):  # hooks need a call of `forward`
            y, state = self.step(x[:, 0], state, None if rows.dt is None else rows.dt[:, 0])
            return y[:, None], state
        y, state = carried(self.layer, self.norm(x), state, rows)
        return self.add(x, y), state

    def step(self, x: Tensor, state: Any, dt: Tensor | None = None) -> tuple[Tensor, Any]:
        y, state = self.layer.step(self.norm(x), state, dt)
        return self.add(x, y), state


class Block(Residual):
    """Pre-norm residual block: norm → layer → GELU → half-GLU (y·σ(W y)) → dropout → add."""

    def __init__(self, d_model: int, layer_config: Any, **options: Any) -> None:
        super().__init__(nn.LayerNorm(d_model), d_model, layer_config, **options)
        self.gate = Linear(d_model, d_model)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        y = nn.functional.gelu(y)
        gated = linear(self.gate, y, activation="sigmoid", times=y)
        return x + self.dropout(gated)


class Blocks(nn.ModuleList):
    """Blocks in the order in which a model runs them; their states form a tuple in that order.

    Args:
        widths: features of each block.
        layer: a layer's Config, or a list of them that the blocks take in turn.
        kind: makes a block from its width and its layer's Config.

    Raises:
        RecipeError: an option does not fit; names its key.
    """

    def __init__(
        self,
        widths: Iterable[int],
        layer: Any,
        dropout: float = 0.0,
        bidirectional: bool = False,
        kind: Callable[..., Residual] = Block,
    ) -> None:
        super().__init__()
        if not 0 <= dropout <= 1:
            raise RecipeError(f"model.dropout: expected a share in [0, 1], not {dropout}")
        for width, (key, config) in zip(widths, cycle(layer_nodes(layer)), strict=False):
            try:
                self.append(kind(width, config, dropout=dropout, bidirectional=bidirectional))
            except RecipeError as error:
                raise RecipeError(f"{key}.{error}") from error

    def __iter__(self) -> Iterator[Residual]:
        return super().__iter__()  # type: ignore[return-value]  (only blocks are appended)

    def init_state(self, batch: int) -> tuple[Any, ...]:
        """The blocks' states before the first step.

        Raises:
            StreamError: a layer runs in both directions.
        """
        return tuple(block.layer.init_state(batch) for block in self)

    def run(self, x: Tensor, states: Sequence[Any] | None, rows: Rows) -> tuple[Tensor, tuple[Any, ...]]:
        """All blocks, one after another, on x (B, T, d_model) of one width."""
        after = []
        for block, state in zip(self, (None,) * len(self) if states is None else states, strict=True):
            x, state = block(x, state, rows)
            after.append(state)
        return x, tuple(after)

    def step(self, x: Tensor, states: Sequence[Any], dt: Tensor | None) -> tuple[Tensor, tuple[Any, ...]]:
        """All blocks on one step x (B, d_model)."""
        after = []
        for block, state in zip(self, states, strict=True):
            x, state = block.step(x, state, dt)
            after.append(state)
        return x, tuple(after)


def each(change: Callable[[Tensor], Tensor], state: Any) -> Any:
    """Nested tuples with every tensor changed; torch's own function for that takes as long as a layer."""
    if isinstance(state, Tensor):
        return change(state)
    parts = (each(change, part) for part in state)
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
