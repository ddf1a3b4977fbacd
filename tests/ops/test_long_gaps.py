"""Long gaps turn a state by many turns, and let it decay to nothing: right in float32, by every operator."""

import pytest
import torch

from lrnnx_app.layers._base import Layer
from lrnnx_app.ops import step
from lrnnx_app.ops.discretized_scan import discretized_scan
from lrnnx_app.ops.rules import KERNELS
from lrnnx_app.ops.selective_scan import reference, selective_scan
from lrnnx_app.registry import LAYERS
from tests.helpers import relative

PHASES = (1e3, 6e6, 7e6, 1e8, 1e9, 1e12, 1e15)


@pytest.mark.parametrize("rate", [1.0, 0.3, -7.1])
def test_a_state_is_turned_by_the_exact_phase(device, rate):
    z = torch.tensor([[0.0], [rate]])
    h0 = torch.tensor([[[1.0], [0.0]]])
    for dt in torch.tensor(PHASES):
        phase = z[1].double() * dt.double()
        want = torch.stack((phase.cos(), phase.sin()))
        given = (z, dt.view(1, 1), torch.zeros(1, 1, 2, 1), h0)
        states, _ = discretized_scan(*(x.to(device) for x in given), rule="dirac")
        torch.testing.assert_close(states[0, 0].double().cpu(), want, rtol=0, atol=1e-6)


def test_a_phase_in_float64_may_be_larger_still():
    z, h0 = torch.tensor([[0.0], [1.0]]).double(), torch.tensor([[[1.0], [0.0]]]).double()
    for phase in torch.tensor([1e14, 1e15, 1e16, 1e18]).double():
        states, _ = discretized_scan(z, phase.view(1, 1), torch.zeros(1, 1, 2, 1).double(), h0, rule="dirac")
        want = torch.stack((phase.cos(), phase.sin()))[:, None]
        torch.testing.assert_close(states[0, 0], want, rtol=0, atol=1e-14)


@pytest.mark.parametrize("rule", KERNELS)
def test_in_the_state_expanded_scan(device, rule):
    A = torch.randn(3, 2, 4)
    A[:, 0].abs_().neg_().mul_(1e-9)
    dt = torch.ones(2, 7)
    dt[:, 3] = 1e9
    u, gate = torch.randn(2, 7, 3), torch.randn(2, 7, 3)
    weights = torch.randn(2, 2, 7, 1, 2, 4)
    given = (u, torch.ones(2, 7, 3), A, *weights, torch.randn(3), torch.randn(2, 3, 2, 4))
    leaves = [x.to(device).requires_grad_() for x in given]
    got = selective_scan(*leaves, z=gate.to(device), dt=dt.to(device), rule=rule)
    wanted = reference(*(x.double() for x in given), z=gate.double(), dt=dt.double(), rule=rule)
    for x, y in zip(got, wanted, strict=True):
        assert relative(x.double().cpu(), y) < 1e-5
    (got[0].sum() + got[1].sum()).backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in leaves)


@pytest.mark.parametrize("rule", KERNELS)
def test_in_a_single_step(device, rule):
    a = torch.randn(5, 2, 3)
    a[:, 0].abs_().neg_().mul_(1e-9)
    v, h, dt = torch.randn(2, 5, 2, 3), torch.randn(2, 5, 2, 3), torch.tensor([1.0, 3e8])
    given = (v, h, a, None, None, None, None, dt, None)
    _, got = torch.ops.lrnnx.diagonal_step(
        *(x if x is None else x.to(device) for x in given), KERNELS[rule].code, False
    )
    _, wanted = step.reference(*(x if x is None else x.double() for x in given), KERNELS[rule], False)
    assert relative(got.double().cpu(), wanted) < 1e-5


@pytest.mark.parametrize("planes", [1, 2])
def test_what_decays_for_long_is_gone(device, planes):
    z, h0 = -torch.ones(planes, 3), torch.full((1, planes, 3), 1e38)
    v = torch.zeros(1, 1, planes, 3)
    given = (x.to(device) for x in (z, torch.full((1, 1), 1e3), v, h0))
    assert not discretized_scan(*given, rule="dirac")[0].any()


@pytest.mark.parametrize("name", [name for name, layer in LAYERS.items() if layer.uses_dt])
def test_layers_stay_finite(name):
    layer: Layer = LAYERS[name](8, LAYERS[name].Config())
    x, dt = torch.randn(2, 6, 8), torch.ones(2, 6)
    dt[:, 3] = 1e12
    with torch.no_grad():
        y, _ = layer(x, dt=dt)
        assert y.isfinite().all()
        state = layer.init_state(2)
        for t in range(6):
            y, state = layer.step(x[:, t], state, dt[:, t])
            assert y.isfinite().all()
