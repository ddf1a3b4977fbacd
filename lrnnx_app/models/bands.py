"""A denoiser of spectra: bands of frequencies share their layers along time, and are mixed at every step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lrnnx_app.errors import RecipeError
from lrnnx_app.models._base import Blocks, Model, each
from lrnnx_app.ops import planar
from lrnnx_app.ops.fft_conv import irfft, rfft
from lrnnx_app.ops.linear_scan import linear_scan, state_dtype
from lrnnx_app.spec import DataSpec, Rows

COMPRESSION = 0.3  # exponent on magnitudes, so that quiet bins count
LEVEL, OFFSET = 1.0, 0.3  # s, over which the power of a signal and its offset are averaged
FLOOR = 1e-10  # added to the power of a sample: −100 dB below full scale
RATE = 16000  # Hz, where the data name no rate


class BandsState(NamedTuple):
    """What a stream carries from hop to hop.

    before: the last hop of input without its offset (B, hop). pending: the second half of the last frame of
    output (B, hop). offset, level: sums of running means, and of their weights (B, 2). layers: states (B,
    bands, …).
    """

    before: Tensor
    pending: Tensor
    offset: Tensor
    level: Tensor
    layers: tuple[Any, ...]


class Matrices(nn.Module):
    """A matrix and a bias for each of `count` groups of rows."""

    def __init__(self, count: int, d_in: int, d_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, d_in, d_out).uniform_(-1, 1) * d_in**-0.5)
        self.bias = nn.Parameter(torch.zeros(count, 1, d_out))

    def forward(self, x: Tensor) -> Tensor:
        """(count, rows, d_in) to (count, rows, d_out)."""
        return torch.baddbmm(self.bias, x, self.weight)


class Mixing(nn.Module):
    """Residual mixing of bands: x + W₂ GELU(W₁ norm(x)) along the axis of bands; each head has its own W."""

    def __init__(self, d_model: int, bands: int, heads: int) -> None:
        super().__init__()
        self.norm, self.heads = nn.LayerNorm(d_model), heads
        self.enter, self.leave = Matrices(heads, bands, bands), Matrices(heads, bands, bands)

    def forward(self, x: Tensor) -> Tensor:
        """(B, bands, N, d_model) to the same shape; neighbouring channels are of one head."""
        parts = self.norm(x).unflatten(3, (self.heads, -1)).permute(3, 0, 2, 4, 1)  # (heads, B, N, …, bands)
        y = self.leave(nn.functional.gelu(self.enter(parts.flatten(1, 3))))
        return x + y.view(parts.shape).permute(1, 4, 2, 0, 3).flatten(3)


def edges(bins: int, bands: int, narrowest: int) -> list[int]:
    """The first bin of each band, and the end: widths grow by one factor from `narrowest` to fill `bins`."""

    def end(factor: float, count: int = bands) -> float:
        return narrowest * sum(factor**k for k in range(count))

    low, high = 1.0, float(bins)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if end(middle) < bins else (low, middle)
    return [*(round(end(low, count)) for count in range(bands)), bins]


class Bands(Model):
    """Frames of 2·hop samples → spectra → bands → (layer along time, mixing of bands) × depth → mask.

    Low bands are narrow, since most of a voice is there. A band sees half its width of each neighbour too.

    The input's offset is taken out, and its level before the layers see it: running means of both are part of
    the state. So the output scales with the input at every level. The mask is complex, and is one at the
    start of training. Frames overlap by half, and a hop of output is complete one hop after its input: y[t]
    is the estimate of x[t − delay].

    Outside training a share `kept` of the input is in the output: noise falls by −20·lg(kept) dB at most, and
    voices unlike those of the training are damaged less.
    """

    small: ClassVar[Mapping[str, Any]] = {"d_model": 8, "depth": 1, "hop": 16, "bands": 4}

    @dataclass
    class Config:
        d_model: int = 32  # channels of a band
        depth: int = 4  # blocks, each a layer along time and a mixing of bands
        bands: int = 32  # groups of neighbouring bins
        narrowest: int = 4  # bins of the lowest band; each next band is wider by one factor
        heads: int = 4  # groups of channels, each with its own mixing of bands; a divisor of d_model
        hop: int = 256  # samples between frames of twice as many
        dropout: float = 0.0  # share of channels that training drops
        kept: float = 0.0  # share of the input that the output keeps, outside training
        layer: Any = None  # one layer, or a list that the blocks take in turn

        def __post_init__(self) -> None:
            if min(self.d_model, self.depth, self.hop, self.bands, self.narrowest, self.heads) < 1:
                raise RecipeError(
                    "d_model, depth, hop, bands, narrowest and heads: expected positive integers"
                )
            if not 0 <= self.kept <= 1:
                raise RecipeError(f"kept: expected a share, 0 to 1, not {self.kept}")
            if self.bands * self.narrowest > self.hop:
                raise RecipeError(
                    f"bands: expected at most hop/narrowest = {self.hop // self.narrowest}, not {self.bands}"
                )
            if self.d_model % self.heads:
                raise RecipeError(f"heads: expected a divisor of d_model = {self.d_model}, not {self.heads}")

    window: Tensor
    passes: Tensor  # (2, 1): `kept`, as a planar factor
    heard: Tensor  # (bands, reach): the bins that a band sees; hop stands for none
    made: Tensor  # (hop,): the place of a bin in the bands' masks, each of which is as wide as the widest

    def __init__(self, spec: DataSpec, config: Config) -> None:
        super().__init__(spec)
        if (spec.d_input, spec.d_output) != (1, 1) or spec.tokens:
            raise RecipeError("model.name: bands takes sound of one channel, and gives the same")
        self.hop = self.delay = config.hop
        self.lookahead = config.hop - 1
        self.bands, self.kept = config.bands, config.kept
        starts = torch.tensor(edges(config.hop, config.bands, config.narrowest))
        widths = starts.diff()
        widest = int(widths.max())
        first, last = (starts[:-1] - widths // 2)[:, None], (starts[1:] + widths // 2)[:, None]
        heard = first + torch.arange(widest + 2 * (widest // 2))
        heard[(heard < 0) | (heard >= last.clamp_max(config.hop))] = config.hop
        self.register_buffer("heard", heard, False)
        places = torch.arange(config.bands)[:, None] * widest + torch.arange(widest)
        self.register_buffer("made", places[torch.arange(widest) < widths[:, None]], False)
        self.analysis = Matrices(config.bands, 3 * heard.shape[1], config.d_model)
        self.blocks = Blocks([config.d_model] * config.depth, config.layer, config.dropout)
        self.mixing = nn.ModuleList(
            Mixing(config.d_model, config.bands, config.heads) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.d_model)
        self.mask = Matrices(config.bands, config.d_model, 2 * widest)
        with torch.no_grad():
            self.mask.weight.mul_(0.1)
            self.mask.bias[..., :widest] = 1
        window = torch.sin(math.pi * (torch.arange(2 * config.hop) + 0.5) / (2 * config.hop))
        self.register_buffer("window", window, False)
        self.register_buffer("passes", torch.tensor([[config.kept], [0.0]]), False)

    def init_state(self, batch: int) -> BandsState:
        layers = each(self._by_band, self.blocks.init_state(batch * self.bands))
        before, pending, offset, level = (self._zeros(batch, size) for size in (self.hop, self.hop, 2, 2))
        return BandsState(before, pending, offset, level, layers)

    def run(self, x: Tensor, state: BandsState | None, rows: Rows) -> tuple[Tensor, BandsState]:
        """x (B, T, 1) → y (B, T, 1), later by `delay`, and the state.

        If T is no multiple of hop, the stream ends there, and silence fills the last frame.

        Raises:
            ValueError: dt is given; frames need evenly spaced samples.
        """
        if rows.dt is not None:
            raise ValueError("the bands take evenly spaced samples; expected dt=None")
        state = self.init_state(x.shape[0]) if state is None else state
        dtype, time = state_dtype(x.dtype), x.shape[1]
        wave = nn.functional.pad(rows.unpadded(x)[..., 0], (0, -time % self.hop)).to(dtype)
        counts = None if rows.lengths is None else (rows.lengths + self.hop - 1) // self.hop
        hops, window = wave.unflatten(1, (-1, self.hop)), self.window.to(dtype)
        offset, offset_state = self._mean(hops.mean(-1), OFFSET, state.offset, counts)
        hops = hops - offset[..., None]
        before, last = _delayed(hops, state.before, counts)
        spectrum = rfft(torch.cat((before, hops), -1) * window)[..., 1:]
        power = spectrum.square().sum(-2).mean(-1) / self.hop
        level, level_state = self._mean(power, LEVEL, state.level, counts)
        scaled = spectrum * (level + FLOOR).rsqrt()[..., None, None]
        mask, layers = self._mask(_compressed(scaled).to(x.dtype), state.layers, counts)
        kept = nn.functional.pad(planar.mul(mask.to(dtype), spectrum), (1, 0))
        first, second = (irfft(kept, 2 * self.hop) * window).chunk(2, -1)
        overlap, pending = _delayed(second, state.pending, counts)
        y = (first + overlap).flatten(1)[:, :time, None].to(x.dtype)
        return y, BandsState(last, pending, offset_state, level_state, layers)

    def _mean(self, x: Tensor, seconds: float, state: Tensor, counts: Tensor | None) -> tuple[Tensor, Tensor]:
        """The mean of x (B, N) up to each frame, with weights that decay over `seconds`; and the state."""
        keep = math.exp(-self.hop / (seconds * (self.spec.sample_rate or RATE)))
        pairs = torch.stack((x, torch.ones_like(x)), -1)
        sums, state = linear_scan(x.new_full((1, 1, 1), keep), pairs, state, lengths=counts)
        return sums[..., 0] / sums[..., 1].clamp_min(1), state

    def _mask(
        self, x: Tensor, layers: tuple[Any, ...], counts: Tensor | None
    ) -> tuple[Tensor, tuple[Any, ...]]:
        """A planar factor (B, N, 2, bins) from features (B, N, 3, bins)."""
        batch, frames = x.shape[:2]
        seen = nn.functional.pad(x, (0, 1))[..., self.heard]  # (B, N, 3, bands, reach)
        x = self.analysis(seen.permute(3, 0, 1, 2, 4).flatten(3).flatten(1, 2))
        x = x.unflatten(1, (batch, frames)).transpose(0, 1)
        rows = Rows(lengths=None if counts is None else counts.repeat_interleave(self.bands))
        after = []
        for block, mixing, state in zip(self.blocks, self.mixing, layers, strict=True):
            y, state = block(x.flatten(0, 1), each(_of_all_bands, state), rows)
            x = mixing(y.unflatten(0, (batch, self.bands)))
            after.append(each(self._by_band, state))
        masks = self.mask(self.norm(x).transpose(0, 1).flatten(1, 2)).unflatten(1, (batch, frames))
        masks = masks.unflatten(3, (2, -1)).permute(1, 2, 3, 0, 4).flatten(3)
        masks = masks.index_select(3, self.made)
        if self.kept and not self.training:
            masks = masks * (1 - self.kept) + self.passes
        return masks, tuple(after)

    def _by_band(self, state: Tensor) -> Tensor:
        """(B·bands, …) as (B, bands, …)."""
        return state.unflatten(0, (state.shape[0] // self.bands, self.bands))


def _of_all_bands(state: Tensor) -> Tensor:
    """(B, bands, …) as (B·bands, …)."""
    return state.flatten(0, 1)


def _compressed(z: Tensor) -> Tensor:
    """(…, 2, bins) as (…, 3, bins): real and imaginary part, and magnitude, of z·|z|^(COMPRESSION − 1)."""
    power = z.square().sum(-2, keepdim=True) + 1e-12
    return torch.cat((z * power ** ((COMPRESSION - 1) / 2), power ** (COMPRESSION / 2)), -2)


def _delayed(x: Tensor, first: Tensor, counts: Tensor | None) -> tuple[Tensor, Tensor]:
    """x (B, N, …) one step later, behind `first` (B, …); and each row's last step, of its `counts` steps."""
    every = torch.cat((first.to(x.dtype)[:, None], x), 1)
    if counts is None:
        return every[:, :-1], every[:, -1]
    return every[:, :-1], every[torch.arange(x.shape[0], device=x.device), counts]
