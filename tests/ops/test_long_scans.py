"""Scans on a GPU against float64, from 1 step to 65,537, in every dtype, rule and direction; and twice alike.

The reference is torch code in float64 on the same inputs. Tolerances are ‖out − ref‖ / ‖ref‖ of outputs and
of gradients; half-precision storage rounds both by itself.
"""

import functools
import itertools

import pytest
import torch

from lrnnx_app.ops import _blocked, planar
from lrnnx_app.ops._selective import blocked as chunks
from lrnnx_app.ops._table import TOLERANCE
from lrnnx_app.ops.discretized_scan import discretized_scan
from lrnnx_app.ops.linear_scan import linear_scan, state_dtype
from lrnnx_app.ops.rglru_scan import coefficients, rglru_scan
from lrnnx_app.ops.rules import KERNELS, SCANNED
from lrnnx_app.ops.selective_scan import selective_scan
from tests.helpers import relative as error

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
LENGTHS = (1, 2, 3, 31, 33, 127, 500, 1000, 2049, 16384, 65537)
# Times TOLERANCE that memories of thousands of steps may cost, outputs and gradients.
REAL, COMPLEX = {torch.float32: (2, 10)}, {torch.float32: (10, 100)}
OTHERS = {torch.float64: (1000, 1000), torch.float16: (3, 3), torch.bfloat16: (2.5, 2.5)}
SELECTIVE = {torch.float32: 20, torch.float16: 4, torch.bfloat16: 2.5}
KINDS = tuple(SCANNED)
BATCH, CHANNELS = 2, 24
LARGEST, SLOWEST = 0.9995, 0.01  # memories up to 2,000 steps: float32's own rounding of a costs memory · 6e-8


def tolerance(planes, dtype):
    return [TOLERANCE[dtype] * times for times in ({1: REAL, 2: COMPLEX}[planes] | OTHERS)[dtype]]


def blocked(a, b, h0, lengths=None, reset=None, reverse=False):
    return Blocked.apply(a, b, h0, lengths, reset, reverse)


class Blocked(torch.autograd.Function):
    """The torch implementation, whatever is built."""

    @staticmethod
    def forward(ctx, *args):
        out = _blocked.scan(*args)
        ctx.save_for_backward(args[0], out[0], *args[2:5])
        ctx.reverse = args[5]
        return out

    @staticmethod
    def backward(ctx, *grads):
        return *_blocked.adjoint(*grads, *ctx.saved_tensors, ctx.reverse), None, None, None


def draw(time, planes, dtype, seed=0, **scales):
    """Standard normal v (B, T, planes, N) and h0, and uniform numbers of the given shapes."""
    generator = torch.Generator("cuda").manual_seed(time + seed)
    v = torch.randn(BATCH, time, planes, CHANNELS, generator=generator, device="cuda").to(dtype)
    h0 = torch.randn(BATCH, planes, CHANNELS, generator=generator, device="cuda").to(state_dtype(dtype))
    return v, h0, {k: torch.rand(*s, generator=generator, device="cuda") for k, s in scales.items()}


def outputs_and_gradients(function, inputs, wide=False):
    leaves = [(x.double() if wide else x).detach().requires_grad_() for x in inputs]
    outputs = function(*leaves)
    generator = torch.Generator("cuda").manual_seed(1)
    weights = [torch.randn(y.shape, generator=generator, device="cuda").to(inputs[0].dtype) for y in outputs]
    total = sum((w.to(y.dtype) * y).sum(dtype=torch.float64) for w, y in zip(weights, outputs, strict=True))
    grads = torch.autograd.grad(total, leaves)
    return [x.detach() for x in outputs], list(grads)


def agree(function, definition, inputs, limits):
    got, again = (outputs_and_gradients(function, inputs) for _ in range(2))
    want = outputs_and_gradients(definition, inputs, wide=True)
    for kind, limit in enumerate(limits):
        for i, (x, second, y) in enumerate(zip(got[kind], again[kind], want[kind], strict=True)):
            assert torch.equal(x, second), ("differs between two runs", kind, i)
            assert error(x.double(), y) <= limit, (("output", "gradient")[kind], i, error(x.double(), y))


def flat(x):
    return x if x.shape[-2] == 2 else x.squeeze(-2)


