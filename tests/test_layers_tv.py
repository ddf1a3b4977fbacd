"""Layers whose coefficients depend on the input, each against a loop over its per-step definition."""

import pytest
import torch
from definitions import DEFINITIONS
from torch.autograd import gradcheck

from lrnnx_app.errors import RecipeError
from lrnnx_app.layers.gru import GRU
from lrnnx_app.ops.discretize import RULES
from lrnnx_app.ops.gru_scan import gru_scan, reference
from lrnnx_app.ops.rglru_scan import bounded_sqrt
from lrnnx_app.registry import LAYERS

D_MODEL = 8
CASES = {
    **{f"s6-{rule}": ("s6", {"rule": rule}) for rule in RULES},
    **{f"s6-complex-{rule}": ("s6", {"rule": rule, "complex": True}) for rule in RULES},
    "s6-wide": ("s6", {"d_conv": 2, "dt_rank": 3, "bias": True, "conv_bias": False}),
    "stream": ("stream", {}),
    "stream-complex": ("stream", {"complex": True}),
    "rglru": ("rglru", {"heads": 2}),
    "rglru-wide": ("rglru", {"d_rnn": 12, "heads": 3, "d_conv": 2, "unit_start": False, "start": "released"}),
    "s7": ("s7", {"d_state": 6}),
    "s7-all": ("s7", {"d_state": 6, "selective": ["step", "b", "c"], "rule": "bilinear"}),
    "gru": ("gru", {"d_state": 6}),
    "mingru": ("mingru", {"d_state": 6}),
    "local_attention": ("local_attention", {"window": 4, "heads": 2}),
}
QUICK = (
    "s6-euler",
    "s6-complex-zoh",
    "stream",
    "rglru",
    "rglru-wide",
    "s7-all",
    "gru",
    "mingru",
    "local_attention",
)


def build(case, dtype=torch.float64):
    name, options = CASES[case]
    torch.manual_seed(0)
    layer = LAYERS[name](D_MODEL, LAYERS[name].Config(**options))
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return layer.to(dtype)


def draw(case, batch=3, time=13, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, time, D_MODEL, dtype=torch.float64, generator=generator)
    dt = torch.rand(batch, time, dtype=torch.float64, generator=generator) + 0.2
    return x, None if case == "local_attention" else dt


def close(got, wanted, tolerance=1e-12):
    error = (got - wanted).norm() / wanted.norm().clamp_min(1e-12)
    assert error <= tolerance, f"relative error {error:.2e}"


@pytest.mark.parametrize("timed", [False, True], ids=["even", "timed"])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_definition(case, timed):
    layer = build(case)
    x, dt = draw(case)
    dt = dt if timed else None
    close(layer(x, dt=dt)[0], DEFINITIONS[CASES[case][0]](layer, x, dt))


# --- the contract --------------------------------------------------------------------------------------


def part(dt, *cut):
    return None if dt is None else dt[cut]


@pytest.mark.parametrize("case", CASES)
def test_step_equals_forward_equals_chunks(case):
    layer = build(case)
    x, dt = draw(case)
    whole, last = layer(x, dt=dt)
    for sizes in ([1] * 13, [1, 5, 7], [12, 1]):
        state, outputs = layer.init_state(3), []
        for start, size in zip(torch.tensor([0, *sizes]).cumsum(0).tolist(), sizes, strict=False):
            cut = (slice(None), slice(start, start + size))
            if size == 1:
                y, state = layer.step(x[:, start], state, part(dt, slice(None), start))
                y = y[:, None]
            else:
                y, state = layer(x[cut], state, dt=part(dt, *cut))
            outputs.append(y)
        close(torch.cat(outputs, 1), whole)
        for a, b in zip(state, last, strict=True):
            close(a, b)


@pytest.mark.parametrize("case", CASES)
def test_packed_equals_separate(case):
    layer = build(case)
    x, dt = draw(case)
    reset = torch.zeros(3, 13, dtype=torch.bool)
    starts = ([0, 5, 6], [0], [0, 12])
    for row, at in enumerate(starts):
        reset[row, at] = True
    old = layer(*draw(case, seed=1)[:1])[1]
    y, last = layer(x, old, dt=dt, reset=reset)
    for row, at in enumerate(starts):
        for start, stop in zip(at, [*at[1:], 13], strict=True):
            cut = (slice(row, row + 1), slice(start, stop))
            wanted, end = layer(x[cut], dt=part(dt, *cut))
            close(y[cut], wanted)
        for a, b in zip(last, end, strict=True):
            close(a[row : row + 1], b)


@pytest.mark.parametrize("case", CASES)
def test_padded_equals_unpadded(case):
    layer = build(case)
    x, dt = draw(case)
    lengths = [13, 6, 1]
    y, last = layer(x, dt=dt, lengths=torch.tensor(lengths))
    left = torch.stack([z.roll(13 - n, 0) for z, n in zip(x, lengths, strict=True)])
    left_dt = (
        None if dt is None else torch.stack([z.roll(13 - n, 0) for z, n in zip(dt, lengths, strict=True)])
    )
    reset = torch.arange(13) == 13 - torch.tensor(lengths)[:, None]
    y_left, last_left = layer(left, dt=left_dt, reset=reset)
    for row, n in enumerate(lengths):
        cut = (slice(row, row + 1), slice(0, n))
        wanted, end = layer(x[cut], dt=part(dt, *cut))
        close(y[cut], wanted)
        close(y_left[row : row + 1, 13 - n :], wanted)
        for a, b, c in zip(last, last_left, end, strict=True):
            close(a[row : row + 1], c)
            close(b[row : row + 1], c)


