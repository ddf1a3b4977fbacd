"""What is particular to one layer whose coefficients depend on the input."""

import pytest
import torch
from torch.autograd import gradcheck

from lrnnx_app.errors import RecipeError
from lrnnx_app.layers.gru import GRU
from lrnnx_app.ops.gru_scan import gru_scan, reference
from lrnnx_app.ops.rglru_scan import bounded_sqrt
from lrnnx_app.registry import LAYERS
from tests.helpers import relative

D_MODEL = 8


def test_rglru_starts_in_the_documented_range():
    cls = LAYERS["rglru"]
    a = torch.exp(-cls(4096, cls.Config(heads=4096)).rate)
    assert a.min() >= 0.9
    assert a.max() <= 0.999
    assert abs(a.mean() - 0.9495) < 0.003
    root = torch.exp(-cls(4096, cls.Config(heads=4096, start="released")).rate / 8)
    assert root.min() >= 0.9
    assert root.max() <= 0.999
    assert abs(root.square().mean() - (0.9**2 + 0.999**2) / 2) < 0.005


def test_bounded_sqrt_is_the_root_with_a_finite_slope():
    x = torch.tensor([0.0, 1e-12, 0.25, 1.0], dtype=torch.float64, requires_grad=True)
    y = bounded_sqrt(x)
    torch.testing.assert_close(y, x.sqrt())
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope, torch.tensor([1000.0, 1000.0, 1.0, 0.5], dtype=torch.float64))


def gru_inputs(time, scale=1.0):
    torch.manual_seed(3)

    def make(*shape):
        return (scale * torch.randn(*shape, dtype=torch.float64)).requires_grad_()

    return make(2, time, 3, 4), make(3, 4), make(2, 4)


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_gru_in_parallel_equals_one_step_at_a_time(scale):
    inputs, recurrent, h0 = gru_inputs(200, scale)
    options = {"tolerance": 1e-8, "max_iterations": 200}
    states, _, iterations = gru_scan(inputs, recurrent, h0, **options)
    assert relative(states, reference(inputs, recurrent, h0)) <= 1e-12
    assert 1 < iterations < 60


def test_gru_that_does_not_converge_in_time_is_right_all_the_same():
    inputs, recurrent, h0 = gru_inputs(50)
    states, _, iterations = gru_scan(inputs, recurrent, h0, tolerance=0.0, max_iterations=1)
    assert relative(states, reference(inputs, recurrent, h0)) <= 1e-12
    assert iterations == 51


@pytest.mark.parametrize("most", [6, 200])  # iterations, of which the first row needs more than the second
def test_a_row_of_gru_depends_on_no_other(most):
    inputs, recurrent, h0 = gru_inputs(100)
    size = torch.tensor([1.0, 1e-2], dtype=inputs.dtype)
    inputs, h0 = size[:, None, None, None] * inputs, size[:, None] * h0
    options = {"tolerance": 1e-6, "max_iterations": most}
    alike = (
        gru_scan(inputs[k].expand_as(inputs), recurrent, h0[k].expand_as(h0), **options) for k in range(2)
    )
    (_, _, slow), (quick, _, count) = alike
    assert count < min(slow, most)
    assert torch.equal(gru_scan(inputs, recurrent, h0, **options)[0][1], quick[1])


def test_gru_gradient_is_that_of_the_fixed_point():
    given = gru_inputs(6)
    dt = torch.rand(2, 6, dtype=torch.float64).add(0.5).requires_grad_()
    masks = {"lengths": torch.tensor([6, 3]), "reset": torch.arange(6).expand(2, -1) == 2}
    options = {"tolerance": 1e-8, "max_iterations": 100}

    def run(*z):
        return gru_scan(*z[:3], dt=z[3], **masks, **options)[:2]

    assert gradcheck(run, (*given, dt))
    grads = torch.autograd.grad(run(*given, dt)[0].square().sum(), (*given, dt))
    wanted = torch.autograd.grad(reference(*given, dt=dt, **masks).square().sum(), (*given, dt))
    for a, b in zip(grads, wanted, strict=True):
        assert relative(a, b) <= 1e-12


def test_gru_reports_its_iterations():
    layer = GRU(D_MODEL, GRU.Config(d_state=6))
    layer(torch.randn(2, 100, D_MODEL))
    assert 1 < int(layer.iterations) < 50


@pytest.mark.parametrize("name", ["mamba2", "mamba3", "gated_deltanet", "gla", "mlstm"])
def test_states_that_are_matrices_train_in_half_precision(name):
    layer = LAYERS[name](D_MODEL, LAYERS[name].Config())
    optimizer = torch.optim.AdamW(layer.parameters(), 0.02)
    x = torch.randn(4, 40, D_MODEL)
    losses = []
    for _ in range(25):
        with torch.autocast("cpu", torch.bfloat16):
            y, _ = layer(x)
        loss = (y.float()[:, 3:] - x[:, :-3]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad.isfinite().all() for p in layer.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("s6", {"rule": "zho"}, "did you mean 'zoh'"),
        ("stream", {"rule": "zoh"}, "expected one of: dirac"),
        ("rglru", {"start": "papers"}, "did you mean 'paper'"),
        ("rglru", {"heads": 3}, "does not divide"),
        ("glu", {"layer": "s4dd"}, "did you mean 's4d'"),
        ("glu", {"options": {"d_stat": 3}}, "did you mean 'd_state'"),
        ("s7", {"selective": ["stepp"]}, "did you mean 'step'"),
        ("s7", {"rule": "zho"}, "did you mean 'zoh'"),
        ("mamba2", {"head_dim": 3}, "head_dim: 3 does not divide 16"),
        ("mamba2", {"groups": 3}, "groups: 3 does not divide 2 heads"),
        ("mamba3", {"d_state": 3}, "expected an even number"),
        ("gla", {"head_dim": 3}, "head_dim: 3 does not divide 8"),
        ("local_attention", {"heads": 3}, "multiple of"),
        ("local_attention", {"window": 0}, "at least 1"),
    ],
)
def test_options_that_make_no_sense(name, options, message):
    with pytest.raises(RecipeError, match=message):
        LAYERS[name](D_MODEL, LAYERS[name].Config(**options))
