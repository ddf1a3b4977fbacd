"""Every layer in every floating dtype, alone and mixed, against itself in float64; and a batch of none."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lrnnx_app.layers._build import build_layer
from lrnnx_app.layers._constants import frozen
from lrnnx_app.layers._examples import D_MODEL, Case, examples
from lrnnx_app.ops._table import TOLERANCE as ROUNDING
from lrnnx_app.registry import LAYERS, MODELS
from tests.helpers import each_form, relative, small_model
from tests.layers.test_layers import ALL, PLAIN

HALF, BRAIN, FLOAT, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
TIMES = {BRAIN: 3.75, HALF: 4, FLOAT: 30, DOUBLE: 1e5}  # what a layer's parts cost together
TOLERANCE = {dtype: times * ROUNDING[dtype] for dtype, times in TIMES.items()}
MIXED = [  # of parameters, x, dt and state
    (BRAIN, BRAIN, None, None),
    (HALF, HALF, HALF, HALF),
    (BRAIN, BRAIN, DOUBLE, BRAIN),
    (FLOAT, BRAIN, FLOAT, FLOAT),
    (HALF, FLOAT, FLOAT, None),
    (FLOAT, FLOAT, DOUBLE, DOUBLE),
    (DOUBLE, FLOAT, BRAIN, FLOAT),
    (FLOAT, HALF, None, HALF),
    (DOUBLE, DOUBLE, FLOAT, FLOAT),
]
each = pytest.mark.parametrize("case", PLAIN, ids=str)


def cast(state: Any, dtype: torch.dtype) -> Any:
    return type(state)(*(z.to(dtype) for z in state))


def run(layer: Any, x: Tensor, state: Any, dt: Tensor | None) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Outputs of `forward` and of steps, and the leaves of both states."""
    y, last = layer(x, state, dt=dt)
    now, ys = layer.init_state(len(x)) if state is None else state, []
    for t in range(x.shape[1]):
        one, now = layer.step(x[:, t], now, None if dt is None else dt[:, t])
        ys.append(one)
    return y, torch.stack(ys, 1), [*tree_leaves(last), *tree_leaves(now)]


@pytest.mark.parametrize("time", [3, 37])
@each
def test_every_dtype_is_as_accurate_as_its_digits(case, time):
    for own, of_x, of_dt, of_state in MIXED:
        layer, exact = case.build(own), case.build(own).double()
        x, dt, state = torch.randn(2, time, D_MODEL).to(of_x), None, None
        if of_dt is not None and layer.uses_dt:
            dt = (torch.rand(2, time) + 0.2).to(of_dt)
        with torch.no_grad():
            if of_state is not None:
                state = cast(exact(torch.randn(2, 5, D_MODEL).double())[1], of_state)
            precise = None if state is None else cast(state, DOUBLE)
            wanted = run(exact, x.double(), precise, None if dt is None else dt.double())
            found = run(layer, x, state, dt)
        tolerance = max(TOLERANCE[own], TOLERANCE[of_x])
        for y, exactly in zip(found[:2], wanted[:2], strict=True):
            assert y.dtype == of_x
            assert relative(y.double(), exactly) < tolerance, (own, of_x, of_dt, of_state)
        for one, exactly in zip(found[2], wanted[2], strict=True):
            assert one.dtype in (FLOAT, DOUBLE)
            assert relative(one.double(), exactly) < tolerance, (own, of_x, of_dt, of_state)


