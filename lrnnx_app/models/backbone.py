"""A residual stack of layers, with pooled classification or an output per step."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lrnnx_app.errors import RecipeError, one_of
from lrnnx_app.layers._linear import Linear
from lrnnx_app.layers._relay import shared, through
from lrnnx_app.models._base import Blocks, Model
from lrnnx_app.spec import EVEN, DataSpec, Rows

POOLS = ("mean", "last", "none")


class BackboneState(NamedTuple):
    """States of the layers, and of the pool: sum (or last) of the features (B, d), number of steps (B,)."""

    layers: tuple[Any, ...]
    pooled: Tensor
    steps: Tensor


class Backbone(Model):
    """Encoder → blocks → norm → pool → linear head.

    With `pool: mean` or `last` the output is (B, d_output), computed from all steps so far, so a stream gives
    running logits. With `none` it is (B, T, d_output).
    """

    packs = True
    forms = tuple({"pool": pool} for pool in POOLS)

    @dataclass
    class Config:
        d_model: int = 64  # channels between layers
        depth: int = 4  # blocks, each with a layer
        dropout: float = 0.0  # share of channels that training drops
        pool: str = "mean"  # mean | last | none: which steps the output is computed from
        bidirectional: bool = False  # two directions joined in every block; cannot stream
        layer: Any = None  # one layer, or a list that the blocks take in turn

        def __post_init__(self) -> None:
            one_of("pool", self.pool, POOLS)
            if min(self.d_model, self.depth) < 1:
                raise RecipeError("d_model and depth: expected positive integers")

    def __init__(self, spec: DataSpec, config: Config) -> None:
        super().__init__(spec)
        self.pool, self.d_model = config.pool, config.d_model
        width = config.d_model
        self.encoder = nn.Embedding(spec.d_input, width) if spec.tokens else Linear(spec.d_input, width)
        self.blocks = Blocks([width] * config.depth, config.layer, config.dropout, config.bidirectional)
        self.norm = nn.LayerNorm(width)
        self.head = Linear(width, spec.d_output)

    def init_state(self, batch: int) -> BackboneState:
        return BackboneState(self.blocks.init_state(batch), *self._empty_pool(batch))

    def _empty_pool(self, batch: int) -> tuple[Tensor, Tensor]:
        return self._zeros(batch, self.d_model), self._zeros(batch)

    def features(self, x: Tensor, state: BackboneState | None, rows: Rows) -> tuple[Tensor, BackboneState]:
        """x (B, T, d_input), or (B, T) tokens → (B, d_model), or (B, T, d_model) without a pool.

        With `reset`, a pooled model gives one row for each start, row by row. Do not use the pool in the
        state that it then returns.
        """
        x, after = self.blocks.run(self.encoder(x), None if state is None else state.layers, rows)
        if rows.reset is not None and self.pool != "none":
            packed = pool_packed(self.norm(x), self.pool, rows)
            return packed, BackboneState(after, *self._empty_pool(x.shape[0]))
        pool = self._empty_pool(x.shape[0]) if state is None else (state.pooled, state.steps)
        return self._finish(x, BackboneState(after, *pool), rows)

    def readout(self, features: Tensor) -> Tensor:
        return self.head(features)

    def step(self, x: Tensor, state: BackboneState, dt: Tensor | None = None) -> tuple[Tensor, BackboneState]:
        """One sample: x (B, d_input) or (B,) tokens; the output has no time axis."""
        x, after = self.blocks.step(self.encoder(x), state.layers, dt)
        x, state = self._finish(x[:, None], state._replace(layers=after), EVEN)
        y = self.readout(x)
        return y[:, 0] if self.pool == "none" else y, state

    def _finish(self, x: Tensor, state: BackboneState, rows: Rows) -> tuple[Tensor, BackboneState]:
        """Norm and pool on the last block's output (B, T, d)."""
        x = self.norm(x)
        if self.pool == "none":
            return x, state

        def pool(before: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            pooled, steps = self._pool(x, *before, rows)
            mean = pooled / steps.clamp_min(1)[:, None] if self.pool == "mean" else pooled
            return mean.to(x.dtype), (pooled, steps)

        y, (pooled, steps) = through(pool, (state.pooled, state.steps))
        return shared(y), state._replace(pooled=pooled, steps=steps)

    def _pool(self, x: Tensor, pooled: Tensor, steps: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """The pool's sum (or last step) and count after x (B, T, d)."""
        counts = rows.counts(x)
        steps = steps + counts
        if self.pool == "mean":
            return pooled + rows.unpadded(x).sum(1, dtype=pooled.dtype), steps
        last = x[torch.arange(x.shape[0], device=x.device), (counts - 1).clamp_min(0)].to(pooled.dtype)
        return torch.where((counts > 0)[:, None], last, pooled), steps


def pool_packed(x: Tensor, pool: str, rows: Rows) -> Tensor:
    """The mean or last step of each packed example, (examples, d) from x (B, T, d); every row starts one."""
    assert rows.reset is not None
    valid, starts = rows.valid(x), rows.reset.clone()
    valid = torch.ones_like(starts) if valid is None else valid
    starts[:, 0] = True
    starts = starts[valid].nonzero()[:, 0]
    flat = x[valid]
    if not len(flat):
        return flat
    ends = torch.cat((starts[1:], starts.new_tensor([len(flat)])))
    if pool == "last":
        return flat[ends - 1]
    wide = flat.to(torch.promote_types(flat.dtype, torch.float32))
    return torch.segment_reduce(wide, "mean", lengths=ends - starts, axis=0).to(x.dtype)