@pytest.mark.parametrize("time", LENGTHS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("planes", [1, 2])
def test_linear_scan(planes, constant, reverse, time):
    for dtype in (torch.float32, *OTHERS):
        shape = (1, 1) if constant else (BATCH, time)
        v, h0, drawn = draw(time, planes, dtype, a=(*shape, planes, CHANNELS))
        # float16 could not hold the gradient of one `a` for all steps with a longer memory than of 100
        largest = 0.99 if constant and dtype == torch.float16 else LARGEST
        a = (drawn["a"] * (largest if planes == 1 else 0.7)).to(dtype)
        agree(
            lambda b, a, h: linear_scan(a, b, h, reverse=reverse),
            lambda b, a, h: blocked(a, b, h, reverse=reverse),
            [flat(v), flat(a), flat(h0)],
            tolerance(planes, dtype),
        )


@pytest.mark.parametrize("time", LENGTHS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("rule", KINDS)
@pytest.mark.parametrize("planes", [1, 2])
def test_discretized_scan(planes, rule, reverse, time):
    def definition(v, z, dt, h0):
        a, gain = KERNELS[rule](z, z.new_ones(1), dt)
        a, b = a.expand(v.shape), planar.mul(gain.expand(v.shape), v)
        states, last = blocked(flat(a), flat(b), flat(h0), reverse=reverse)
        return states.reshape(v.shape), last.reshape(h0.shape)

    for dtype in (torch.float32, *OTHERS):
        v, h0, drawn = draw(time, planes, dtype, z=(2, CHANNELS), dt=(BATCH, time))
        z = drawn["z"] * torch.tensor([[-0.5], [20.0]], device="cuda")
        z[0] -= SLOWEST
        z = z[:planes].to(h0.dtype)
        agree(
            lambda v, z, dt, h: discretized_scan(z, dt, v, h, rule=rule, reverse=reverse),
            definition,
            [v, z, (0.1 * drawn["dt"]).to(h0.dtype), h0],
            tolerance(planes, dtype),
        )


@pytest.mark.parametrize("time", LENGTHS)
@pytest.mark.parametrize("timed", [False, True])
def test_rglru_scan(timed, time):
    def definition(u, gate, input_gate, rate, h0, *dt):
        return blocked(*coefficients(gate, input_gate, u, rate, dt[0] if timed else None, None), h0)

    for dtype in (torch.float32, *OTHERS):
        v, h0, drawn = draw(time, 1, dtype, rate=(CHANNELS,), dt=(BATCH, time))
        u, h0 = flat(v), flat(h0)
        gates = [draw(time, 1, dtype, seed=k)[0].squeeze(-2) for k in (1, 2)]
        inputs = [u, *gates, drawn["rate"].to(h0.dtype), h0, *([drawn["dt"].to(h0.dtype)] if timed else [])]
        agree(
            lambda u, gate, input_gate, rate, h, *dt: rglru_scan(
                gate, input_gate, u, rate, h, dt=dt[0] if timed else None
            ),
            definition,
            inputs,
            tolerance(1, dtype),
        )


@pytest.mark.parametrize("time", LENGTHS)
@pytest.mark.parametrize("rule", KERNELS)
@pytest.mark.parametrize("planes", [1, 2])
def test_selective_scan(planes, rule, time):
    """Every operand, two groups, memories up to some thousand steps, and the gradients of all ten inputs."""
    number = (16,) if planes == 1 else (2, 8)
    generator = torch.Generator("cuda").manual_seed(time)
    normal, uniform = (
        functools.partial(f, generator=generator, device="cuda") for f in (torch.randn, torch.rand)
    )
    A = -0.5 - 7.5 * uniform(CHANNELS, *number)
    if planes == 2:
        A[:, 1] *= 3
    wide = [
        A,
        normal(CHANNELS),
        normal(CHANNELS) - 5,
        uniform(BATCH, time) + 0.5,
        normal(BATCH, CHANNELS, *number),
    ]
    elements = [normal(BATCH, time, CHANNELS) for _ in range(3)]
    weights = [normal(BATCH, time, 2, *number) for _ in range(2)]

    def function(u, delta, z, B, C, A, D, bias, dt, h0):
        return selective_scan(u, delta, A, B, C, D, h0, z=z, bias=bias, dt=dt, rule=rule, softplus=True)

    def definition(u, delta, z, B, C, A, D, bias, dt, h0):
        return chunks(u, delta, A, B, C, D, z, bias, dt, h0, None, None, True, KERNELS[rule])

    for dtype, times in SELECTIVE.items():
        narrow, limit = [x.to(dtype) for x in (*elements, *weights)], times * TOLERANCE[dtype]
        agree(function, definition, [*narrow, *wide], (limit, limit))


@pytest.mark.parametrize(("shape", "planes"), [*itertools.product([(1, 3, 65536), (3, 65537, 1)], [1, 2])])
def test_extreme_sizes(shape, planes):
    batch, time, channels = shape
    state = (channels,) if planes == 1 else (2, channels)
    generator = torch.Generator("cuda").manual_seed(0)
    a = torch.rand(batch, time, *state, generator=generator, device="cuda") * 0.7
    b = torch.randn(batch, time, *state, generator=generator, device="cuda")
    got, want = linear_scan(a, b)[0], blocked(a.double(), b.double(), None)[0]
    assert error(got.double(), want) <= tolerance(planes, torch.float32)[0]


def test_more_elements_than_fit_in_32_bits():
    time = 2**31 // 1024 + 3
    a = torch.full((1, 1, 1024), 0.5, device="cuda", dtype=torch.bfloat16)
    b = torch.ones(1, time, 1024, device="cuda", dtype=torch.bfloat16)
    states, last = linear_scan(a, b)
    assert states.numel() > 2**31
    assert (states[:, 8:] == 2).all()  # 2 − 2^(−t) rounds to 2
    assert (last - 2).abs().max() <= 1e-6