@each
def test_gradients_in_half_precision(case):
    for own, of_x in ((BRAIN, BRAIN), (HALF, FLOAT)):
        layer, x = case.build(own), torch.randn(2, 37, D_MODEL).to(of_x).requires_grad_()
        exact, wide = case.build(own).double(), x.detach().double().requires_grad_()
        for one, given in ((layer, x), (exact, wide)):
            one(given)[0].double().sin().sum().backward()
        assert x.grad is not None
        assert wide.grad is not None
        assert relative(x.grad.double(), wide.grad) < 2 * TOLERANCE[own]
        for p, q in zip(layer.parameters(), exact.parameters(), strict=True):
            assert p.grad is not None
            assert q.grad is not None
            assert p.grad.dtype == own
            assert relative(p.grad.double(), q.grad) < 0.1


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_over_many_steps_in_half_precision(name, mixed):
    """Of bfloat16 parameters, or of float32 ones under autocast: sums of rounded terms that cancel."""
    layer = build_layer(name, 8).to(FLOAT if mixed else BRAIN)
    exact = deepcopy(layer).double()
    x = torch.randn(2, 2048, 8).to(BRAIN)
    with torch.autocast("cpu", BRAIN, enabled=mixed):
        y, _ = layer(x.float() if mixed else x)
    y.double().square().mean().backward()  # under autocast it would round what forward did not
    exact(x.double())[0].square().mean().backward()
    for (key, p), q in zip(layer.named_parameters(), exact.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert relative(p.grad.double(), q.grad) < 5e-2, key


@pytest.mark.parametrize("case", ALL, ids=str)
def test_a_batch_of_none(case):
    layer = case.build(FLOAT)
    dt = torch.ones(0, 5) if layer.uses_dt else None
    lengths, reset = torch.zeros(0, dtype=torch.long), torch.zeros(0, 5, dtype=torch.bool)
    for given in ({}, {"dt": dt}, {"lengths": lengths, "reset": reset, "dt": dt}):
        x = torch.randn(0, 5, D_MODEL, requires_grad=True)
        y, state = layer(x, **given)
        assert y.shape == x.shape
        y.sum().backward()
        assert x.grad is not None
        assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())
    if layer.causal:
        y, state = layer(torch.randn(0, 40, D_MODEL), layer.init_state(0))
        y, state = layer.step(torch.randn(0, D_MODEL), state, None if dt is None else dt[:, 0])
        assert y.shape == (0, D_MODEL)
        for z, expected in zip(tree_leaves(state), tree_leaves(layer.init_state(0)), strict=True):
            assert (z.shape, z.dtype) == (expected.shape, expected.dtype)


@pytest.fixture
def strict_transforms(monkeypatch):
    """Transforms that refuse an empty batch, as those of some processors do."""

    def strict(transform):
        def some(x, *arguments, **options):
            if x.numel() == 0:
                raise RuntimeError("an empty batch")
            return transform(x, *arguments, **options)

        return some

    for name in ("rfft", "irfft"):
        monkeypatch.setattr(torch.fft, name, strict(getattr(torch.fft, name)))


@pytest.mark.parametrize("layer", LAYERS)
@each_form
def test_models_of_a_batch_of_none(name, form, layer, strict_transforms):
    both = [{"bidirectional": True}] if hasattr(MODELS[name].Config, "bidirectional") else []
    for options in ({}, *both):
        model = small_model(name, layer, **form, **options)
        x = torch.randn(0, 40, model.spec.d_input)
        whole = model(x)[0]
        assert len(whole) == 0
        lengths = torch.zeros(0, dtype=torch.long)
        assert model(x, lengths=lengths)[0].shape == whole.shape
        whole.sum().backward()
        if model.packs:
            reset = torch.zeros(0, 40, dtype=torch.bool)
            assert len(model(x, reset=reset)[0]) == 0
        if not options:
            assert model(x[:, :4], model.init_state(0))[0].shape[0] == 0


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_inside_another_is_what_it_is(name):
    """Whether it uses elapsed time and can be captured, and by which rule time acts."""
    case = examples(name)[0]
    inner, outer = case.build(FLOAT), Case("glu", {"layer": name, "options": case.options}).build(FLOAT)
    for told in ("uses_dt", "rule_name", "causal"):
        assert getattr(outer, told) == getattr(inner, told)
    x, dt = torch.randn(2, 5, D_MODEL), torch.full((2, 5), 2.0)
    if not inner.uses_dt:
        with pytest.raises(ValueError, match="no notion of elapsed time"):
            outer(x, dt=dt)


def test_a_pool_in_half_precision_counts_beyond_its_digits():
    torch.manual_seed(0)
    model, x = small_model("backbone").bfloat16(), torch.ones(1, 600, 3, dtype=BRAIN)
    with torch.no_grad():
        _, state = model(x)
        for piece in x.split(100, 1):
            _, state = model(piece, state)
    assert state.steps.item() == 1200
    assert state.pooled.dtype == FLOAT


def test_s4_reads_its_parameters_however_they_were_written():
    config = LAYERS["s4"].Config(d_state=8, l_max=16)
    layer, x = LAYERS["s4"](2, config).double().eval(), torch.randn(1, 24, 2).double()
    with torch.no_grad():
        layer(x)
        new = {name: 1.5 * value for name, value in layer.state_dict().items()}
        for name, p in layer.named_parameters():
            p.data.copy_(new[name])
        fresh = LAYERS["s4"](2, config).double().eval()
        fresh.load_state_dict(new)
        for time in (10, 24):
            assert torch.equal(layer(x[:, :time])[0], fresh(x[:, :time])[0])
        kept = frozen(layer)
        assert relative(run(kept, x, None, None)[1], fresh(x)[0]) < 1e-10
        assert set(kept.kept or ()) >= {"S4.readout", "S4.system"}
