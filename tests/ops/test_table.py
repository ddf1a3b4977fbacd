"""Every operator of the table: against its definition, as torch asks, with operands that lie otherwise."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from lrnnx_app.ops._compare import Recorded, outputs_of, poisoned, relative, results, worst_errors
from lrnnx_app.ops._examples import Draw, Operands, Sizes
from lrnnx_app.ops._table import OPERATORS, TOLERANCE, Operator, Variant
from lrnnx_app.ops._timed import OF_STEPS, TIMED
from lrnnx_app.ops.linear_scan import state_dtype
from tests.helpers import again_without_kernels, needs_kernels

each = pytest.mark.parametrize("name", OPERATORS)
SMALL, TINY = Sizes(3, 7, 4), Sizes(2, 4, 2)
SIZES = (Sizes(1, 2, 64), Sizes(2, 3, 33), Sizes(2, 31, 6), Sizes(3, 70, 300), Sizes(2, 130, 16))


def operands_of(
    operator: Operator,
    device: str,
    sizes: Sizes = SMALL,
    dtype: torch.dtype = torch.float32,
    variant: int = 0,
) -> Operands:
    return operator.typed(operator.draw(Draw(), sizes, operator.variants[variant]), dtype, device)


def recorded(operator: Operator, operands: Operands, variant: Variant) -> list[tuple[Any, tuple[Any, ...]]]:
    """The operators of torch that a call reaches, without and with gradients, and their arguments."""
    with Recorded() as calls:
        results(operator, operator.run, operands, variant)
    return calls.calls


def test_every_registered_operator_is_listed():
    names = {name.partition("::")[2] for name in torch._C._dispatch_get_all_op_names() if "lrnnx::" in name}
    assert names == {name for operator in OPERATORS.values() for name in operator.registered}


def test_what_is_timed_is_listed_and_nearly_all_that_is_listed():
    for rows in TIMED.values():
        assert {row.operator for row in rows} == OPERATORS.keys() - set(OF_STEPS)
        for row in rows:
            operator = OPERATORS[row.operator]
            assert set(row.keep) <= set(operator.optional)
            assert operator.draw(Draw(), SMALL, row.variant)


@each
def test_kernels_are_there_for_the_devices_and_dtypes_that_are_listed(device, name):
    needs_kernels(device)
    operator, key = OPERATORS[name], device.upper()
    built = [
        n for n in operator.registered if torch._C._dispatch_has_kernel_for_dispatch_key(f"lrnnx::{n}", key)
    ]
    assert bool(built) == bool(operator.kernels.get(device))
    for dtype in operator.kernels.get(device, ()):
        reached = recorded(operator, operands_of(operator, device, dtype=dtype), operator.variants[0])
        assert reached
        for op, args in reached:
            op(*args)


@each
def test_equals_the_definition(device, name):
    """Outputs and gradients of every variant, dtype and size, in memory that holds NaN before."""
    operator = OPERATORS[name]
    for dtype, worst in worst_errors(operator, device, SIZES).items():
        assert worst.within(operator.allowed(dtype)), (dtype, worst)


def test_memory_is_poisoned(device):
    with poisoned():
        assert torch.empty(5, device=device).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


@each
def test_states_and_outputs_have_their_precision(device, name):
    """Outputs are typed like the operands; of two, the second is a state."""
    operator = OPERATORS[name]
    for dtype in operator.dtypes:
        with torch.no_grad():
            outputs = outputs_of(
                operator.run(**operands_of(operator, device, dtype=dtype), **operator.variants[0].options)
            )
        wide = {state_dtype(dtype)}
        kinds = {"rfft": [wide], "irfft": [wide], "advance": [{dtype}, {dtype}]}.get(name, [{dtype}, wide])
        for y, kind in zip(outputs, kinds, strict=False):
            assert y.dtype in kind


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # raised inside opcheck itself
@each
def test_opcheck(device, name):
    operator = OPERATORS[name]
    dtype = operator.kernels.get(device, operator.dtypes)[-1] if device == "cuda" else torch.float32
    for variant in (0, len(operator.variants) - 1):
        operands = operands_of(operator, device, dtype=dtype, variant=variant)
        for given in (operands, operator.needed(operands)):
            for op, args in recorded(operator, given, operator.variants[variant]):
                plain = tree_map_only(Tensor, Tensor.detach, args)
                torch.library.opcheck(op, plain, test_utils=checks_of(op))
                if torch._C._dispatch_has_kernel_for_dispatch_key(op._schema.name, "Autograd"):
                    given_leaves = tuple(map(partial(leaf, operator), op._schema.arguments, plain))
                    torch.library.opcheck(op, given_leaves, test_utils=checks_of(op))


def checks_of(op: Any) -> Any:
    """All checks; two calls of an operator that returns its padded scratch memory need not be the same."""
    padded = op._schema.name == "lrnnx::selective_scan_kernel"
    return ("test_schema", "test_autograd_registration", "test_faketensor") if padded else "ALL"


def leaf(operator: Operator, argument: Any, x: Any) -> Any:
    """An argument of an operator of torch, with a gradient where it has one."""
    return (
        x.clone().requires_grad_()
        if operator.leaves({argument.name: x} if isinstance(x, Tensor) else {})
        else x
    )


@each
def test_gradients_of_both_orders(device, name):
    operator = OPERATORS[name]
    if not operator.leaves(operands_of(operator, device)):
        return
    for variant in {0, len(operator.variants) // 2, len(operator.variants) - 1}:
        operands = operands_of(operator, device, TINY, torch.float64, variant)
        leaves = {k: x.requires_grad_() for k, x in operator.leaves(operands).items()}

        def run(*given: Tensor, operands=operands, leaves=leaves, options=operator.variants[variant].options):
            found = outputs_of(operator.run(**(operands | dict(zip(leaves, given, strict=True))), **options))
            return [y for y in found if y.requires_grad]

        assert torch.autograd.gradcheck(run, tuple(leaves.values()), fast_mode=True)
        assert torch.autograd.gradgradcheck(run, tuple(leaves.values()), fast_mode=True)


def views(x: Tensor) -> Iterator[Tensor]:
    """The same numbers as every other one of a row, as a part of a wider row, and in the order of columns."""
    gap = torch.full_like(x, float("nan") if x.is_floating_point() else 1)
    yield torch.stack((x, gap), -1)[..., 0]
    yield torch.cat((gap[..., :1], x, gap), -1)[..., 1 : x.shape[-1] + 1]
    yield x.mT.contiguous().mT if x.ndim > 1 else x


@each
def test_operands_that_lie_otherwise(device, name):
    operator = OPERATORS[name]
    for variant in (operator.variants[0], operator.variants[-1]):
        operands = operator.typed(operator.draw(Draw(), Sizes(2, 20, 24), variant), torch.float32, device)
        want = results(operator, operator.run, operands, variant)
        for others in zip(*(views(x) for x in operands.values()), strict=True):
            got = results(operator, operator.run, dict(zip(operands, others, strict=True)), variant)
            pairs = zip(
                (*got.outputs, *got.gradients.values()),
                (*want.outputs, *want.gradients.values()),
                strict=True,
            )
            for x, y in pairs:
                torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


@each
def test_repeats_bit_for_bit(device, name):
    operator = OPERATORS[name]
    operands, variant = operands_of(operator, device, Sizes(4, 700, 70)), operator.variants[0]
    first, second = (results(operator, operator.run, operands, variant) for _ in range(2))
    assert all(map(torch.equal, first.outputs, second.outputs))
    assert all(map(torch.equal, first.gradients.values(), second.gradients.values()))


WITH_LENGTHS = [name for name in OPERATORS if "lengths" in operands_of(OPERATORS[name], "cpu")]


@pytest.mark.parametrize("name", WITH_LENGTHS)
def test_padding_is_not_read(device, name):
    """What lies beyond a row's length, were it NaN, reaches neither outputs nor gradients."""
    operator, time = OPERATORS[name], 40
    for variant in operator.variants:
        operands = operator.typed(operator.draw(Draw(), Sizes(3, time, 6), variant), torch.float32, device)
        beyond = torch.arange(time, device=device) >= operands["lengths"][:, None]
        for k, x in operands.items():
            if x.is_floating_point() and x.shape[:2] == beyond.shape:
                operands[k] = x.masked_fill(beyond.view(*beyond.shape, *[1] * (x.ndim - 2)), float("nan"))
        got = results(operator, operator.run, operands, variant)
        assert all(x.isfinite().all() for x in (*got.outputs, *got.gradients.values()))


