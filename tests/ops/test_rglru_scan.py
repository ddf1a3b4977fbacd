"""The RG-LRU's scan against its formulas one step at a time in float64, on every device of this machine."""

import itertools

import pytest
import torch

from lrnnx_app.ops.linear_scan import state_dtype
from lrnnx_app.ops.rglru_scan import bounded_sqrt, rglru_scan

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
NAMES = ("states", "last", "gate", "input_gate", "u", "rate", "h0", "dt")


def make(time, channels=5, dtype=torch.float32, masked=False, timed=True):
    generator = torch.Generator().manual_seed(time)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    gate, input_gate, u = (normal(2, time, channels).to(dtype) for _ in range(3))
    wide = state_dtype(dtype)
    rate = torch.rand(channels, generator=generator, dtype=torch.float64)
    rate[0] = 1e-9  # a rounds to 1 in float32
    inputs = [gate, input_gate, u, rate.to(wide), normal(2, channels).to(wide)]
    if timed:
        inputs.append((0.1 + torch.rand(2, time, generator=generator)).to(wide))
    mask = {}
    if masked == "first":
        mask["first"] = torch.arange(2 * time).view(2, time) % 3 == 0
    elif masked:
        mask["lengths"] = torch.randint(1, time + 1, (2,), generator=generator)
        mask["reset"] = torch.rand(2, time, generator=generator) < 0.1
        mask["first"] = mask["reset"] | (torch.arange(time) == 0)
    return inputs, mask


def definition(gate, input_gate, u, rate, h0, dt=None, lengths=None, reset=None, first=None):
    h, states = h0, []
    for t in range(u.shape[1]):
        log_a = -rate * torch.sigmoid(gate[:, t]) * (1 if dt is None else dt[:, t, None])
        multiplier = bounded_sqrt(-torch.expm1(2 * log_a))
        if first is not None:
            multiplier = torch.where(first[:, t, None], 1, multiplier)
        before = h if reset is None else torch.where(reset[:, t, None], 0, h)
        new = torch.exp(log_a) * before + multiplier * torch.sigmoid(input_gate[:, t]) * u[:, t]
        h = new if lengths is None else torch.where((t < lengths)[:, None], new, h)
        states.append(h)
    return torch.stack(states, 1), h


def fused(gate, input_gate, u, rate, h0, dt=None, **mask):
    return rglru_scan(gate, input_gate, u, rate, h0, dt=dt, **mask)


def run(function, inputs, mask, device="cpu", dtype=None):
    leaves = [x.detach().to(device, dtype).requires_grad_() for x in inputs]
    outputs = function(*leaves, **{k: v.to(device) for k, v in mask.items()})
    total = sum((y.double() ** 2).sum() / 2 for y in outputs)
    return [x.detach().double().cpu() for x in (*outputs, *torch.autograd.grad(total, leaves))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("masked", [False, "first", True])
@pytest.mark.parametrize("timed", [False, True])
def test_definition(device, masked, timed):
    for time, channels, dtype in itertools.product((1, 2, 33, 200), (5, 40), TOLERANCE):
        inputs, mask = make(time, channels, dtype, masked, timed)
        got = run(fused, inputs, mask, device)
        want = run(definition, inputs, mask, dtype=torch.float64)
        for name, x, y in zip(NAMES, got, want, strict=False):
            error = (x - y).norm() / y.norm().clamp_min(1e-6)
            assert error <= TOLERANCE[dtype], (name, time, channels, dtype, error)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("time", [1, 6])
def test_numbers_say_as_well_where_a_sequence_starts(device, time):
    inputs, mask = make(time, masked="first")
    for got, want in zip(
        run(fused, inputs, {"first": mask["first"].float()}, device),
        run(fused, inputs, mask, device),
        strict=True,
    ):
        assert torch.equal(got, want)


def test_gradients_stay_finite_where_nothing_decays():
    inputs, mask = make(5)
    inputs[3].zero_()
    assert all(x.isfinite().all() for x in run(fused, inputs, mask))


def test_second_derivatives():
    inputs, mask = make(4, 2, torch.float64, masked=True)
    inputs[3] += 0.1  # the bound on the square root's slope has no second derivative
    leaves = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradgradcheck(lambda *x: fused(*x, **mask), leaves)


def test_shapes_are_named():
    with pytest.raises(ValueError, match=r"rate must be \(3,\), not \(4,\)"):
        rglru_scan(*torch.ones(3, 1, 4, 3), torch.ones(4))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("timed", [False, True])
def test_opcheck(device, timed):
    (gate, input_gate, u, rate, h0, *dt), mask = make(6, masked=True, timed=timed)
    given = (gate, input_gate, u, rate, dt[0] if timed else None, mask["first"])
    rest = (h0, mask["lengths"], mask["reset"])
    given, rest = ([None if x is None else x.to(device) for x in xs] for xs in (given, rest))
    torch.library.opcheck(torch.ops.lrnnx.rglru_scan.default, (*given, *rest))
    states, last = torch.ops.lrnnx.rglru_scan(*given, *rest)
    torch.library.opcheck(
        torch.ops.lrnnx.rglru_scan_backward.default, (u.to(device), last, *given, states, *rest)
    )
