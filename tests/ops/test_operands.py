"""Every operator × operands that do not fit: refused before kernels or torch code read them."""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from lrnnx_app.layers._base import Layer
from lrnnx_app.ops.advance import advance
from lrnnx_app.ops.discretized_scan import discretized_scan
from lrnnx_app.ops.fft_conv import fft_conv
from lrnnx_app.ops.gru_scan import gru_scan
from lrnnx_app.ops.linear_scan import linear_scan
from lrnnx_app.ops.rglru_scan import rglru_scan
from lrnnx_app.ops.row_linear import row_linear
from lrnnx_app.ops.selective_scan import selective_scan
from lrnnx_app.ops.short_conv import short_conv
from lrnnx_app.ops.step import diagonal_step
from lrnnx_app.registry import LAYERS
from tests.helpers import needs_kernels

TIME, N = 6, 4
KERNELS = ("linear_scan", "discretized_scan", "rglru_scan", "selective_scan", "short_conv", "diagonal_step")


class Call(NamedTuple):
    """An operator, operands that fit, and the options that it takes besides."""

    run: Callable[..., Any]
    operands: dict[str, Tensor]
    options: Mapping[str, Any] = MappingProxyType({})

    def __call__(self, **change: Any) -> Any:
        return self.run(**{**self.operands, **self.options, **change})


