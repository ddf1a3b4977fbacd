"""What layers share whose state is a matrix (V, K) for each head: its start, its decay, its norms."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrnnx_app.errors import RecipeError
from lrnnx_app.layers._base import wide
from lrnnx_app.ops._blocked import cast
from lrnnx_app.ops.linear_scan import state_dtype

HEADS, LEAST, MOST = 4, 8, 64  # heads, and channels of a head, unless a Config says how many


class HeadsState(NamedTuple):
    """h: (B, H, V, K)."""

    h: Tensor


class ConvolvedState(NamedTuple):
    """conv: last inputs of the convolution (B, d_conv − 1, C); h: (B, H, V, K)."""

    conv: Tensor
    h: Tensor


def head_width(given: int | None, size: int) -> int:
    """The option head_dim: channels of each head, of `size` in all.

    None is the largest divisor that leaves four heads, but from 8 to 64 where that can be.

    Raises:
        RecipeError: what is given does not divide the size.
    """
    most = max(LEAST, min(MOST, size // HEADS))
    width = given or max(n for n in range(1, most + 1) if size % n == 0)
    if size % width:
        raise RecipeError(f"head_dim: {width} does not divide {size} channels; choose a divisor")
    return width


def decay_rates(heads: int, least: float = 1.0, most: float = 16.0) -> nn.Parameter:
    """A_log (H,) whose exponential is uniform in [least, most]."""
    return nn.Parameter(torch.log(torch.empty(heads).uniform_(least, most)))


def timescales(logits: Tensor, bias: Tensor, dt: Tensor | None) -> Tensor:
    """softplus(logits + bias)·δ of each head (B, T, H), in the precision of a state."""
    logits = cast(logits, state_dtype(logits.dtype))
    step = F.softplus(logits + next(wide(bias)))
    return step if dt is None else step * dt[..., None]


def unit(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x / √(Σ x² + ε) along the last axis, in the dtype of x."""
    wide_x = cast(x, state_dtype(x.dtype))
    return cast(wide_x * torch.rsqrt(wide_x.square().sum(-1, keepdim=True) + eps), x.dtype)


def normed(x: Tensor, weight: Tensor, eps: float, gate: Tensor | None = None) -> Tensor:
    """x / √(mean x² + ε) along the last axis, ∘weight and ∘SiLU(gate), in the dtype of x.

    All of it is in the precision of a state, since the gradient of a norm is a difference that cancels.
    """
    kind = state_dtype(x.dtype)
    wide_x = cast(x, kind)
    y = wide_x * torch.rsqrt(wide_x.square().mean(-1, keepdim=True) + eps) * cast(weight, kind)
    return cast(y if gate is None else y * F.silu(cast(gate, kind)), x.dtype)


def of_heads(x: Tensor, heads: int) -> Tensor:
    """(…, heads·width) as (…, heads, width)."""
    return torch.unflatten(x, -1, (heads, -1))


def root(size: int) -> float:
    """1/√size, by which a product of vectors of that size is scaled."""
    return 1 / math.sqrt(size)
