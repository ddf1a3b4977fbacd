"""Scans with coefficients exp(z·δ) against the definition in float64, on every device of this machine."""

import itertools

import pytest
import torch

from lrnnx_app.ops import linear_scan
from lrnnx_app.ops.decayed_scan import Decay, decayed_scan, scan

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
TOLERANCE = {torch.float64: 1e-11, torch.float32: 3e-5, torch.bfloat16: 2e-2}


def make(time, channels=5, dtype=torch.float32, masked=False):
    generator = torch.Generator().manual_seed(time)
    z = torch.rand(2, channels, generator=generator, dtype=torch.float64) * torch.tensor([[-0.5], [20.0]])
    dt = 0.1 * torch.rand(2, time, generator=generator, dtype=torch.float64)
    b = torch.randn(2, time, 2, channels, generator=generator)
    h0 = torch.randn(2, 2, channels, generator=generator)
    wide = linear_scan.state_dtype(dtype)
    mask = {}
    if masked:
        mask["lengths"] = torch.randint(1, time + 1, (2,), generator=generator)
        mask["reset"] = torch.rand(2, time, generator=generator) < 0.1
    return [z.to(wide), dt.to(wide), b.to(dtype), h0.to(wide)], mask


def definition(z, dt, b, h0, **options):
    return linear_scan.reference(Decay(z, dt).coefficients(), b, h0, **options)


def operator(z, dt, b, h0, lengths=None, reset=None, reverse=False):
    return torch.ops.lrnnx.decayed_scan(z, dt, b, h0, lengths, reset, reverse)


def run(function, inputs, mask, device="cpu", dtype=None, **options):
    leaves = [x.detach().to(device, dtype).requires_grad_() for x in inputs]
    outputs = function(*leaves, **{k: v.to(device) for k, v in mask.items()}, **options)
    total = sum((y.double() ** 2).sum() / 2 for y in outputs)
    return [x.detach().double().cpu() for x in (*outputs, *torch.autograd.grad(total, leaves))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_definition(device, masked, reverse):
    sizes = itertools.product((1, 2, 33, 200), (5, 40), TOLERANCE)
    for (time, channels, dtype), function in itertools.product(sizes, (operator, decayed_scan)):
        inputs, mask = make(time, channels, dtype, masked)
        got = run(function, inputs, mask, device, reverse=reverse)
        want = run(definition, inputs, mask, dtype=torch.float64, reverse=reverse)
        for name, x, y in zip(("states", "last", "dz", "ddt", "db", "dh0"), got, want, strict=True):
            assert (x - y).norm() <= TOLERANCE[dtype] * y.norm().clamp_min(1e-6), (
                name,
                time,
                channels,
                dtype,
            )


def test_real_rates_and_either_kind_of_coefficients():
    z, dt, b = -torch.rand(1, 3), torch.rand(2, 9), torch.randn(2, 9, 1, 3)
    states, last = scan(Decay(z, dt), b)
    want, want_last = scan(torch.exp(z[0] * dt[..., None]), b[:, :, 0])
    torch.testing.assert_close(states[:, :, 0], want)
    torch.testing.assert_close(last[:, 0], want_last)


def test_shapes_are_named():
    with pytest.raises(ValueError, match=r"dt \(B, T\)"):
        decayed_scan(torch.ones(2, 3), torch.ones(1, 4), torch.ones(1, 5, 2, 3))


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    inputs, mask = make(6, masked=True)
    z, dt, b, h0 = (x.to(device) for x in inputs)
    rest = (h0, mask["lengths"].to(device), mask["reset"].to(device), True)
    torch.library.opcheck(torch.ops.lrnnx.decayed_scan.default, (z, dt, b, *rest))
    states, last = torch.ops.lrnnx.decayed_scan(z, dt, b, *rest)
    torch.library.opcheck(torch.ops.lrnnx.decayed_scan_backward.default, (b, last, z, dt, states, *rest))
