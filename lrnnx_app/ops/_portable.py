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


def _waves(length: int, like: Tensor) -> Tensor:
    """cos and −sin of every frequency (2, length // 2 + 1, length), as a spectrum's planes sum them."""
    t = torch.arange(length, dtype=torch.float64, device=like.device)
    turns = t[: length // 2 + 1, None] * t % length * (2 * math.pi / length)
    return torch.stack((turns.cos(), -turns.sin())).to(state_dtype(like.dtype))


def _rfft(x: Tensor) -> Tensor:
    waves = _waves(x.shape[-1], x)
    return (x.to(waves.dtype) @ waves.flatten(0, 1).T).unflatten(-1, (2, waves.shape[1]))


def _irfft(spectrum: Tensor, length: int) -> Tensor:
    waves = _waves(length, spectrum) * (fft_conv.multiplicity(length, spectrum) / length)[:, None]
    return spectrum.to(waves.dtype).flatten(-2) @ waves.flatten(0, 1)


_ops = torch.ops.lrnnx
DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    _ops.linear_scan.default: composed,
    _ops.discretized_scan.default: _discretized_scan,
    _ops.rglru_scan.default: _rglru_scan,
    _ops.convolve.default: _convolve,
    _ops.rfft.default: _rfft,
    _ops.irfft.default: _irfft,
    _ops.gru_states.default: _gru_states,
    _ops.selective_scan.default: partial(selective_scan.blocked, whole=True),
    _ops.short_conv.default: short_conv.blocked,
}