@pytest.mark.parametrize("name", WITH_LENGTHS)
def test_chunks_equal_one_go(device, name):
    """With the state handed on, wherever a sequence is cut."""
    operator, time = OPERATORS[name], 20
    state = {"short_conv": "state"}.get(name, "h0")
    for variant in operator.variants:
        if variant.options.get("reverse"):
            continue
        operands = operator.typed(operator.draw(Draw(), Sizes(2, time, 4), variant), torch.float64, device)
        del operands["lengths"]
        run = partial(operator.run, **variant.options)
        whole, last = run(**operands)
        parts, after = [], operands[state]
        for start, end in ((0, 1), (1, 8), (8, 20)):
            piece = {k: x[:, start:end] if x.shape[1:2] == (time,) else x for k, x in operands.items()}
            y, after = run(**(piece | {state: after}))
            parts.append(y)
        torch.testing.assert_close(torch.cat(parts, 1), whole)
        torch.testing.assert_close(after, last)


@each
def test_compiled_and_exported(name):
    operator = OPERATORS[name]
    for i in {0, len(operator.variants) - 1}:
        operands, options = (
            operands_of(operator, "cpu", Sizes(2, 40, 4), variant=i),
            operator.variants[i].options,
        )
        given = {k: x for k, x in operands.items() if k not in ("lengths", "reset")}

        class Module(torch.nn.Module):
            def forward(self, run=operator.run, options=options, **given):
                return outputs_of(run(**given, **options))

        torch.compiler.reset()
        for run in (
            torch.compile(Module(), backend="aot_eager", fullgraph=True),
            torch.export.export(Module(), (), given).module(),
        ):
            for x, y in zip(run(**given), Module()(**given), strict=True):
                assert relative(x, y) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("name", [name for name in OPERATORS if OPERATORS[name].kernels])
