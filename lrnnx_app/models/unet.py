"""A causal U-Net around any layer: strided down and up, skips, any length, a stated look-ahead."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lrnnx_app.data import DataSpec
from lrnnx_app.errors import RecipeError
from lrnnx_app.models._base import Block, Model


class Down(nn.Linear):
    """`stride` steps of d_in features become one step of d_out: (B, T, d_in) → (B, T/stride, d_out)."""

    def __init__(self, d_in: int, d_out: int, stride: int) -> None:
        super().__init__(d_in * stride, d_out)
        self.stride = stride

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.unflatten(1, (-1, self.stride)).flatten(2))


class Up(nn.Linear):
    """The way back: (B, T, d_in) → (B, T·stride, d_out)."""

    def __init__(self, d_in: int, d_out: int, stride: int) -> None:
        super().__init__(d_in, d_out * stride)
        self.stride = stride

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).unflatten(2, (self.stride, -1)).flatten(1, 2)


class UNet(Model):
    """Encoder levels of (Down, blocks), decoder levels of (blocks, Up) with additive skips.

    The decoder's result is a mask on the first level's features, which a last Up turns into samples. Both
    ends start as a tight frame and its transpose and the mask near one, so that training starts from the
    identity.

    Resampling acts within frames, so that the only state is the layers' own. The output at sample t
    depends on the input up to the end of t's frame of `hop` = ∏ strides samples: the look-ahead is
    hop − 1 samples, whatever the layer.
    """

    @dataclass
    class Config:
        channels: list[int] = field(default_factory=lambda: [64, 96, 128])
        strides: list[int] = field(default_factory=lambda: [16, 4, 4])
        depth: int = 1  # blocks per level, on each side
        dropout: float = 0.0
        layer: Any = None

        def __post_init__(self) -> None:
            if len(self.channels) != len(self.strides) or not self.channels:
                raise RecipeError(
                    f"channels: expected as many as strides ({len(self.strides)}), at least one, not {self.channels}"
                )
            if min(*self.channels, *self.strides, self.depth) < 1:
                raise RecipeError("channels, strides and depth: expected positive integers")

    def __init__(self, spec: DataSpec, config: Config) -> None:
        super().__init__()
        widths = [spec.d_input, *config.channels]
        self.strides = tuple(config.strides)
        self.hop = math.prod(config.strides)
        self.lookahead = self.hop - 1

        def blocks(width: int) -> nn.ModuleList:
            return nn.ModuleList(Block(width, config.layer, config.dropout) for _ in range(config.depth))

        pairs = list(zip(widths[:-1], widths[1:], config.strides, strict=True))
        self.down = nn.ModuleList(Down(*pair) for pair in pairs)
        self.encoder = nn.ModuleList(blocks(width) for width in config.channels)
        self.decoder = nn.ModuleList(blocks(width) for width in reversed(config.channels))
        self.up = nn.ModuleList(
            Up(wide, narrow, stride) for narrow, wide, stride in reversed(pairs[1:])
        )
        width = config.channels[0]
        self.mask = nn.Linear(width, width)
        self.head = Up(width, spec.d_output, config.strides[0])
        self._start_as_identity()

    @torch.no_grad()
    def _start_as_identity(self) -> None:
        frame = nn.init.orthogonal_(self.down[0].weight)
        self.mask.weight.mul_(0.1)
        nn.init.ones_(self.mask.bias)
        for end in (self.down[0], self.head):
            nn.init.zeros_(end.bias)
        if self.head.weight.shape == frame.T.shape:
            self.head.weight.copy_(frame.T)

    def init_state(self, batch: int) -> tuple[Any, ...]:
        levels = (*self.encoder, *self.decoder)
        return tuple(block.layer.init_state(batch) for level in levels for block in level)

    def forward(
        self, x: Tensor, state: Any = None, *, dt: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, tuple[Any, ...]]:
        """x (B, T, d_input) → (B, T, d_output) and the state; a T that is no multiple of hop ends the stream.

        Raises:
            ValueError: dt is given; frames need evenly spaced samples.
        """
        if dt is not None:
            raise ValueError("the U-Net takes evenly spaced samples; expected dt=None")
        time = x.shape[1]
        if lengths is not None:
            x = x * (torch.arange(time, device=x.device) < lengths[:, None])[..., None]
        x = nn.functional.pad(x, (0, 0, 0, -time % self.hop))
        before = iter(self.init_state(len(x)) if state is None else state)
        after: list[Any] = []
        skips: list[Tensor] = []
        ends: list[Tensor | None] = []

        def run(level: Any, x: Tensor, end: Tensor | None) -> Tensor:
            for block in level:
                x, new = block(x, next(before), lengths=end)
                after.append(new)
            return x

        x = features = self.down[0](x)
        for index, (stride, level) in enumerate(zip(self.strides, self.encoder, strict=True)):
            lengths = None if lengths is None else (lengths + stride - 1) // stride
            x = run(level, self.down[index](x) if index else x, lengths)
            skips.append(x)
            ends.append(lengths)
        x = run(self.decoder[0], skips.pop(), ends.pop())
        for up, level in zip(self.up, self.decoder[1:], strict=True):
            x = run(level, up(x) + skips.pop(), ends.pop())
        return self.head(features * self.mask(x))[:, :time], tuple(after)
