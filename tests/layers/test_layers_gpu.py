"""Every layer on a GPU: the same numbers as in float64 on a CPU, also compiled by inductor."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from lrnnx_app.layers._properties import inputs
from tests.helpers import relative
from tests.layers.test_layers import ALL, OWN_FORMS, PLAIN, TIMED, _name

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
FIRST = [case for i, case in enumerate(PLAIN) if case.name not in {c.name for c in PLAIN[:i]}]


def _run(layer, x, dt):
    """Output, last state and gradients of the parameters."""
    y, state = layer(x, dt=dt)
    grads = torch.autograd.grad(y.square().sum(), list(layer.parameters()))
    return [y, *(leaf for leaf in tree_leaves(state) if leaf is not None and leaf.is_floating_point())], grads


@pytest.mark.parametrize(("case", "timed"), TIMED, ids=_name)
def test_the_gpu_agrees_with_float64(case, timed):
    x, dt = inputs(timed, time=70)
    x = x.float()
    dt = None if dt is None else dt.float()
    exact = case.build().float().double()  # the same, rounded, parameters
    expected, wanted = _run(exact, x.double(), None if dt is None else dt.double())
    gpu = case.build().float().cuda()
    values, grads = _run(gpu, x.cuda(), None if dt is None else dt.cuda())
    for value, reference in zip(values, expected, strict=True):
        assert relative(value.double().cpu(), reference) <= 1e-5
    for name, grad, reference in zip(dict(gpu.named_parameters()), grads, wanted, strict=True):
        if reference.norm() > 1e-9:
            assert relative(grad.double().cpu(), reference) <= 1e-4, name


@pytest.mark.filterwarnings("ignore:TensorFloat32:UserWarning")  # its advice; here float32 is meant
@pytest.mark.filterwarnings("ignore:\\s*Online softmax:UserWarning")  # likewise, of a slower reduction
@pytest.mark.parametrize("case", [*FIRST, *OWN_FORMS], ids=str)
def test_inductor_compiles_it_whole(case):
    torch.compiler.reset()
    layer = case.build().float().cuda()
    x = inputs(False, torch.float32, 70)[0].cuda()
    compiled = torch.compile(layer, fullgraph=True)
    expected, wanted = _run(layer, x, None)
    values, grads = _run(compiled, x, None)
    for value, reference in zip([*values, *grads], [*expected, *wanted], strict=True):
        assert relative(value, reference) <= 1e-4


@pytest.mark.parametrize("case", ALL, ids=str)
def test_half_precision_is_finite_on_the_gpu(case):
    layer = case.build().float().cuda()
    x = inputs(False, torch.float32, 70)[0].cuda()
    with torch.autocast("cuda", torch.bfloat16):
        y, _ = layer(x)
    y.float().square().mean().backward()
    assert y.isfinite().all()
    assert [name for name, p in layer.named_parameters() if not p.grad.isfinite().all()] == []