def test_torch_code_gives_what_kernels_give(device, name):
    """What runs where nothing is built, forward and backward, on the same arguments."""
    if device not in OPERATORS[name].kernels:
        return
    needs_kernels(device)
    operator, anywhere = OPERATORS[name], torch._C.DispatchKey.CompositeExplicitAutograd
    dtype = operator.kernels[device][0]
    for i, variant in enumerate(operator.variants):
        operands = operands_of(operator, device, Sizes(2, 20, 6), dtype, i)
        for op, args in recorded(operator, operands, variant):
            args = tree_map_only(Tensor, Tensor.detach, args)
            if op._schema.name.startswith("lrnnx::selective_scan_kernel"):
                continue  # which has no torch code: it stands beside an operator that has
            for x, y in zip(made_by(op, args), made_by(partial(op._op_dk, anywhere), args), strict=True):
                assert relative(x, y) <= operator.allowed(dtype).gradient, (op, variant.words)


def made_by(op: Any, args: Any) -> list[Tensor]:
    """The outputs, and the operands that the operator may have written to."""
    args = tree_map_only(Tensor, Tensor.clone, args)
    returned = op(*args)
    if returned is not None:
        return outputs_of(returned)
    return [x for x in tree_leaves(args) if isinstance(x, Tensor) and x.is_floating_point()]


def test_without_kernels():
    again_without_kernels(__file__, "cpu and (opcheck and (selective or conv) or definition and linear_scan)")
