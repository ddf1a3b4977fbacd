"""Every layer under one contract: properties over the registry, tiny sizes, nothing told twice.

A layer takes part because its file exists, with the options of its class's `examples`.
"""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from lrnnx_app.errors import StreamError
from lrnnx_app.layers._bidirectional import Bidirectional
from lrnnx_app.layers._build import build_layer
from lrnnx_app.layers._examples import D_MODEL, Case, examples
from lrnnx_app.layers._properties import BATCH, close, inputs, trials
from lrnnx_app.registry import LAYERS

EXAMPLES = [case for name in LAYERS for case in examples(name)]
OWN_FORMS = [case for case in EXAMPLES if not case.build().causal]
PLAIN = [case for case in EXAMPLES if case not in OWN_FORMS]
BOTH = [Case(name, examples(name)[0].options, True) for name in LAYERS] + OWN_FORMS
ALL = PLAIN + BOTH
TIMED = [(case, timed) for case in ALL for timed in (False, True) if not timed or case.build().uses_dt]
TIMED_PLAIN = [(case, timed) for case, timed in TIMED if case in PLAIN]


def _name(value: object) -> str:
    return str(value) if isinstance(value, Case) else {True: "dt", False: ""}.get(value, "")


each_plain = pytest.mark.parametrize("case", PLAIN, ids=str)
each_both = pytest.mark.parametrize("case", BOTH, ids=str)
each = pytest.mark.parametrize("case", ALL, ids=str)
each_timed = pytest.mark.parametrize(("case", "timed"), TIMED, ids=_name)


@pytest.mark.parametrize("trial", [trial for name in LAYERS for trial in trials(name)], ids=str)
def test_property(trial):
    trial.run()


@each_timed
def test_half_precision_is_finite_where_memory_is_long(case, timed):
    """At −20 in what shapes the recurrence and in what opens its gates, |a| rounds to 1."""
    layer, (x, dt) = case.build(torch.float32), inputs(timed, torch.float32, 70)
    with torch.no_grad():
        biases = (p for name, p in layer.named_parameters() if name.endswith("bias"))
        for parameter in (*layer.recurrent_parameters(), *biases):
            parameter.fill_(-20.0)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = layer(x, dt=None if dt is None else dt * 1e-6)
    if state is not None:
        assert all(s.dtype == torch.float32 for s in tree_leaves(state) if s.is_floating_point())
    y.float().square().mean().backward()
    assert y.isfinite().all()
    assert [name for name, p in layer.named_parameters() if not p.grad.isfinite().all()] == []


@each
def test_compiles_whole(case):
    torch.compiler.reset()
    layer, (x, _) = case.build(), inputs(False, time=6)
    lengths = torch.tensor([6, 1, 4])
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    y, expected = compiled(x, lengths=lengths)[0], layer(x, lengths=lengths)[0]
    close(y, expected)
    wanted = torch.autograd.grad(expected.square().sum(), list(layer.parameters()))
    close(torch.autograd.grad(y.square().sum(), list(layer.parameters())), wanted)


@each_plain
def test_printed_with_rule_and_state(case):
    layer = case.build()
    size = sum(s[0].numel() for s in tree_leaves(layer.init_state(1)))
    assert f"state_size={size}" in layer.extra_repr()
    for word in ("rule=", "states="):
        assert word in layer.extra_repr()


@pytest.mark.parametrize("name", LAYERS)
def test_recurrent_names_are_parameters(name):
    found = {key for case in examples(name) for key, _ in case.build().named_parameters()}
    assert set(LAYERS[name].recurrent) <= found


@each_both
def test_both_directions_refuse_to_stream(case):
    layer, (x, _) = case.build(), inputs(False)
    with pytest.raises(StreamError, match="bidirectional"):
        layer.init_state(BATCH)
    with pytest.raises(StreamError, match="bidirectional"):
        layer.step(x[:, 0], None)
    with pytest.raises(StreamError, match="bidirectional"):
        layer(x, build_layer("lru", D_MODEL).init_state(BATCH))


@pytest.mark.parametrize("timed", [False, True], ids=_name)
def test_wrapper_is_a_pass_each_way(timed):
    x, dt = inputs(timed)
    both = Bidirectional(lambda: Case("s5", {"d_state": 4}).build(), "sum")
    gaps = None if dt is None else torch.cat((dt[:, :1], dt[:, 1:].flip(1)), 1)
    expected = both.ahead(x, dt=dt)[0] + both.back(x.flip(1), dt=gaps)[0].flip(1)
    close(both(x, dt=dt)[0], expected)
