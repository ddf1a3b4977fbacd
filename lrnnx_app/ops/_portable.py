"""The operators in plain real torch calls, functional and without a loop that data end: for other runtimes.

An exported program first holds the operators themselves; `DECOMPOSITIONS` says what they become. Only what a
stream needs is covered: no packed sequences, forward in time, no gradients.
"""

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
from lrnnx_app.ops.linear_scan import state_dtype


def _linear_scan(
    a: Tensor, b: Tensor, h0: Tensor | None, lengths: Tensor | None, reset: None, reverse: bool
) -> tuple[Tensor, Tensor]:
    """By doubling: after k rounds, every step has taken in the 2^k steps up to it."""
    assert reset is None
    assert not reverse
    real, time = b.ndim == 3, b.shape[1]
    a, h = (z.to(state_dtype(b.dtype)) for z in (a, b))
    a, h = (z.unsqueeze(-2) if real else z for z in (a, h))
    if lengths is not None:
        valid = (torch.arange(time, device=b.device) < lengths[:, None])[:, :, None, None]
        a, h = torch.where(valid, a, planar.one(a)), torch.where(valid, h, 0)
    if h0 is not None:
        start = planar.mul(a[:, :1], (h0.unsqueeze(-2) if real else h0)[:, None])
        h = torch.cat((h[:, :1] + start, h[:, 1:]), 1)
    distance = 1
    while distance < time:
        slope = a if a.shape[1] == 1 else a[:, distance:]
        h = torch.cat((h[:, :distance], h[:, distance:] + planar.mul(slope, h[:, :-distance])), 1)
        if a.shape[1] == 1:
            a = planar.mul(a, a)
        else:
            a = torch.cat((a[:, :distance], planar.mul(a[:, distance:], a[:, :-distance])), 1)
        distance *= 2
    h = h.squeeze(-2) if real else h
    return h.to(b.dtype), h[:, -1].clone()


def _discretized_scan(z, dt, v, h0, lengths, reset, reverse, rule):
    dtype = state_dtype(v.dtype)
    name = discretized_scan.NAMES[rule]
    a, gain = discretized_scan.Discretized(z.to(dtype), dt.to(dtype), name).coefficients()
    real = v.shape[2] == 1
    numbers = (a, planar.mul(gain.expand_as(v), v.to(dtype)), h0)
    flat: Any = [x if x is None or not real else x.squeeze(-2) for x in numbers]
    states, last = _linear_scan(flat[0], flat[1], flat[2], lengths, reset, reverse)
    return states.reshape(v.shape).to(v.dtype), last.reshape(v[:, 0].shape)


def _rglru_scan(gate, input_gate, u, rate, dt, first, h0, lengths, reset):
    a, b = rglru_scan.coefficients(gate, input_gate, u, rate, dt, first)
    states, last = _linear_scan(a, b, h0, lengths, reset, False)
    return states.to(u.dtype), last


def _convolve(u: Tensor, kernel: Tensor) -> Tensor:
    taps = kernel.flip(-1)
    taps, groups = (taps, 1) if kernel.ndim == 3 else (taps.unsqueeze(1), kernel.shape[0])
    padded = F.pad(u.transpose(1, 2), (kernel.shape[-1] - 1, 0))
    return F.conv1d(padded, taps.to(u.dtype), groups=groups).transpose(1, 2)


def _gru_states(inputs, recurrent, h0, dt, lengths, reset, tolerance, max_iterations):
    states = gru_scan.reference(inputs, recurrent, h0, dt=dt, lengths=lengths, reset=reset)
    return states, torch.zeros((), dtype=torch.int64)


_ops = torch.ops.lrnnx
DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    _ops.linear_scan.default: _linear_scan,
    _ops.discretized_scan.default: _discretized_scan,
    _ops.rglru_scan.default: _rglru_scan,
    _ops.convolve.default: _convolve,
    _ops.gru_states.default: _gru_states,
    _ops.selective_scan.default: partial(selective_scan.blocked, whole=True),
    _ops.short_conv.default: short_conv.blocked,
}
