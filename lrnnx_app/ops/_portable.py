"""The operators by plain torch calls on real numbers, for programs that run outside lrnnx.

An exported program first contains the operators themselves; `DECOMPOSITIONS` maps each to the function that
replaces it. These functions write nothing in place, and no loop depends on data. They serve streams only: one
sequence a row, forward in time, no gradients.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lrnnx_app.ops import (  # noqa: F401  (each defines its operator)
    discretized_scan,
    fft_conv,
    gru_scan,
    matrix_scan,
    planar,
    rglru_scan,
    selective_scan,
    short_conv,
)
from lrnnx_app.ops._blocked import composed
from lrnnx_app.ops.linear_scan import state_dtype
from lrnnx_app.ops.rules import numbered


def _discretized_scan(z, dt, v, h0, lengths, reset, reverse, rule):
    dtype = state_dtype(v.dtype)
    a, gain = numbered(rule).from_rates(z.to(dtype), dt.to(dtype))
    real = v.shape[2] == 1
    numbers = (a, planar.mul(gain.expand_as(v), v.to(dtype)), h0)
    flat: Any = [x if x is None or not real else x.squeeze(-2) for x in numbers]
    states, last = composed(flat[0], flat[1], flat[2], lengths, reset, reverse)
    return states.reshape(v.shape).to(v.dtype), last.reshape(v[:, 0].shape)


def _rglru_scan(gate, input_gate, u, rate, dt, first, h0, lengths, reset):
    a, b = rglru_scan.coefficients(gate, input_gate, u, rate, dt, first)
    states, last = composed(a, b, h0, lengths, reset, False)
    return states.to(u.dtype), last


def _convolve(u: Tensor, kernel: Tensor) -> Tensor:
    taps = kernel.flip(-1)
    taps, groups = (taps, 1) if kernel.ndim == 3 else (taps.unsqueeze(1), kernel.shape[0])
    padded = F.pad(u.transpose(1, 2), (kernel.shape[-1] - 1, 0))
    return F.conv1d(padded, taps.to(u.dtype), groups=groups).transpose(1, 2)


def _gru_states(inputs, recurrent, h0, dt, lengths, reset, tolerance, max_iterations):
    states = gru_scan.reference(inputs, recurrent, h0, dt=dt, lengths=lengths, reset=reset)
    return states, torch.zeros((), dtype=torch.int64)


def _stages(length: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Two real matrices whose product is the Fourier transform, of far fewer numbers than that has.

    Sample n = columns·m + q and frequency k = i + rows·j: the first (2·rows, rows) goes from m to i, and the
    second (rows, 2·columns, 2·half) from q to j for each i. Planes are real and imaginary.
    """
    rows = max(n for n in range(1, math.isqrt(length) + 1) if length % n == 0)
    columns = length // rows
    turn = torch.arange(length, dtype=torch.float64, device=like.device) * (2 * math.pi / length)
    i, q, j = (torch.arange(size, device=like.device) for size in (rows, columns, columns // 2 + 1))
    first = turn[i[:, None] * i * columns % length]
    second = turn[(i[:, None, None] + rows * j) * q[:, None] % length]
    planes = second.cos(), -second.sin(), second.sin(), second.cos()
    joined = torch.cat((torch.cat(planes[:2], -1), torch.cat(planes[2:], -1)), 1)
    dtype = state_dtype(like.dtype)
    return torch.cat((first.cos(), -first.sin())).to(dtype), joined.to(dtype)


def _rfft(x: Tensor) -> Tensor:
    length = x.shape[-1]
    first, second = _stages(length, x)
    rows = first.shape[1]
    inner = first @ x.to(first.dtype).unflatten(-1, (rows, -1))
    inner = inner.unflatten(-2, (2, rows)).transpose(-2, -3).flatten(-2)
    spectrum = (inner.unsqueeze(-2) @ second).squeeze(-2).unflatten(-1, (2, -1))
    return spectrum.movedim(-3, -1).flatten(-2)[..., : length // 2 + 1]


def _irfft(spectrum: Tensor, length: int) -> Tensor:
    """The transpose of `_rfft`, of weighted frequencies."""
    first, second = _stages(length, spectrum)
    rows, half = first.shape[1], second.shape[-1] // 2
    weighted = spectrum.to(first.dtype) * (fft_conv.multiplicity(length, spectrum) / length)
    weighted = F.pad(weighted, (0, rows * half - weighted.shape[-1]))
    inner = weighted.unflatten(-1, (half, rows)).movedim(-1, -3).flatten(-2)
    inner = (inner.unsqueeze(-2) @ second.mT).squeeze(-2).unflatten(-1, (2, -1))
    return (first.T @ inner.transpose(-2, -3).flatten(-3, -2)).flatten(-2)


def _flip(x: Tensor, dims: list[int]) -> Tensor:
    """By gathering: few other programs take a slice with a negative step."""
    for dim in dims:
        x = x.index_select(dim, torch.arange(x.shape[dim] - 1, -1, -1, device=x.device))
    return x


_ops = torch.ops.lrnnx
DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    _ops.linear_scan.default: composed,
    _ops.discretized_scan.default: _discretized_scan,
    _ops.rglru_scan.default: _rglru_scan,
    _ops.matrix_scan.default: partial(matrix_scan.chunked, whole=True),
    _ops.convolve.default: _convolve,
    _ops.rfft.default: _rfft,
    _ops.irfft.default: _irfft,
    _ops.gru_states.default: _gru_states,
    _ops.selective_scan.default: partial(selective_scan.blocked, whole=True),
    _ops.short_conv.default: short_conv.blocked,
    torch.ops.aten.flip.default: _flip,
}
