"""Stages of blocks with fewer steps from stage to stage: events are pooled in between, as in Event-SSM."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from lrnnx_app.errors import RecipeError, one_of
from lrnnx_app.layers._event_pool import POOLS_BY, EventPool, EventPoolState
from lrnnx_app.layers._linear import Linear
from lrnnx_app.models._base import Blocks, Model
from lrnnx_app.ops.linear_scan import state_dtype
from lrnnx_app.spec import DataSpec, Rows


class StagedState(NamedTuple):
    """States of layers and of pools between stages; sum (B, d) and number (B,) of the pooled features."""

    layers: tuple[Any, ...]
    pools: tuple[EventPoolState, ...]
    pooled: Tensor
    steps: Tensor


class Staged(Model):
    """Encoder → blocks → (pool → widen → blocks) for each of `pools` → norm → mean → linear head.

    The output (B, d_output) is computed from all complete groups of events so far, so a stream of events
    gives running logits (Schöne et al. 2024, arXiv 2404.18508). Whole sequences, chunks and single steps give
    the same.
    """

    small: ClassVar[Mapping[str, Any]] = {"d_model": 8, "depth": 1, "pools": [3, 2], "expansion": 2}
    forms = tuple({"pool_by": by} for by in POOLS_BY)

    @dataclass
    class Config:
        d_model: int = 64  # channels between layers, before the first pool
        depth: int = 3  # blocks of a stage
        pools: list[int] = field(
            default_factory=lambda: [8]
        )  # events that become one before each later stage
        pool_by: str = "mean"  # mean | time (weighted by dt) | last
        expansion: int = 1  # factor of the width after the first pool
        dropout: float = 0.0  # share of channels that training drops
        layer: Any = None  # one layer, or a list that the blocks take in turn

        def __post_init__(self) -> None:
            one_of("pool_by", self.pool_by, POOLS_BY)
            if min(self.d_model, self.depth, self.expansion, *self.pools, 1) < 1:
                raise RecipeError("d_model, depth, expansion and pools: expected positive integers")

    def __init__(self, spec: DataSpec, config: Config) -> None:
        super().__init__(spec)
        self.depth = config.depth
        first, last = config.d_model, config.d_model * config.expansion
        widths = [first, *[last] * len(config.pools)]
        self.d_last = widths[-1]
        self.encoder = nn.Embedding(spec.d_input, first) if spec.tokens else Linear(spec.d_input, first)
        blocks = [width for width in widths for _ in range(config.depth)]
        self.blocks = Blocks(blocks, config.layer, config.dropout)
        pairs = list(zip(widths[:-1], widths[1:], config.pools, strict=True))
        self.pools = nn.ModuleList(EventPool(width, stride, config.pool_by) for width, _, stride in pairs)
        self.widen = nn.ModuleList(
            nn.Identity() if narrow == wide else Linear(narrow, wide) for narrow, wide, _ in pairs
        )
        self.norm = nn.LayerNorm(widths[-1])
        self.head = Linear(widths[-1], spec.d_output)

    def init_state(self, batch: int) -> StagedState:
        like, pooled = next(self.parameters()), self._zeros(batch, self.d_last)
        pools = tuple(pool.init_state(like, batch) for pool in self._pools())
        return StagedState(self.blocks.init_state(batch), pools, pooled, self._zeros(batch))

    def run(self, x: Tensor, state: StagedState | None, rows: Rows) -> tuple[Tensor, StagedState]:
        """x (B, T, d_input), or (B, T) tokens → logits (B, d_output) and the state."""
        before = [None] * len(self.blocks) if state is None else state.layers
        waiting = [None] * len(self.pools) if state is None else state.pools
        x = self.encoder(x)
        layers, pools = [], []
        for i, (block, layer_state) in enumerate(zip(self.blocks, before, strict=True)):
            if i and i % self.depth == 0:
                stage = i // self.depth - 1
                x, pool, rows = self.pools[stage](x, waiting[stage], rows)
                x = self.widen[stage](x)
                pools.append(pool)
            x, new = block(x, layer_state, rows)
            layers.append(new)
        x = self.norm(x)
        kind = state_dtype(next(self.parameters()).dtype)
        pooled, steps = rows.unpadded(x).sum(1, dtype=kind), rows.counts(x).to(kind)
        if state is not None:
            pooled, steps = pooled + state.pooled, steps + state.steps
        mean = (pooled / steps.clamp_min(1)[:, None]).to(x.dtype)
        return self.head(mean), StagedState(tuple(layers), tuple(pools), pooled, steps)

    def step(self, x: Tensor, state: StagedState, dt: Tensor | None = None) -> tuple[Tensor, StagedState]:
        """One event: x (B, d_input) or (B,) tokens, dt (B,) or None."""
        return self(x[:, None], state, dt=None if dt is None else dt[:, None])

    def _pools(self) -> list[EventPool]:
        return list(self.pools)  # type: ignore[arg-type]  (only pools are in it)