@pytest.mark.parametrize("case", CASES)
def test_a_row_of_length_zero_keeps_its_state(case):
    layer = build(case)
    x, dt = draw(case)
    for state in (layer.init_state(3), layer(x)[1]):
        _, last = layer(x, state, dt=dt, lengths=torch.zeros(3, dtype=torch.int64))
        for a, b in zip(last, state, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_gets_a_gradient(case):
    layer = build(case)
    x, _ = draw(case)
    layer(x)[0].square().mean().backward()
    idle = [name for name, p in layer.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []
    named = {id(p) for p in layer.parameters()}
    assert all(id(p) in named for p in layer.recurrent_parameters())


@pytest.mark.parametrize("name", sorted({name for name, _ in CASES.values()}))
def test_recurrent_names_exist(name):
    for case, (other, _) in CASES.items():
        if other == name:
            layer = build(case)
            found = dict(layer.named_parameters())
            expected = {n for n in layer.recurrent if n != "A_imag" or "complex" in case}
            assert expected <= set(found)
            assert len(list(layer.recurrent_parameters())) == len(expected)


SLOWEST = {  # parameter -> value that brings |a| to 1
    "A_log": -30.0,
    "recurrent_param": -100.0,
    "w": 1e4,
    "step_bias": -30.0,
    "b": -100.0,
}


@pytest.mark.parametrize("case", CASES)
def test_no_nan_in_bfloat16_where_a_nears_one(case):
    layer = build(case, torch.float32)
    with torch.no_grad():
        for name, p in layer.named_parameters():
            if name in SLOWEST:
                p.fill_(SLOWEST[name])
            if name == "in_proj.bias" and case in ("gru", "mingru"):
                p[:6] = -100
    x, dt = draw(case, time=300)
    x, dt = x.float().requires_grad_(), None if dt is None else dt.float()
    with torch.autocast("cpu", torch.bfloat16):
        y, state = layer(x, dt=dt)
        step, _ = layer.step(x[:, 0], state, None if dt is None else dt[:, 0])
    assert y.isfinite().all()
    assert step.isfinite().all()
    assert all(z.dtype == torch.float32 and z.isfinite().all() for z in state)
    y.float().square().mean().backward()
    assert all(z.grad.isfinite().all() for z in (x, *layer.parameters()))


@pytest.mark.parametrize("case", CASES)
def test_a_model_in_bfloat16_keeps_a_float32_state(case):
    layer, wide = build(case, torch.bfloat16), build(case)
    x, dt = draw(case)
    y, state = layer(x.bfloat16(), dt=None if dt is None else dt.bfloat16())
    assert y.dtype == torch.bfloat16
    assert all(z.dtype == torch.float32 for z in (*state, *layer.init_state(3)))
    again, _ = layer.step(x[:, 0].bfloat16(), state, None if dt is None else dt[:, 0].bfloat16())
    assert again.dtype == torch.bfloat16
    close(y.double(), wide(x, dt=dt)[0], 0.05)


@pytest.mark.parametrize("case", QUICK)
def test_compiles_as_one_graph(case):
    torch._dynamo.reset()
    layer = build(case)
    x, dt = draw(case)
    given = {"dt": dt, "lengths": torch.tensor([13, 6, 1]), "reset": torch.arange(13).expand(3, -1) == 4}
    y, last = torch.compile(layer, fullgraph=True, backend="aot_eager")(x, **given)
    wanted, end = layer(x, **given)
    close(y, wanted)
    for a, b in zip(last, end, strict=True):
        close(a, b)


# --- what is particular to one layer -------------------------------------------------------------------


def test_rglru_starts_in_the_documented_range():
    cls = LAYERS["rglru"]
    a = torch.exp(-cls(4096, cls.Config(heads=4096)).rate())
    assert a.min() >= 0.9
    assert a.max() <= 0.999
    assert abs(a.mean() - 0.9495) < 0.003
    root = torch.exp(-cls(4096, cls.Config(heads=4096, start="released")).rate() / 8)
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
    close(states, reference(inputs, recurrent, h0))
    assert 1 < iterations < 60


def test_gru_that_does_not_converge_in_time_is_right_all_the_same():
    inputs, recurrent, h0 = gru_inputs(50)
    states, _, iterations = gru_scan(inputs, recurrent, h0, tolerance=0.0, max_iterations=1)
    close(states, reference(inputs, recurrent, h0))
    assert iterations == 51


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
        close(a, b)


def test_gru_operator_is_registered_as_it_should_be():
    inputs, recurrent, h0 = (z.detach() for z in gru_inputs(5))
    torch.library.opcheck(torch.ops.lrnnx.gru_states, (inputs, recurrent, h0, None, None, None, 1e-8, 20))


def test_gru_reports_its_iterations():
    layer = GRU(D_MODEL, GRU.Config(d_state=6))
    layer(torch.randn(2, 100, D_MODEL))
    assert 1 < int(layer.iterations) < 50


def test_local_attention_refuses_elapsed_time():
    layer = build("local_attention")
    with pytest.raises(ValueError, match="leave out dt"):
        layer(torch.zeros(1, 3, D_MODEL).double(), dt=torch.ones(1, 3))


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
        ("local_attention", {"heads": 3}, "multiple of"),
        ("local_attention", {"window": 0}, "at least 1"),
    ],
)
def test_options_that_make_no_sense(name, options, message):
    with pytest.raises(RecipeError, match=message):
        LAYERS[name](D_MODEL, LAYERS[name].Config(**options))
