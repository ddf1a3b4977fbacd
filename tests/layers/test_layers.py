"""Every layer under one contract: properties over the registry, tiny sizes, nothing told twice.

A layer takes part because its file exists, with the options of its class's `examples`.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lrnnx_app.errors import StreamError
from lrnnx_app.layers._base import DiagonalLayer
from lrnnx_app.layers._bidirectional import Bidirectional
from lrnnx_app.layers._build import build_layer
from lrnnx_app.layers._examples import D_MODEL, Case, examples
from lrnnx_app.registry import LAYERS
from tests.helpers import TOLERANCE

BATCH, TIME = 3, 11
NEAR_ONE = {  # at −20, |a| rounds to 1 in bfloat16 and float32
    *("log_dt", "log_step", "nu_log", "log_A_real", "A_log", "recurrent_param", "step_bias"),
    *("b", "dt_proj.bias", "in_proj.bias"),
}

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
each_timed_plain = pytest.mark.parametrize(("case", "timed"), TIMED_PLAIN, ids=_name)


def _inputs(
    timed: bool, dtype: torch.dtype = torch.float64, time: int = TIME
) -> tuple[Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, time, D_MODEL, generator=generator, dtype=dtype)
    dt = torch.rand(BATCH, time, generator=generator, dtype=dtype) * 2 + 0.1
    return x, dt if timed else None


def _cut(dt: Tensor | None, *index: Any) -> Tensor | None:
    return None if dt is None else dt[index]


def _close(found: Any, expected: Any, tolerance: float = TOLERANCE[torch.float64]) -> None:
    found, expected = tree_leaves(found), tree_leaves(expected)
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        error = (one - other).double().norm()
        assert error <= tolerance * max(1.0, other.double().norm()), f"error {error}"


def _run_in_pieces(layer: Any, x: Tensor, dt: Tensor | None, sizes: list[int]) -> tuple[Tensor, Any]:
    """Chunks of the given sizes, those of size 1 by `step`."""
    state, start, ys = layer.init_state(x.shape[0]), 0, []
    for size in sizes:
        part = slice(start, start + size)
        if size == 1:
            y, state = layer.step(x[:, start], state, _cut(dt, slice(None), start))
            y = y[:, None]
        else:
            y, state = layer(x[:, part], state, dt=_cut(dt, slice(None), part))
        start += size
        ys.append(y)
    return torch.cat(ys, 1), state


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("sizes", [[1] * TIME, [4, 1, 6], [2, 9], [8, 1, 1, 1]], ids=str)
@each_timed_plain
def test_forward_is_chunks_is_steps(case, timed, sizes, dtype):
    layer, (x, dt) = case.build(dtype), _inputs(timed, dtype)
    with torch.no_grad():
        _close(_run_in_pieces(layer, x, dt, sizes), layer(x, dt=dt), TOLERANCE[dtype])


@each_timed
def test_packed_is_separate(case, timed):
    layer, (x, dt) = case.build(), _inputs(timed)
    starts = [[0, 4, 5], [0, 8], [0]]  # the sequences of each row
    reset = torch.zeros(BATCH, TIME, dtype=torch.bool)
    for row, where in enumerate(starts):
        reset[row, where] = True
    y, state = layer(x, dt=dt, reset=reset)
    for row, where in enumerate(starts):
        ys = []
        for first, last in zip(where, [*where[1:], TIME], strict=True):
            alone, after = layer(x[row, None, first:last], dt=_cut(dt, [row], slice(first, last)))
            ys.append(alone)
        _close(y[row, None], torch.cat(ys, 1))
        if state is not None:
            _close(tree_map(lambda s, row=row: s[row, None], state), after)


@each_timed_plain
def test_reset_drops_the_state_handed_in(case, timed):
    layer, (x, dt) = case.build(), _inputs(timed)
    _, state = layer(x, dt=dt)
    reset = torch.zeros(BATCH, TIME, dtype=torch.bool)
    reset[0, 0] = reset[1, 3] = True
    y, last = layer(x, state, dt=dt, reset=reset)
    fresh, after = layer(x[:1], dt=_cut(dt, slice(1)))
    _close((y[:1], tree_map(lambda s: s[:1], last)), (fresh, after))
    kept, after = layer(x[2:], tree_map(lambda s: s[2:], state), dt=_cut(dt, slice(2, 3)))
    _close((y[2:], tree_map(lambda s: s[2:], last)), (kept, after))


@each_timed
def test_right_padded_is_unpadded(case, timed):
    layer, (x, dt) = case.build(), _inputs(timed)
    lengths = torch.tensor([TIME, 1, 6])
    beyond = torch.arange(TIME) >= lengths[:, None]
    x = torch.where(beyond[..., None], 1e3, x)
    y, state = layer(x, dt=dt, lengths=lengths)
    assert y.isfinite().all()
    for row, length in enumerate(lengths.tolist()):
        alone, after = layer(x[row, None, :length], dt=_cut(dt, [row], slice(length)))
        _close(y[row, None, :length], alone)
        if state is not None:
            _close(tree_map(lambda s, row=row: s[row, None], state), after)


@each_timed
def test_left_padded_is_unpadded(case, timed):
    layer, (x, dt) = case.build(), _inputs(timed)
    firsts = [0, TIME - 1, 5]
    reset = torch.zeros(BATCH, TIME, dtype=torch.bool)
    for row, first in enumerate(firsts):
        reset[row, first] = True
        x[row, :first] = 1e3
    y, state = layer(x, dt=dt, reset=reset)
    for row, first in enumerate(firsts):
        alone, after = layer(x[row, None, first:], dt=_cut(dt, [row], slice(first, None)))
        _close(y[row, None, first:], alone)
        if state is not None:
            _close(tree_map(lambda s, row=row: s[row, None], state), after)


@each_plain
def test_state_and_lengths_go_together(case):
    layer, (x, _) = case.build(), _inputs(False)
    _, state = layer(x)
    lengths = torch.tensor([TIME, 1, 6])
    y, last = layer(x, state, lengths=lengths)
    for row, length in enumerate(lengths.tolist()):
        before = tree_map(lambda s, row=row: s[row, None], state)
        alone, after = layer(x[row, None, :length], before)
        _close(y[row, None, :length], alone)
        _close(tree_map(lambda s, row=row: s[row, None], last), after)


@each_timed_plain
def test_a_row_of_length_zero_keeps_its_state(case, timed):
    layer, (x, dt) = case.build(), _inputs(timed)
    for state in (layer.init_state(BATCH), layer(x)[1]):
        _, last = layer(x, state, dt=dt, lengths=torch.zeros(BATCH, dtype=torch.int64))
        _close(last, state, 0.0)


@each_timed
def test_causality_is_as_declared(case, timed):
    layer, (x, dt) = case.build(), _inputs(timed)
    changed = x.clone()
    changed[:, 6:] += 1
    before, after = layer(x, dt=dt)[0], layer(changed, dt=dt)[0]
    assert layer.causal == (case in PLAIN)
    assert torch.allclose(before[:, :6], after[:, :6], rtol=0, atol=1e-12) == layer.causal
    assert not torch.allclose(before[:, 6:], after[:, 6:])


@each
def test_elapsed_time_acts_or_is_refused(case):
    layer, (x, dt) = case.build(), _inputs(True)
    if not layer.uses_dt:
        with pytest.raises(ValueError, match=LAYERS[case.name].__name__):
            layer(x, dt=dt)
        return
    assert not torch.allclose(layer(x, dt=dt)[0], layer(x)[0])
    _close(layer(x, dt=torch.ones_like(x[..., 0]))[0], layer(x)[0])


@each_timed_plain
def test_coefficients_do_not_grow(case, timed):
    layer, (x, dt) = case.build(), _inputs(timed)
    if not isinstance(layer, DiagonalLayer):
        state = tree_map(lambda s: s + 1 if s.is_floating_point() else s, layer.init_state(BATCH))
        _, last = layer(torch.zeros_like(x).repeat(1, 30, 1), state)
        assert all(s.isfinite().all() and s.abs().max() < 1e3 for s in tree_leaves(last))
        return
    one = torch.zeros_like(layer.init_state(BATCH).h)
    (one if one.ndim == 2 else one[:, 0]).fill_(1)
    for t in range(x.shape[1]):
        a, b = layer.coefficients(x[:, t : t + 1], dt[:, t : t + 1] if timed else None)
        _, h = a.step(torch.zeros_like(b[:, 0]), one)
        size = h.abs() if h.ndim == 2 else torch.linalg.vector_norm(h, dim=1)
        assert size.max() <= 1 + torch.finfo(h.dtype).eps  # no more than rounding where nothing decays


@each_timed_plain
def test_gradients_through_input_state_and_time(case, timed):
    layer, (x, dt) = case.build(), _inputs(timed, time=3)
    _, state = layer(x[:2], dt=_cut(dt, slice(2)))
    leaves, spec = torch.utils._pytree.tree_flatten(state)
    soft = [i for i, leaf in enumerate(leaves) if leaf.is_floating_point()]

    def run(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        given = list(leaves)
        for i, leaf in zip(soft, rest, strict=False):
            given[i] = leaf
        state = torch.utils._pytree.tree_unflatten(given, spec)
        y, last = layer(x, state, dt=rest[-1] if timed else None)
        return (y, *(leaf for leaf in tree_leaves(last) if leaf.requires_grad))

    given = [x[:2], *(leaves[i] for i in soft), *([] if dt is None else [dt[:2]])]
    given = [tensor.detach().clone().requires_grad_() for tensor in given]
    assert torch.autograd.gradcheck(run, given, fast_mode=True)


@each
def test_every_parameter_has_a_finite_gradient(case):
    layer, (x, _) = case.build(), _inputs(False)
    layer(x)[0].square().sum().backward()
    missing = [name for name, p in layer.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert missing == []


@each_timed
def test_half_precision_is_finite_where_memory_is_long(case, timed):
    layer, (x, dt) = case.build(torch.float32), _inputs(timed, torch.float32, 70)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if {name, name.split(".")[-1]} & NEAR_ONE:
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
    layer, (x, _) = case.build(), _inputs(False, time=6)
    lengths = torch.tensor([6, 1, 4])
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    y, expected = compiled(x, lengths=lengths)[0], layer(x, lengths=lengths)[0]
    _close(y, expected)
    wanted = torch.autograd.grad(expected.square().sum(), list(layer.parameters()))
    _close(torch.autograd.grad(y.square().sum(), list(layer.parameters())), wanted)


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
    layer, (x, _) = case.build(), _inputs(False)
    with pytest.raises(StreamError, match="bidirectional"):
        layer.init_state(BATCH)
    with pytest.raises(StreamError, match="bidirectional"):
        layer.step(x[:, 0], None)
    with pytest.raises(StreamError, match="bidirectional"):
        layer(x, build_layer("lru", D_MODEL).init_state(BATCH))


@pytest.mark.parametrize("timed", [False, True], ids=_name)
def test_wrapper_is_a_pass_each_way(timed):
    x, dt = _inputs(timed)
    both = Bidirectional(lambda: Case("s5", {"d_state": 4}).build(), "sum")
    gaps = None if dt is None else torch.cat((dt[:, :1], dt[:, 1:].flip(1)), 1)
    expected = both.ahead(x, dt=dt)[0] + both.back(x.flip(1), dt=gaps)[0].flip(1)
    _close(both(x, dt=dt)[0], expected)
