"""NaN and inf stay where they are: they cross no start of a packed sequence, and padding is not read.

Over all layers, with kernels and, in a process of its own, with the torch code that runs without them.
"""

import math

import pytest
import torch
from torch.utils._pytree import tree_leaves

from lrnnx_app.ops.linear_scan import linear_scan
from tests.helpers import TOLERANCE, again_without_kernels, relative
from tests.layers.test_layers import D_MODEL, TIMED, TIMED_PLAIN, _name

BATCH, TIME, START = 2, 21, 9
KINDS = {"cpu": torch.float64, "cuda": torch.float32}  # of which all kernels of a device take
each_bad = pytest.mark.parametrize("bad", [math.nan, math.inf], ids=str)


def _given(device, timed, starts=(0, START)):
    kind = {"device": device, "dtype": KINDS[device]}
    x = torch.randn(BATCH, TIME, D_MODEL, **kind)
    dt = torch.rand(BATCH, TIME, **kind) + 0.2 if timed else None
    reset = torch.zeros(BATCH, TIME, dtype=torch.bool, device=device)
    reset[:, list(starts)] = True
    return x, dt, reset


def _layer(device, case):
    return case.build(KINDS[device]).to(device)


def _results(layer, x, dt, part, **masks):
    """Outputs of a part of time, states, and the gradient of both by x, all of that part alone."""
    x = x.clone().requires_grad_()
    y, state = layer(x, dt=dt, **masks)
    states = [s for s in tree_leaves(state) if s is not None and s.is_floating_point()]
    y = y[:, part]
    total = y.sin().sum() + sum(s.sin().sum() for s in states)
    (slope,) = torch.autograd.grad(total, x)
    return [y, *states, slope[:, part]]


def _same(found, wanted):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.isfinite().all()
        limit = TOLERANCE[one.dtype]
        assert relative(one, other) < limit or (one - other).abs().max() < limit / 100


@each_bad
@pytest.mark.parametrize(("case", "timed"), TIMED, ids=_name)
def test_nothing_crosses_a_start(device, case, timed, bad):
    layer, (x, dt, reset) = _layer(device, case), _given(device, timed)
    wanted = _results(layer, x, dt, slice(START, None), reset=reset)
    x[:, 2 : START - 1] = bad
    _same(_results(layer, x, dt, slice(START, None), reset=reset), wanted)


@each_bad
@pytest.mark.parametrize(("case", "timed"), TIMED, ids=_name)
def test_padding_is_not_read(device, case, timed, bad):
    layer, (x, dt, _) = _layer(device, case), _given(device, timed)
    lengths = torch.full((BATCH,), START, device=device)
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def results():
        found = _results(layer, x, dt, slice(START), lengths=lengths)
        y, _ = layer(x, dt=dt, lengths=lengths)
        return [*found, *torch.autograd.grad(y[:, :START].sin().sum(), parameters)]

    wanted = results()
    x[:, START:] = bad
    if dt is not None:
        dt[:, START:] = bad
    _same(results(), wanted)
    assert len(names) > 0


@pytest.mark.parametrize(("case", "timed"), TIMED_PLAIN, ids=_name)
def test_a_lost_step_is_not_hidden(device, case, timed):
    layer, (x, dt, _) = _layer(device, case), _given(device, timed)
    x[:, 3] = math.nan
    y, state = layer(x, dt=dt)
    assert y[:, 3].isnan().any()
    if case.name != "local_attention":  # whose window has passed
        assert any(s.isnan().any() for s in tree_leaves(state))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize("place", range(0, 40, 7))
def test_scan_of_any_place(device, place, even, reverse):
    """Of what a scan and its adjoint are given at a step, nothing crosses the starts around it."""
    time, first, last = 40, place // 8 * 8, place // 8 * 8 + 8
    kind = {"device": device, "dtype": torch.float64}
    a = torch.rand(1, 1 if even else time, 2, 3, **kind) / 2
    b = torch.randn(1, time, 2, 3, **kind)
    steps = torch.arange(time, device=device)
    reset = (steps % 8 == 0)[None]
    inside = (steps >= first) & (steps < last)

    def results():
        leaves = [z.clone().requires_grad_() for z in (a, b)]
        h, _ = linear_scan(*leaves, reset=reset, reverse=reverse)
        slopes = torch.autograd.grad((h * weight).sum(), leaves)
        return [z[:, ~inside] for z in (h.detach(), *(slopes[1:] if even else slopes))]

    weight = torch.randn(1, time, 2, 3, **kind)
    wanted = results()
    b[:, place] = weight[:, place] = math.nan
    if not even:
        a[:, place] = math.nan
    _same(results(), wanted)


def test_without_kernels():
    again_without_kernels(__file__)
