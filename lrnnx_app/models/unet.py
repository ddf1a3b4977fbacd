"""A U-Net of any causal layer: strides down and up with skips, for any length, with a known look-ahead."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lrnnx_app.errors import RecipeError
from lrnnx_app.layers._linear import Linear
from lrnnx_app.models._base import Blocks, Model
from lrnnx_app.spec import DataSpec, Rows


class Down(Linear):
    """`stride` steps of d_in features become one step of d_out: (B, T, d_in) → (B, T/stride, d_out)."""

    def __init__(self, d_in: int, d_out: int, stride: int) -> None:
        super().__init__(d_in * stride, d_out)
        self.stride = stride

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.unflatten(1, (-1, self.stride)).flatten(2))


class Up(Linear):
    """The inverse of `Down`: (B, T, d_in) → (B, T·stride, d_out)."""

    def __init__(self, d_in: int, d_out: int, stride: int) -> None:
        super().__init__(d_in, d_out * stride)
        self.stride = stride

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).unflatten(2, (self.stride, -1)).flatten(1, 2)


class UNet(Model):
    """Encoder levels of (Down, blocks), decoder levels of (blocks, Up) with additive skips.

    The decoder gives a mask for the features of the first level; a last Up turns the masked features into
    samples. Training starts from the identity: the first Down is a tight frame, the last Up its transpose,
    and the mask is near one.

    Each frame of `hop` = ∏ strides samples is resampled on its own, so only the layers have a state. The
    output at sample t depends on the input up to the end of its frame: the look-ahead is hop − 1 samples.
    """

    small: ClassVar[Mapping[str, Any]] = {"channels": [8, 8], "strides": [8, 4]}

    @dataclass
    class Config:
        channels: list[int] = field(default_factory=lambda: [64, 96, 128])  # of each level
        strides: list[int] = field(default_factory=lambda: [16, 4, 4])  # steps that become one, by level
        depth: int = 1  # blocks per level, on each side
        dropout: float = 0.0  # share of channels that training drops
        layer: Any = None  # one layer, or a list that the blocks take in turn

        def __post_init__(self) -> None:
            if len(self.channels) != len(self.strides) or not self.channels:
                raise RecipeError(
                    f"channels: expected one for each of the strides {self.strides}, not {self.channels}"
                )
            if min(*self.channels, *self.strides, self.depth) < 1:
                raise RecipeError("channels, strides and depth: expected positive integers")

    def __init__(self, spec: DataSpec, config: Config) -> None:
        super().__init__(spec)
        widths, strides = config.channels, config.strides
        self.strides, self.depth = tuple(strides), config.depth
        self.hop = math.prod(strides)
        self.lookahead = self.hop - 1
        steps = list(zip(widths[:-1], widths[1:], strides[1:], strict=True))
        self.analysis = Down(spec.d_input, widths[0], strides[0])
        self.down = nn.ModuleList(Down(narrow, wide, stride) for narrow, wide, stride in steps)
        levels = (*widths, *reversed(widths))
        self.blocks = Blocks(
            [width for width in levels for _ in range(config.depth)], config.layer, config.dropout
        )
        self.up = nn.ModuleList(Up(wide, narrow, stride) for narrow, wide, stride in reversed(steps))
        self.mask = Linear(widths[0], widths[0])
        self.synthesis = Up(widths[0], spec.d_output, strides[0])
        self._start_as_identity()

    @torch.no_grad()
    def _start_as_identity(self) -> None:
        frame = nn.init.orthogonal_(self.analysis.weight)
        if self.synthesis.weight.shape == frame.T.shape:
            self.synthesis.weight.copy_(frame.T)
        self.mask.weight.mul_(0.1)
        nn.init.ones_(self.mask.bias)
        nn.init.zeros_(self.analysis.bias)
        nn.init.zeros_(self.synthesis.bias)

    def init_state(self, batch: int) -> tuple[Any, ...]:
        return self.blocks.init_state(batch)

    def run(self, x: Tensor, state: Any, rows: Rows) -> tuple[Tensor, tuple[Any, ...]]:
        """x (B, T, d_input) → (B, T, d_output) and the state.

        If T is no multiple of hop, the stream ends there, and silence fills the last frame.

        Raises:
            ValueError: dt is given; frames need evenly spaced samples.
        """
        if rows.dt is not None:
            raise ValueError("the U-Net takes evenly spaced samples; expected dt=None")
        time, lengths, x = x.shape[1], rows.lengths, rows.unpadded(x)
        lengths = None if lengths is None else lengths + -lengths % self.hop
        x = nn.functional.pad(x, (0, 0, 0, -time % self.hop))
        before = iter((None,) * len(self.blocks) if state is None else state)
        blocks = iter(self.blocks)
        after: list[Any] = []

        def level(x: Tensor, ends: Tensor | None) -> Tensor:
            for _ in range(self.depth):
                x, new = next(blocks)(x, next(before), Rows(lengths=ends))
                after.append(new)
            return x

        x = features = self.analysis(x)
        ends = [None if lengths is None else lengths // self.strides[0]]
        x = level(x, ends[-1])
        skips = [x]
        for down, stride in zip(self.down, self.strides[1:], strict=True):
            ends.append(None if ends[-1] is None else ends[-1] // stride)
            x = level(down(x), ends[-1])
            skips.append(x)
        x = level(skips.pop(), ends.pop())
        for up in self.up:
            x = level(up(x) + skips.pop(), ends.pop())
        return self.synthesis(features * self.mask(x))[:, :time], tuple(after)
