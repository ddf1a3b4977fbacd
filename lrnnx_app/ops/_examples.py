"""Example operands for every operator, and definitions for operators whose own file has none that fits.

Each `…_example(draw, sizes, …)` returns a dictionary from arguments of the function to operands. Axes have
different sizes where possible, so that two exchanged axes cause an error.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lrnnx_app.ops import advance as advance_op
from lrnnx_app.ops import gru_scan as gru_op
from lrnnx_app.ops import planar, row_linear
from lrnnx_app.ops import step as step_op
from lrnnx_app.ops.fft_conv import irfft
from lrnnx_app.ops.linear_scan import reference as linear_definition
from lrnnx_app.ops.rglru_scan import coefficients
from lrnnx_app.ops.rules import OWN

Operands = dict[str, Tensor]


class Sizes(NamedTuple):
    """Numbers of rows, steps and channels (or of groups, if each group has several states)."""

    batch: int
    time: int
    channels: int


class Draw:
    """Random numbers on a device.

    Unless `fine`, they are rounded to numbers that both float16 and bfloat16 can hold. Then the exact result
    is the same for every dtype.
    """

    def __init__(self, seed: int = 0, device: str = "cpu", fine: bool = False) -> None:
        self.device, self.fine = device, fine
        self._generator = torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return self._rounded(torch.randn(shape, generator=self._generator, device=self.device))

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        x = torch.rand(shape, generator=self._generator, device=self.device)
        return self._rounded(low + (high - low) * x)

    def direction(self, *shape: int) -> Tensor:
        """Vectors of norm 1 along the last axis."""
        return self._rounded(torch.nn.functional.normalize(self.normal(*shape), dim=-1))

    def masks(self, batch: int, time: int) -> Operands:
        """Lengths T, T/2 and 0 in turn, and random starts of packed sequences."""
        lengths = torch.tensor(([time, time // 2, 0] * batch)[:batch], dtype=torch.int64, device=self.device)
        return {"lengths": lengths, "reset": self.uniform(0, 1, batch, time) < 0.15}

    def rates(self, *shape: int) -> Tensor:
        """Planar eigenvalues (…, P, N) in the left half plane."""
        z = self.normal(*shape)
        return torch.cat((-z[..., :1, :].abs(), z[..., 1:, :]), -2)

    def _rounded(self, x: Tensor) -> Tensor:
        return x if self.fine else x.bfloat16().half().float()


def linear_example(draw: Draw, sizes: Sizes, planes: int = 1, a: str = "full") -> Operands:
    """`a` is "full", the same for all "rows" or "steps" or both ("constant"), or one of each of n "heads"."""
    batch, time, n = sizes
    state = {"heads": (n, 3, 2), "constant heads": (n, 3, 2)}.get(a, (n,) if planes == 1 else (2, n))
    of_state = {"heads": (n,), "constant heads": (n, 1, 1)}.get(a, state)
    rows = 1 if a in ("rows", "constant", "constant heads") else batch
    steps = 1 if a in ("steps", "constant", "constant heads") else time
    return {
        "a": draw.uniform(0, 0.99 if planes == 1 else 0.7, rows, steps, *of_state),
        "b": draw.normal(batch, time, *state),
        "h0": draw.normal(batch, *state),
        **draw.masks(batch, time),
    }


def discretized_example(draw: Draw, sizes: Sizes, planes: int = 2) -> Operands:
    batch, time, n = sizes
    z = torch.cat((draw.uniform(-0.5, 0, 1, n), draw.uniform(0, 20, planes - 1, n)))
    z[:, 0] /= 2**14  # nearly an integrator
    return {
        "z": z,
        "dt": draw.uniform(0, 0.1, batch, time),
        "v": draw.normal(batch, time, planes, n),
        "h0": draw.normal(batch, planes, n),
        **draw.masks(batch, time),
    }


def discretized_definition(z: Tensor, dt: Tensor, v: Tensor, h0: Tensor | None = None, *, rule: str, **rest):
    """A loop over steps, from coefficients and gains of all steps."""
    a, gain = OWN[rule](z, z.new_ones(1), dt)
    given: list[Any] = [a.expand(v.shape), planar.mul(gain.expand(v.shape), v), h0]
    if v.shape[2] == 1:
        given = [x if x is None else x.squeeze(-2) for x in given]
    states, last = linear_definition(*given, **rest)
    return states.reshape(v.shape), last.reshape(v[:, 0].shape)


def rglru_definition(
    gate: Tensor, input_gate: Tensor, u: Tensor, rate: Tensor, h0=None, *, dt=None, first=None, **rest
):
    """A loop over steps, from coefficients and inputs of all steps."""
    a, b = coefficients(gate, input_gate, u, rate, dt, first)
    return linear_definition(a, b, h0, **rest)


def rglru_example(draw: Draw, sizes: Sizes) -> Operands:
    batch, time, n = sizes
    gate, input_gate, u = (draw.normal(*sizes) for _ in range(3))
    return {
        "gate": gate,
        "input_gate": input_gate,
        "u": u,
        "rate": draw.uniform(0.1, 1, n),
        "h0": draw.normal(batch, n),
        "dt": draw.uniform(0.1, 1.1, batch, time),
        "first": draw.uniform(0, 1, batch, time) < 0.3,
        **draw.masks(batch, time),
    }


def selective_example(
    draw: Draw, sizes: Sizes, planes: int = 1, n: int = 3, groups: int | None = None
) -> Operands:
    batch, time, channels = sizes
    number, groups = (n,) if planes == 1 else (2, n), groups or (1 if channels % 2 else 2)
    A = draw.rates(channels, planes, n)
    return {
        "u": draw.normal(*sizes),
        "delta": draw.normal(*sizes),
        "A": A.squeeze(1) if planes == 1 else A,
        "B": draw.normal(batch, time, groups, *number),
        "C": draw.normal(batch, time, groups, *number),
        "D": draw.normal(channels),
        "z": draw.normal(*sizes),
        "bias": draw.uniform(-4.5, -1, channels),
        "dt": draw.uniform(0.1, 1.1, batch, time),
        "h0": draw.normal(batch, channels, *number),
        **draw.masks(batch, time),
    }


def bank_example(draw: Draw, sizes: Sizes, modes: int = 3) -> Operands:
    batch, time, groups = sizes
    n = groups * modes
    return {
        "v": draw.normal(*sizes),
        "log_a": torch.cat((draw.uniform(-1, 0, 1, n), draw.uniform(0, 3, 1, n))),
        "gain": draw.normal(2, n),
        "c": draw.normal(2, n),
        "direct": draw.normal(groups),
        "h0": draw.normal(batch, 2, n),
        "lengths": draw.masks(batch, time)["lengths"],
    }


def matrix_example(
    draw: Draw,
    sizes: Sizes,
    of_channels: bool = False,
    delta: bool = True,
    erase: bool = False,
    n: int = 5,
    width: int = 3,
) -> Operands:
    batch, time, heads = sizes
    shape = batch, time, heads, n
    given = {
        "q": draw.normal(*shape),
        "k": draw.direction(*shape),
        "v": draw.normal(batch, time, heads, width),
        "log_decay": draw.uniform(-1, 0, *(shape if of_channels else shape[:-1])),
        "h0": draw.normal(batch, heads, width, n),
        **draw.masks(batch, time),
    }
    given |= {"beta": draw.uniform(0, 2, *shape[:-1])} if delta else {}
    return given | ({"erase": draw.direction(*shape)} if erase else {})


def conv_example(draw: Draw, sizes: Sizes, width: int = 4) -> Operands:
    batch, time, n = sizes
    return {
        "x": draw.normal(*sizes),
        "weight": draw.normal(n, width),
        "bias": draw.normal(n),
        "state": draw.normal(batch, width - 1, n),
        **draw.masks(batch, time),
    }


def gru_example(draw: Draw, sizes: Sizes) -> Operands:
    batch, time, n = sizes
    return {
        "inputs": draw.normal(batch, time, 3, n),
        "recurrent": draw.normal(3, n),
        "h0": draw.normal(batch, n),
        "dt": draw.uniform(0.1, 1.1, batch, time),
        **draw.masks(batch, time),
    }


def gru(inputs: Tensor, recurrent: Tensor, h0: Tensor, **rest: Any) -> tuple[Tensor, Tensor]:
    """`gru_scan`, solved to about the precision of its dtype; does not return the number of iterations."""
    solve = {"tolerance": torch.finfo(inputs.dtype).eps ** 0.75, "max_iterations": 50}
    return gru_op.gru_scan(inputs, recurrent, h0, **rest, **solve)[:2]


def gru_definition(inputs: Tensor, recurrent: Tensor, h0: Tensor, **rest: Any) -> tuple[Tensor, Tensor]:
    states = gru_op.reference(inputs, recurrent, h0, **rest)
    return states, states[:, -1]


def fft_example(draw: Draw, sizes: Sizes, mixing: bool = False) -> Operands:
    _, time, n = sizes
    taps = max(1, time - 2)
    return {"u": draw.normal(*sizes), "kernel": draw.normal(*((n + 1,) if mixing else ()), n, taps)}


def spectrum_definition(x: Tensor) -> Tensor:
    z = torch.fft.rfft(x)
    return torch.stack((z.real, z.imag), -2)


def samples(spectrum: Tensor) -> Tensor:
    """`irfft` of an odd number of samples."""
    return irfft(spectrum, 2 * spectrum.shape[-1] - 1)


def samples_definition(spectrum: Tensor) -> Tensor:
    return torch.fft.irfft(torch.complex(*spectrum.unbind(-2)), 2 * spectrum.shape[-1] - 1)


def step_example(draw: Draw, sizes: Sizes, planes: int = 2, n: int = 6, contracted: bool = True) -> Operands:
    batch, _, groups = sizes
    given = {
        "v": draw.normal(batch, groups) if contracted else draw.normal(batch, groups, planes, n),
        "h": draw.normal(batch, groups, planes, n),
        "a": draw.rates(groups, planes, n),
        "gain": draw.normal(batch, 1, planes, n),
        "step": draw.normal(batch, groups, 1),
        "dt": draw.uniform(0.1, 1.1, batch),
    }
    of_outputs = {
        "c": draw.normal(groups, planes, n),
        "direct": draw.normal(groups),
        "gate": draw.normal(batch, groups),
    }
    return given | (of_outputs if contracted else {})


def step_definition(
    v, h, a, gain=None, c=None, direct=None, *, step=None, dt=None, gate=None, rule=None, softplus=False
) -> tuple[Tensor, Tensor]:
    kind = None if rule is None else OWN[rule]
    return step_op.reference(v, h, a, gain, c, direct, step, dt, gate, kind, softplus)


def rows_example(draw: Draw, sizes: Sizes, heads: int = 1) -> Operands:
    batch, _, n = sizes
    inner, wide = 4 * n, 8 * n * heads
    return {
        "x": draw.normal(batch, heads * inner),
        "weight": draw.normal(wide, inner) / 8,
        "bias": draw.normal(wide),
        "skip": draw.normal(wide),
        "via": draw.normal(batch, wide),
        "times": draw.normal(batch, wide),
    }


def rows_definition(
    x, weight, bias=None, *, skip=None, via=None, times=None, heads=1, activation=None, gelu=False
) -> Tensor:
    code = row_linear.CODES[activation]
    return row_linear.reference(x, weight, bias, skip, via, times, heads, code, gelu)


def advance_example(draw: Draw, sizes: Sizes) -> Operands:
    batch, _, n = sizes
    held = {"held": draw.normal(*sizes), "more": draw.normal(batch, n)}
    new = {"new": draw.normal(*sizes), "new_more": draw.normal(batch, n)}
    return {**held, **new, "active": draw.uniform(0, 1, batch) < 0.5}


def advance(held: Tensor, more: Tensor, new: Tensor, new_more: Tensor, active: Tensor) -> tuple[Tensor, ...]:
    """`ops.advance` on copies of two tensors, since it overwrites its arguments."""
    states = [x.clone(memory_format=torch.contiguous_format) for x in (held, more)]
    advance_op.advance(states, [new, new_more], active)
    return tuple(states)


def advance_definition(held: Tensor, more: Tensor, new: Tensor, new_more: Tensor, active: Tensor):
    pairs = ((held, new), (more, new_more))
    return tuple(torch.where(active.view(-1, *[1] * (x.ndim - 1)), y, x) for x, y in pairs)