def calls(batch: int = 3, device: str = "cpu") -> dict[str, Call]:
    """Every public operator with all of its operands."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device)

    def positive(*shape: int) -> Tensor:
        return torch.rand(*shape, device=device) + 0.1

    scan = (batch, TIME, N)
    lengths = torch.tensor([TIME, 0, 3], device=device)[:batch]
    reset = positive(batch, TIME) < 0.3
    steps = {"lengths": lengths, "reset": reset}
    dt = positive(batch, TIME)
    planar = {"a": normal(batch, TIME, 2, N) / 4, "b": normal(batch, TIME, 2, N), "h0": normal(batch, 2, N)}
    selective = {"u": normal(*scan), "delta": positive(*scan), "A": -positive(N, 2), "D": normal(N)}
    projections = {"B": normal(batch, TIME, 2, 2), "C": normal(batch, TIME, 2, 2)}
    rest = {"h0": normal(batch, N, 2), "z": normal(*scan), "bias": normal(N), "dt": dt}
    step = {"v": normal(batch, 5), "h": normal(batch, 5, 2, N), "a": -positive(5, 2, N), "c": normal(5, 2, N)}
    of_step = {"gain": normal(batch, 1, 2, N), "direct": normal(5), "gate": normal(batch, 5)}
    of_time = {"step": positive(batch, 5, 1), "dt": positive(batch)}
    heads = {"x": normal(batch, 2 * N), "weight": normal(4 * N, N), "bias": normal(4 * N)}
    after = {"skip": normal(4 * N), "via": normal(batch, 4 * N), "times": normal(batch, 4 * N)}
    iterations = {"tolerance": 1e-6, "max_iterations": 20}
    gates = {"gate": normal(*scan), "input_gate": normal(*scan), "u": normal(*scan), "rate": positive(N)}
    return {
        "linear_scan": Call(linear_scan, planar | steps),
        "discretized_scan": Call(
            discretized_scan,
            {"z": -positive(2, N), "dt": dt, "v": normal(batch, TIME, 2, N), "h0": normal(batch, 2, N)}
            | steps,
            {"rule": "zoh"},
        ),
        "rglru_scan": Call(rglru_scan, gates | {"h0": normal(batch, N), "dt": dt, "first": reset} | steps),
        "selective_scan": Call(selective_scan, selective | projections | rest | steps, {"rule": "zoh"}),
        "short_conv": Call(
            short_conv,
            {"x": normal(*scan), "weight": normal(N, 3), "bias": normal(N), "state": normal(batch, 2, N)}
            | steps,
        ),
        "gru_scan": Call(
            gru_scan,
            {"inputs": normal(batch, TIME, 3, N), "recurrent": normal(3, N), "h0": normal(batch, N), "dt": dt}
            | steps,
            iterations,
        ),
        "fft_conv": Call(fft_conv, {"u": normal(*scan), "kernel": normal(2, N, TIME)}),
        "diagonal_step": Call(diagonal_step, step | of_step | of_time, {"rule": "zoh"}),
        "row_linear": Call(row_linear, heads | after, {"heads": 2}),
    }


NAMES = tuple(calls())


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


FREE = {("fft_conv", "kernel"): (-1, -3), ("fft_conv", "u"): (0, 1)}  # sizes that nothing else sets


def hostile(name: str, call: Call) -> Iterator[tuple[str, Tensor]]:
    for operand, x in call.operands.items():
        free = FREE.get((name, operand), ())
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
    call = calls(device=device)[name]
    tried = list(hostile(name, call))
    assert len(tried) > 3 * len(call.operands)
    for operand, x in tried:
        with pytest.raises(ValueError, match=r"must|needs|does not broadcast"):
            raise_if_taken(operand, x, call(**{operand: x}))


def raise_if_taken(operand: str, x: Tensor, result: Any) -> None:
    raise AssertionError(f"{operand} of {tuple(x.shape)}, {x.dtype} was taken")


@pytest.mark.parametrize("name", NAMES)
def test_operands_of_another_kind_or_device_are_refused(device, name):
    call = calls(device=device)[name]
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
def raw(call: Call) -> tuple[Any, list[Any]]:
    """The operator that a public one hands its operands to, and these in its order."""
    operator = getattr(torch.ops.lrnnx, call.run.__name__).default
    others = {"rule": 1, "reverse": False, "silu": True, "softplus": True, "h0": None, "dt": None}
    given = others | call.operands
    return operator, [given[argument.name] for argument in operator._schema.arguments]


def raw_with(call: Call, **change: Tensor) -> list[Any]:
    """The operator and its operands, some of them changed."""
    operator, args = raw(call._replace(operands=call.operands | change))
    return [operator, *args]


def torch_code(operator: Any, *args: Any) -> Any:
    """An operator where no kernels are loaded."""
    return operator._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args)


def backward(operator: Any, args: list[Any], outputs: Any, run: Callable[..., Any]) -> Any:
    """The gradients of an operator by its own backward operator, on the same operands."""
    name = operator._schema.name.split("::")[1]
    back = getattr(torch.ops.lrnnx, f"{name}_backward").default
    given = dict(zip((a.name for a in operator._schema.arguments), args, strict=True))
    given |= {
        "grad": torch.ones_like(outputs[0]),
        "grad_last": torch.ones_like(outputs[1]),
        "states": outputs[0],
    }
    return run(back, *(given[argument.name] for argument in back._schema.arguments))


def direct(operator: Any, *args: Any) -> Any:
    return operator(*args)


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_refuse_what_they_would_read_beyond(device, name):
    needs_kernels(device)
    call = calls(device=device)[name]
    operator, _ = raw(call)
    if device == "cuda" and name == "selective_scan":
        pytest.skip("covered by the public operator, which hands it on")
    for operand, x in hostile(name, call):
        changed = call._replace(operands=call.operands | {operand: x})
        with pytest.raises((RuntimeError, ValueError)):
            raise_if_taken(operand, x, operator(*raw(changed)[1]))


@pytest.mark.parametrize("name", [name for name in KERNELS if name != "diagonal_step"])
def test_backward_kernels_refuse_what_they_would_read_beyond(device, name):
    needs_kernels(device)
    call = calls(device=device)[name]
    operator, args = raw(call)
    outputs = operator(*args)
    taken = getattr(torch.ops.lrnnx, f"{name}_backward").default._schema.arguments
    for operand, x in hostile(name, call):
        if operand not in {argument.name for argument in taken}:
            continue
        changed = call._replace(operands=call.operands | {operand: x})
        with pytest.raises((RuntimeError, ValueError)):
            raise_if_taken(operand, x, backward(operator, raw(changed)[1], outputs, direct))
    for i in (0, 1):
        for x in misshapen(outputs[i]):
            wrong = [x, outputs[1]] if i == 0 else [outputs[0], x]
            with pytest.raises((RuntimeError, ValueError)):
                raise_if_taken("gradient", x, backward(operator, args, wrong, direct))


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.complex64], ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_refuse_other_numbers(name, dtype):
    needs_kernels("cpu")
    call = calls()[name]
    main = {"linear_scan": "b", "discretized_scan": "v", "short_conv": "x", "diagonal_step": "v"}.get(
        name, "u"
    )
    changed = call._replace(operands=call.operands | {main: call.operands[main].to(dtype)})
    operator, args = raw(changed)
    with pytest.raises(RuntimeError):
        raise_if_taken(main, changed.operands[main], operator(*args))


# ---- lengths ----
WITH_LENGTHS = [name for name, call in calls().items() if "lengths" in call.operands]


@pytest.mark.parametrize("name", WITH_LENGTHS)
def test_a_length_is_from_0_to_the_last_step(device, name):
    call = calls(device=device)[name]
    wrong = torch.tensor([TIME + 2, -5, 10**9], device=device)
    if device == "cpu":
        with pytest.raises(ValueError, match=f"lengths must be from 0 to {TIME}, not -5 to 1000000000"):
            call(lengths=wrong)
    else:
        for x, y in zip(call(lengths=wrong), call(lengths=wrong.clamp(0, TIME)), strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("run", [direct, torch_code])
@pytest.mark.parametrize("name", [name for name in KERNELS if name != "diagonal_step"])
def test_below_the_check_lengths_are_held_to_that(device, name, run):
    needs_kernels(device)
    call = calls(device=device)[name]
    wrong = torch.tensor([TIME + 2, -5, 10**9], device=device)
    results = []
    if device == "cpu" and run is torch_code and name in ("discretized_scan", "rglru_scan"):
        with pytest.raises(ValueError, match="lengths must be"):  # by the linear scan that it consists of
            torch_code(*raw_with(call, lengths=wrong))
        return
    for lengths in (wrong, wrong.clamp(0, TIME)):
        operator, *args = raw_with(call, lengths=lengths)
        outputs = run(operator, *args)
        results.append([*outputs, *backward(operator, args, outputs, run)])
    for x, y in zip(*results, strict=True):
        assert x.isfinite().all()
        assert torch.equal(x, y)


# ---- a batch of none ----
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_none(device, name):
    call, full = calls(0, device)[name], calls(2, device)[name]
    leaves = {k: x.requires_grad_() if x.is_floating_point() else x for k, x in call.operands.items()}
    outputs, wanted = call._replace(operands=leaves)(), full()
    outputs, wanted = ((x,) if isinstance(x, Tensor) else x[:2] for x in (outputs, wanted))
    for x, y in zip(outputs, wanted, strict=True):
        assert (x.shape, x.dtype) == ((0, *y.shape[1:]), y.dtype)
    given = [x for x in leaves.values() if x.requires_grad]
    grads = torch.autograd.grad([x.sum() for x in outputs], given, materialize_grads=True)
    assert not any(g.any() for g in grads)


@pytest.mark.parametrize("run", [direct, torch_code])
@pytest.mark.parametrize("name", KERNELS)
def test_a_batch_of_none_without_the_check(device, name, run):
    needs_kernels(device)
    operator, args = raw(calls(0, device)[name])
    outputs = run(operator, *args)
    assert outputs[0].shape[0] == outputs[1].shape[0] == 0
    if name != "diagonal_step":
        assert not any(g.any() for g in backward(operator, args, outputs, run))


def test_projections_alike_for_a_batch_of_none(device):
    call = calls(0, device)["selective_scan"]
    alike = {name: torch.randn(1, 1, 2, 2, device=device) for name in ("B", "C")}
    assert call(**alike)[0].shape == (0, TIME, N)


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
