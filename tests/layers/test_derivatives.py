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
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from lrnnx_app.layers._examples import examples
from lrnnx_app.ops._examples import Draw, Sizes
from lrnnx_app.ops._table import OPERATORS
from lrnnx_app.registry import LAYERS
from tests.helpers import relative
from tests.layers.test_layers import D_MODEL, TIMED_PLAIN, _name

# torch itself warns of a loop over what it cannot batch.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
STEP, CLOSE = 1e-5, 1e-7  # of differences, and how right they are
B, T, D = 2, 5, 2
LENGTHS = torch.tensor([T, 3])
RESET = torch.tensor([[True, False, False, True, False], [False, True, False, False, False]])
Run = Callable[..., Any]


def _numbers(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.randn(shape, dtype=torch.float64) for shape in shapes)


def _operator(name: str) -> tuple[Run, tuple[Tensor, ...]]:
    """A run of an operator of the table from what it has derivatives in, and these."""
    operator, _, number = name.partition(":")
    entry = OPERATORS[operator]
    variant = entry.variants[int(number)]
    operands = entry.typed(entry.draw(Draw(), Sizes(B, T, D), variant), torch.float64)

    def run(*given: Tensor) -> Any:
        return entry.run(**operands | dict(zip(leaves, given, strict=True)), **variant.options)

    leaves = {k: x for k, x in entry.leaves(operands).items() if x.numel()}
    return run, tuple(leaves.values())


NAMES = [
    f"{name}:{i}"
    for name, entry in OPERATORS.items()
    if name != "advance"
    for i in range(len(entry.variants))
]
each_operator = pytest.mark.parametrize("name", NAMES)
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
        return run(*(x * (1 + mix / 64) for x in given))

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
    run, given = _operator(name)
    _check_orders(_shared(run), given)


@each_operator
def test_forward_mode_of_an_operator(name):
    _check_forward_mode(*_operator(name))


@each_operator
def test_operator_batched_and_transformed(name):
    run, plain = _operator(name)
    given = [torch.stack((x, x.flip(0), 2 * x / 3)) for x in plain]
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


@pytest.mark.parametrize("case", [examples(name)[0] for name in LAYERS], ids=str)
def test_hessians_agree(case):
    run, (x, *parameters) = _layer(case, False)

    def loss(x: Tensor) -> Tensor:
        return _scalar(run, x, *parameters)

    x = x[:1, :3]
    with sdpa_kernel(SDPBackend.MATH):  # torch's other attention has no second derivative on a CPU
        wanted = torch.autograd.functional.hessian(loss, x)
        assert relative(torch.autograd.functional.hessian(loss, x, vectorize=True), wanted) < 1e-10
    assert relative(hessian(loss)(x), wanted) < 1e-10
