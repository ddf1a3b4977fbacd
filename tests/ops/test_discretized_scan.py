"""Scans that discretize as they go, against the definition in float64, on every device of this machine."""

import itertools
from functools import partial

import pytest
import torch

from lrnnx_app.layers._coefficients import Discretized, Given
from lrnnx_app.ops import linear_scan, planar
from lrnnx_app.ops.discretize import RULES
from lrnnx_app.ops.discretized_scan import coefficients, discretized_scan

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
TOLERANCE = {torch.float64: 1e-11, torch.float32: 3e-5, torch.bfloat16: 2e-2}
KINDS = tuple(rule for rule in RULES if rule != "asynchronous")


def make(time, channels=5, dtype=torch.float32, masked=False, planes=2):
    generator = torch.Generator().manual_seed(time)
    z = torch.rand(2, channels, generator=generator, dtype=torch.float64) * torch.tensor([[-0.5], [20.0]])
    z[:, 0] *= 1e-6  # nearly an integrator
    dt = 0.1 * torch.rand(2, time, generator=generator, dtype=torch.float64)
    v = torch.randn(2, time, planes, channels, generator=generator)
    h0 = torch.randn(2, planes, channels, generator=generator)
    wide = linear_scan.state_dtype(dtype)
    mask = {}
    if masked:
        mask["lengths"] = torch.randint(1, time + 1, (2,), generator=generator)
        mask["reset"] = torch.rand(2, time, generator=generator) < 0.1
    return [z[:planes].to(wide), dt.to(wide), v.to(dtype), h0.to(wide)], mask


def definition(z, dt, v, h0, rule, **options):
    """One step at a time, with coefficients and gains in memory."""
    a, gain = RULES[rule](z, z.new_ones(1), dt)
    a, b = a.expand(v.shape), planar.mul(gain.expand(v.shape), v)
    if v.shape[2] == 2:
        return linear_scan.reference(a, b, h0, **options)
    states, last = linear_scan.reference(a.squeeze(2), b.squeeze(2), h0.squeeze(1), **options)
    return states.unsqueeze(2), last.unsqueeze(1)


def run(function, inputs, mask, device="cpu", dtype=None, **options):
    leaves = [x.detach().to(device, dtype).requires_grad_() for x in inputs]
    outputs = function(*leaves, **{k: v.to(device) for k, v in mask.items()}, **options)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(y.shape, generator=generator).to(inputs[2].dtype).to(y) for y in outputs]
    total = sum((w * y).double().sum() for w, y in zip(weights, outputs, strict=True))
    return [x.detach().double().cpu() for x in (*outputs, *torch.autograd.grad(total, leaves))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rule", KINDS)
@pytest.mark.parametrize("planes", [1, 2])
def test_definition(device, masked, rule, planes):
    for time, channels, dtype in itertools.product((1, 2, 33, 200), (5, 40), TOLERANCE):
        inputs, mask = make(time, channels, dtype, masked, planes)
        options = {"rule": rule, "reverse": time % 2 == 0}
        got = run(discretized_scan, inputs, mask, device, **options)
        want = run(definition, inputs, mask, dtype=torch.float64, **options)
        for name, x, y in zip(("states", "last", "dz", "ddt", "dv", "dh0"), got, want, strict=True):
            error = (x - y).norm() / y.norm().clamp_min(1e-6)
            assert error <= TOLERANCE[dtype], (name, time, channels, dtype, error)


def test_either_kind_of_coefficients():
    (z, dt, v, h0), _ = make(9)
    for rule in RULES:
        a, gain = coefficients(z, dt, rule)
        found = Discretized(z, dt, rule).scan(v, h0)
        for got, want in zip(found, Given(a).scan(planar.mul(gain.expand(v.shape), v), h0), strict=True):
            torch.testing.assert_close(got, want)


def test_shapes_and_rules_are_named():
    with pytest.raises(ValueError, match=r"dt must be \(1, 5\), not \(1, 4\)"):
        discretized_scan(torch.ones(2, 3), torch.ones(1, 4), torch.ones(1, 5, 2, 3), rule="zoh")
    with pytest.raises(KeyError, match="foh"):
        discretized_scan(torch.ones(2, 3), torch.ones(1, 5), torch.ones(1, 5, 2, 3), rule="foh")


def test_second_derivatives():
    for rule in KINDS:
        inputs, mask = make(4, 2, torch.float64, masked=True)
        leaves = [x.requires_grad_() for x in inputs]
        assert torch.autograd.gradgradcheck(partial(discretized_scan, rule=rule, **mask), leaves)


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    inputs, mask = make(6, masked=True)
    z, dt, v, h0 = (x.to(device) for x in inputs)
    rest = (h0, mask["lengths"].to(device), mask["reset"].to(device), True, 1)
    torch.library.opcheck(torch.ops.lrnnx.discretized_scan.default, (z, dt, v, *rest))
    states, last = torch.ops.lrnnx.discretized_scan(z, dt, v, *rest)
    backward = (v, last, z, dt, v, states, *rest)
    torch.library.opcheck(torch.ops.lrnnx.discretized_scan_backward.default, backward)
