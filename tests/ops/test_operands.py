"""Every operator × operands that do not fit: refused before kernels or torch code read them."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from lrnnx_app.layers._base import Layer
from lrnnx_app.ops._compare import Recorded, outputs_of, results
from lrnnx_app.ops._examples import Draw, Operands, Sizes
from lrnnx_app.ops._table import OPERATORS, Operator
from lrnnx_app.ops.advance import advance
from lrnnx_app.registry import LAYERS
from tests.helpers import needs_kernels

TIME = 6
NAMES = [name for name in OPERATORS if name not in ("rfft", "irfft", "advance")]  # which take any, or a list
KERNELS = [name for name, operator in OPERATORS.items() if operator.kernels.get("cpu")]


class Call:
    """An operator of the table on operands that fit, some of them changed."""

    def __init__(self, name: str, device: str = "cpu", batch: int = 3) -> None:
        self.operator: Operator = OPERATORS[name]
        self.variant = self.operator.variants[0]
        drawn = self.operator.draw(Draw(), Sizes(batch, TIME, 4), self.variant)
        self.operands: Operands = self.operator.typed(drawn, torch.float32, device)

    def __call__(self, **change: Tensor) -> Any:
        return self.operator.run(**{**self.operands, **change}, **self.variant.options)

    def reached(self) -> "tuple[Reached, Reached | None]":
        """The operators of torch that are called forward, and backward where there is one for that."""
        with Recorded() as calls:
            results(self.operator, self.operator.run, self.operands, self.variant)
        found = [Reached(op, tree_map_only(Tensor, Tensor.detach, args)) for op, args in calls.calls]
        return found[0], found[-1] if len(found) > 1 else None


class Reached(NamedTuple):
    """An operator of torch and its arguments."""

    operator: Any
    args: tuple[Any, ...]

    def names(self) -> list[str]:
        return [argument.name for argument in self.operator._schema.arguments]

    def __call__(self, run: Callable[..., Any] | None = None, **change: Any) -> Any:
        args = [change.get(name, x) for name, x in zip(self.names(), self.args, strict=True)]
        return run(self.operator, *args) if run else self.operator(*args)


def misshapen(x: Tensor) -> Iterator[Tensor]:
    """One too many and one too few at every dimension, none at all, and another number of dimensions."""
    for axis in range(x.ndim):
        more = torch.cat((x, x.narrow(axis, 0, 1)), axis)
        yield more
        if x.shape[axis] > 2:  # of 2 one would be left, which may broadcast
            yield x.narrow(axis, 0, x.shape[axis] - 1)
        yield x.narrow(axis, 0, 0)
    yield x[None].expand(2, *x.shape)
    yield x.flatten()[: x.shape[-1] + 1] if x.ndim > 1 else x[:, None, None, None, None]


def of_other_kinds(x: Tensor) -> Iterator[Tensor]:
    yield x.to(torch.complex64)
    yield x.to("meta")
    if not x.is_floating_point():
        yield x.float()


def hostile(call: Call) -> Iterator[tuple[str, Tensor]]:
    for operand, x in call.operands.items():
        free = call.operator.free.get(operand, ())
        kept = [size for axis, size in enumerate(x.shape) if axis not in free and axis - x.ndim not in free]
        for other in misshapen(x):
            sizes = [
                s for axis, s in enumerate(other.shape) if axis not in free and axis - other.ndim not in free
            ]
            if other.ndim == x.ndim and sizes == kept and (other.numel() or operand == "u"):
                continue
            yield operand, other


@pytest.mark.parametrize("name", NAMES)
def test_operands_of_another_shape_are_refused(device, name):
    call = Call(name, device)
    tried = list(hostile(call))
    assert len(tried) > 3 * len(call.operands)
    named = f"^({'|'.join(call.operands)}) (must|needs|.*does not broadcast)"
    for operand, x in tried:
        with pytest.raises(ValueError, match=named):
            raise_if_taken(operand, x, call(**{operand: x}))


def raise_if_taken(operand: str, x: Tensor, result: Any) -> None:
    raise AssertionError(f"{operand} of {tuple(x.shape)}, {x.dtype} was taken")


@pytest.mark.parametrize("name", NAMES)
def test_operands_of_another_kind_or_device_are_refused(device, name):
    call = Call(name, device)
    for operand, given in call.operands.items():
        for x in of_other_kinds(given):
            if operand == "first" and x.dtype == torch.float32 and x.device == given.device:
                continue  # it may be a number
            with pytest.raises(ValueError, match="must"):
                raise_if_taken(operand, x, call(**{operand: x}))


def test_states_to_be_written_must_fit():
    held, active = [torch.zeros(3, 4), torch.zeros(3, 2, 2)], torch.tensor([True, False, True])
    given: dict[str, Any] = {"held": held, "new": [torch.ones_like(x) for x in held], "active": active}
    changes: tuple[dict[str, Any], ...] = (
        {"new": [torch.ones(3, 4)]},
        {"new": [torch.ones(3, 4), torch.ones(3, 2, 1)]},
        {"new": [torch.ones(3, 4), torch.ones(3, 2, 2).to(torch.complex64)]},
        {"held": [held[0].mT, held[1]], "new": [torch.ones(4, 3), held[1]]},
        {"held": [torch.zeros(4, 3).mT, held[1]]},
        {"active": active[:2]},
        {"active": active.float()},
    )
    for change in changes:
        with pytest.raises(ValueError, match="must be"):
            advance(**{**given, **change})
    assert not any(x.any() for x in held)


# ---- what is called without its Python function ----
def torch_code(operator: Any, *args: Any) -> Any:
    """An operator where no kernels are loaded."""
    return operator._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args)


def direct(operator: Any, *args: Any) -> Any:
    return operator(*args)


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_refuse_what_they_would_read_beyond(device, name):
    """Backward too, where gradients of outputs are operands as well."""
    needs_kernels(device)
    if device == "cuda" and name == "selective_scan":
        pytest.skip("covered by the public operator, which hands it on")
    call = Call(name, device)
    for reached in filter(None, call.reached()):
        operands = dict(zip(reached.names(), reached.args, strict=True))
        gradients = [(k, x) for k in ("grad", "grad_last") if k in operands for x in misshapen(operands[k])]
        for operand, x in (*hostile(call), *gradients):
            if operand in operands:
                with pytest.raises((RuntimeError, ValueError)):
                    raise_if_taken(operand, x, reached(**{operand: x}))


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.complex64], ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_refuse_other_numbers(name, dtype):
    needs_kernels("cpu")
    call = Call(name)
    reached, main = call.reached()[0], call.operator.narrow[0]
    with pytest.raises(RuntimeError):
        raise_if_taken(main, call.operands[main], reached(**{main: call.operands[main].to(dtype)}))


# ---- lengths ----
WITH_LENGTHS = [name for name in NAMES if "lengths" in Call(name).operands]


@pytest.mark.parametrize("name", WITH_LENGTHS)
def test_a_length_is_from_0_to_the_last_step(device, name):
    call = Call(name, device)
    wrong = torch.tensor([TIME + 2, -5, 10**9], device=device)
    if device == "cpu":
        with pytest.raises(ValueError, match=f"lengths must be from 0 to {TIME}, not -5 to 1000000000"):
            call(lengths=wrong)
    else:
        for x, y in zip(call(lengths=wrong), call(lengths=wrong.clamp(0, TIME)), strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("run", [direct, torch_code])
@pytest.mark.parametrize("name", [name for name in KERNELS if name in WITH_LENGTHS])
def test_below_the_check_lengths_are_held_to_that(device, name, run):
    needs_kernels(device)
    if device == "cuda" and run is torch_code and name == "selective_scan":
        return  # its kernels stand beside the operator that has torch code, and have none of their own
    wrong = torch.tensor([TIME + 2, -5, 10**9], device=device)
    for reached in filter(None, Call(name, device).reached()):
        if (
            device == "cpu"
            and run is torch_code
            and name in ("discretized_scan", "rglru_scan")
            and reached.names()[0] != "grad"
        ):
            with pytest.raises(ValueError, match="lengths must be"):  # by the linear scan that it consists of
                reached(run, lengths=wrong)
            continue
        for x, y in zip(*(reached(run, lengths=z) for z in (wrong, wrong.clamp(0, TIME))), strict=True):
            assert x.isfinite().all()
            assert torch.equal(x, y)


# ---- a batch of none ----
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_none(device, name):
    call, full = Call(name, device, 0), Call(name, device, 2)
    leaves = {k: x.requires_grad_() for k, x in call.operator.leaves(call.operands).items()}
    outputs, wanted = (outputs_of(x) for x in (call(**leaves), full()))
    for x, y in zip(outputs, wanted, strict=True):
        assert (x.shape, x.dtype) == ((0, *y.shape[1:]), y.dtype)
    grads = torch.autograd.grad([x.sum() for x in outputs], list(leaves.values()), materialize_grads=True)
    assert not any(g.any() for g in grads)


@pytest.mark.parametrize("run", [direct, torch_code])
@pytest.mark.parametrize("name", KERNELS)
def test_a_batch_of_none_without_the_check(device, name, run):
    needs_kernels(device)
    if device == "cuda" and run is torch_code and name == "selective_scan":
        return  # as above
    forward, backward = Call(name, device, 0).reached()
    outputs = forward(run)
    assert outputs[0].shape[0] == outputs[1].shape[0] == 0
    if backward and backward.names()[0] == "grad":
        assert not any(g.any() for g in backward(run))


def test_projections_alike_for_a_batch_of_none(device):
    alike = {name: torch.randn(1, 1, 2, 3, device=device) for name in ("B", "C")}
    assert Call("selective_scan", device, 0)(**alike)[0].shape == (0, TIME, 4)


# ---- what is made of operators ----
def layer_of(name: str) -> Layer:
    return LAYERS[name](8, LAYERS[name].Config())


@pytest.mark.parametrize("name", list(LAYERS))
def test_layers_refuse_the_state_of_another_batch(name):
    layer = layer_of(name)
    x = torch.randn(3, TIME, 8)
    if not layer.causal:
        pytest.skip("has no state")
    for batch in (1, 2, 4):
        state = layer.init_state(batch)
        with pytest.raises(ValueError, match=f"of a batch of {batch}, and x of one of 3"):
            layer(x, state)
        with pytest.raises(ValueError, match=f"of a batch of {batch}, and x of one of 3"):
            layer.step(x[:, 0], state)


@pytest.mark.parametrize("name", list(LAYERS))
def test_layers_refuse_lengths_beyond_the_last_step(name):
    with pytest.raises(ValueError, match="lengths must be from 0 to 6, not 6 to 7"):
        layer_of(name)(torch.randn(2, TIME, 8), lengths=torch.tensor([6, 7]))
