"""Derivatives of every operator and layer: of second order, forward mode, batched, with parts computed again.

Right values are central differences of what the kernels give, or a loop; float64, tiny sizes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jvp, vmap
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from lrnnx_app.ops.discretize import RULES
from lrnnx_app.ops.discretized_scan import discretized_scan
from lrnnx_app.ops.fft_conv import fft_conv, irfft, rfft
from lrnnx_app.ops.gru_scan import gru_scan
from lrnnx_app.ops.linear_scan import linear_scan
from lrnnx_app.ops.rglru_scan import rglru_scan
from lrnnx_app.ops.row_linear import row_linear
from lrnnx_app.ops.selective_scan import selective_scan
from lrnnx_app.ops.short_conv import short_conv
from lrnnx_app.ops.step import diagonal_step
from tests.helpers import relative
from tests.layers.test_layers import D_MODEL, PLAIN, TIMED_PLAIN, _name

# torch itself warns of a loop over what it cannot batch.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
STEP, CLOSE = 1e-5, 1e-7  # of differences, and how right they are
B, T, D, N = 2, 5, 2, 3
LENGTHS = torch.tensor([T, 3])
RESET = torch.tensor([[True, False, False, True, False], [False, True, False, False, False]])
Run = Callable[..., Any]


def _numbers(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.randn(shape, dtype=torch.float64) for shape in shapes)


def _stable(z: Tensor) -> Tensor:
    """Planar numbers (…, 2, N) whose real part is negative."""
    return torch.stack((-z[..., 0, :].exp(), z[..., 1, :]), -2)


def _gru(x, u, h, dt):
    options = {"lengths": LENGTHS, "reset": RESET, "tolerance": 1e-12, "max_iterations": 50}
    return gru_scan(x, u, h, dt=dt.exp(), **options)[:2]


def _rglru(gate, other, u, rate, h, dt):
    return rglru_scan(gate, other, u, rate.exp(), h, dt=dt.exp(), first=RESET, lengths=LENGTHS, reset=RESET)


def _selective(rule, u, delta, A, B, C, skip, h, z, bias, dt):
    made_by = {"z": z, "bias": bias, "softplus": True, "dt": dt.exp(), "rule": rule}
    return selective_scan(u, delta, _stable(A), B, C, skip, h, lengths=LENGTHS, reset=RESET, **made_by)


def _step(rule, v, h, a, gain, c, direct, step, dt, gate):
    options = {"step": step, "dt": dt.exp(), "softplus": True, "rule": rule, "gate": gate}
    return diagonal_step(v, h, _stable(a), gain, c, direct, **options)


def _operators() -> dict[str, tuple[Run, tuple[tuple[int, ...], ...]]]:
    """What to run, and the shapes that it takes; what must be positive or stable it makes so."""
    masks = {"lengths": LENGTHS, "reset": RESET}
    cases: dict[str, tuple[Run, tuple[tuple[int, ...], ...]]] = {
        "linear_scan": (partial(linear_scan, **masks), ((B, T, N), (B, T, N), (B, N))),
        "linear_scan, even": (linear_scan, ((1, 1, 2, N), (B, T, 2, N))),
        "linear_scan, back": (
            partial(linear_scan, **masks, reverse=True),
            ((B, T, 2, N), (B, T, 2, N), (B, 2, N)),
        ),
        "rglru_scan": (_rglru, ((B, T, N), (B, T, N), (B, T, N), (N,), (B, N), (B, T))),
        "short_conv": (
            partial(short_conv, **masks, silu=True),
            ((B, T, N), (N, 4), (N,), (B, 3, N)),
        ),
        "short_conv, wide": (partial(short_conv, **masks), ((B, T, N), (N, 6), (N,), (B, 5, N))),
        "fft_conv": (fft_conv, ((B, T, N), (N, 4))),
        "fft_conv, mixing": (fft_conv, ((B, T, N), (D, N, T))),
        "rfft": (rfft, ((N, T),)),
        "irfft": (partial(irfft, length=T), ((N, 2, T // 2 + 1),)),
        "gru_scan": (_gru, ((B, T, 3, N), (3, N), (B, N), (B, T))),
        "row_linear": (
            lambda x, w, b, s, v, t: row_linear(
                x, w, b, skip=s, via=v, times=t, activation="sigmoid", gelu=True
            ),
            ((B, N), (D, N), (D,), (D,), (B, D), (B, D)),
        ),
    }
    for rule in RULES:
        run = partial(discretized_scan, rule=rule, **masks)
        shapes = ((2, N), (B, T), (B, T, 2, N), (B, 2, N))
        cases[f"discretized_scan, {rule}"] = (
            lambda z, dt, v, h, run=run: run(_stable(z), dt.exp(), v, h),
            shapes,
        )
        planes = (2, N)
        cases[f"selective_scan, {rule}"] = (
            partial(_selective, rule),
            (
                *((B, T, D), (B, T, D), (D, *planes), (B, T, 1, *planes), (B, T, 1, *planes), (D,)),
                *((B, D, *planes), (B, T, D), (D,), (B, T)),
            ),
        )
        wide = (B, D, 2, N)
        shapes = ((B, D), wide, (D, 2, N), (B, 1, 2, N), (B, 1, 2, N), (D,), (B, D, N), (B,), (B, D))
        cases[f"diagonal_step, {rule}"] = (partial(_step, rule), shapes)
    return cases


OPERATORS = _operators()
each_operator = pytest.mark.parametrize("name", OPERATORS)
each_layer = pytest.mark.parametrize(("case", "timed"), TIMED_PLAIN, ids=_name)


def _scalar(run: Run, *given: Tensor) -> Tensor:
    """A number that depends on all outputs in no linear way."""
    outputs = [y for y in tree_leaves(run(*given)) if y.is_floating_point()]
    return torch.stack(
        [(y.sin() * (1 + torch.arange(y.numel()).view(y.shape) % 3)).sum() for y in outputs]
    ).sum()


def _shared(run: Run) -> Run:
    """run(…) of operands that are made of each other, as those of a layer are."""

    def made(*given: Tensor) -> Any:
        mix = torch.stack([x.mean() for x in given]).sum()
        return run(*(x * (1 + mix / 4) for x in given))

    return made


def _check_orders(run: Run, given: tuple[Tensor, ...]) -> None:
    """The gradient is the same with create_graph, and its slope along a line that of differences."""

    def gradients(along: float, graph: bool) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        leaves = [(x + along * v).requires_grad_() for x, v in zip(given, line, strict=True)]
        return torch.autograd.grad(_scalar(run, *leaves), leaves, create_graph=graph), leaves

    line = _numbers(*(tuple(x.shape) for x in given))
    plain, _ = gradients(0.0, False)
    again, leaves = gradients(0.0, True)
    turned = torch.autograd.grad(again, leaves, line, materialize_grads=True)
    assert relative(_joined(again), _joined(plain)) < 1e-12
    assert relative(_joined(turned), _slope(lambda along: _joined(gradients(along, False)[0]))) < CLOSE


def _joined(tensors: Any) -> Tensor:
    """All the numbers of tensors that have derivatives, in a row."""
    return torch.cat([x.detach().flatten() for x in tree_leaves(tensors) if x.is_floating_point()])


def _slope(at: Callable[[float], Tensor]) -> Tensor:
    """The derivative at 0, by central differences of fourth order."""
    near, far = (at(step) - at(-step) for step in (STEP, 2 * STEP))
    return (8 * near - far) / (12 * STEP)


def _check_forward_mode(run: Run, given: tuple[Tensor, ...]) -> None:
    line = _numbers(*(tuple(x.shape) for x in given))

    def at(along: float) -> Tensor:
        return _joined(run(*(x + along * v for x, v in zip(given, line, strict=True))))

    def result(*xs: Tensor) -> list[Tensor]:
        return [y for y in tree_leaves(run(*xs)) if y.is_floating_point()]

    with torch.no_grad():
        slope = _slope(at)
    tangents = jvp(result, given, line)[1]
    assert relative(_joined(tangents), slope) < CLOSE
    with forward_ad.dual_level():
        dual = result(*(forward_ad.make_dual(x, v) for x, v in zip(given, line, strict=True)))
        tangents = [forward_ad.unpack_dual(y).tangent for y in dual]
        tangents = [torch.zeros_like(y) if t is None else t for y, t in zip(dual, tangents, strict=True)]
    assert relative(_joined(tangents), slope) < CLOSE


@each_operator
def test_orders_of_an_operator(name):
    run, shapes = OPERATORS[name]
    _check_orders(_shared(run), _numbers(*shapes))


@each_operator
def test_forward_mode_of_an_operator(name):
    run, shapes = OPERATORS[name]
    _check_forward_mode(run, _numbers(*shapes))


@each_operator
def test_operator_batched_and_transformed(name):
    run, shapes = OPERATORS[name]
    given = _numbers(*((3, *shape) for shape in shapes))
    loss = partial(_scalar, run)
    each = [loss(*(x[i] for x in given)) for i in range(3)]
    assert relative(vmap(loss)(*given), torch.stack(each)) < 1e-12
    slopes = vmap(grad(loss))(*given)
    for i in range(3):
        first = given[0][i].clone().requires_grad_()
        (wanted,) = torch.autograd.grad(loss(first, *(x[i] for x in given[1:])), first)
        assert relative(slopes[i], wanted) < 1e-11


def _layer(case: Any, timed: bool, batch: int = B) -> tuple[Run, tuple[Tensor, ...]]:
    """A run of a layer from x and its parameters, and these. `timed` packs sequences too."""
    layer = case.build()
    names = list(dict(layer.named_parameters()))
    dt = torch.rand(batch, T, dtype=torch.float64) + 0.2 if timed else None
    reset = RESET[:batch] if timed else None

    def run(x: Tensor, *parameters: Tensor) -> tuple[Tensor, Any]:
        options = {"dt": dt, "reset": reset}
        return functional_call(layer, dict(zip(names, parameters, strict=True)), x, options)

    return run, (*_numbers((batch, T, D_MODEL)), *(p.detach() for p in layer.parameters()))


@each_layer
def test_orders_of_a_layer(case, timed):
    run, given = _layer(case, timed)
    if case.name == "local_attention":  # torch's attention has no second derivative on a CPU, and says so
        with pytest.raises(RuntimeError, match=r"attention.* not implemented"):
            _check_orders(run, given)
    else:
        _check_orders(run, given)


@each_layer
def test_forward_mode_of_a_layer(case, timed):
    run, given = _layer(case, timed)
    _check_forward_mode(run, given)


@each_layer
def test_gradients_of_each_sample(case, timed):
    run, (x, *parameters) = _layer(case, timed, 1)
    x = torch.stack((x, x.flip(1)))

    def loss(sample: Tensor, *parameters: Tensor) -> Tensor:
        return _scalar(run, sample, *parameters)

    every = tuple(range(1 + len(parameters)))
    found = vmap(grad(loss, every), (0, *[None] * len(parameters)))(x, *parameters)
    for i in range(len(x)):
        leaves = [z.clone().requires_grad_() for z in (x[i], *parameters)]
        wanted = torch.autograd.grad(loss(*leaves), leaves)
        assert relative(_joined([f[i] for f in found]), _joined(wanted)) < 1e-10


@pytest.mark.parametrize("reentrant", [False, True])
@each_layer
def test_layer_computed_again(case, timed, reentrant):
    run, (x, *parameters) = _layer(case, timed)
    for leaf in (x, *parameters):
        leaf.requires_grad_()

    def output(x: Tensor) -> Tensor:
        return run(x, *parameters)[0]

    wanted = torch.autograd.grad(output(x).sin().sum(), [x, *parameters])
    checkpoint(output, x, use_reentrant=reentrant).sin().sum().backward()
    for leaf, expected in zip([x, *parameters], wanted, strict=True):
        assert leaf.grad is not None
        assert relative(leaf.grad, expected) < 1e-12


@pytest.mark.parametrize("case", [case for case in PLAIN if case.name in ("s6", "gru", "s4d")], ids=str)
def test_hessians_agree(case):
    run, (x, *parameters) = _layer(case, False)

    def loss(x: Tensor) -> Tensor:
        return _scalar(run, x, *parameters)

    x = x[:1, :3]
    wanted = torch.autograd.functional.hessian(loss, x)
    assert relative(hessian(loss)(x), wanted) < 1e-10
    assert relative(torch.autograd.functional.hessian(loss, x, vectorize=True), wanted) < 1e-10
