"""Compares an operator with its definition: errors of outputs and of gradients."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lrnnx_app.ops._examples import Draw, Operands, Sizes
from lrnnx_app.ops._table import PLAIN, Errors, Operator, Variant


class Results(NamedTuple):
    """Outputs, and the gradients of a random projection of them, by operand; float64 on the CPU."""

    outputs: list[Tensor]
    gradients: Operands


def outputs_of(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)


def results(operator: Operator, run: Any, operands: Operands, variant: Variant) -> Results:
    """Call `run`, which is `operator.run` or its definition, once without and once with gradients."""
    with torch.no_grad():
        alone = outputs_of(run(**operands, **variant.options))
    leaves = {k: x.detach().requires_grad_() for k, x in operator.leaves(operands).items()}
    gradients: Operands = {}
    if leaves:
        outputs = [y for y in outputs_of(run(**(operands | leaves), **variant.options)) if y.requires_grad]
        draw = Draw(1)
        along = [draw.normal(*y.shape).to(y.device, y.dtype) for y in outputs]
        found = torch.autograd.grad(outputs, list(leaves.values()), along, materialize_grads=True)
        gradients = dict(zip(leaves, map(_exactly, found), strict=True))
        alone += [y.detach() for y in outputs]  # another kernel may have made these
    return Results([*map(_exactly, alone)], gradients)


def errors(got: Results, want: Results) -> Errors:
    pairs = zip(got.outputs, want.outputs, strict=True)
    slopes = [(x, want.gradients[k]) for k, x in got.gradients.items()]
    return Errors(*(max((relative(x, y) for x, y in each), default=0.0) for each in (pairs, slopes)))


def compared(
    operator: Operator,
    operands: Operands,
    variant: Variant = PLAIN,
    device: str = "cpu",
    dtypes: Sequence[torch.dtype] = (),
) -> dict[torch.dtype, Errors]:
    """The errors of one call, for each of `dtypes`, or for all that the operator takes."""
    want = results(operator, operator.definition, operator.typed(operands, torch.float64, "cpu"), variant)
    found = {}
    for dtype in dtypes or operator.dtypes:
        with poisoned():
            got = results(operator, operator.run, operator.typed(operands, dtype, device), variant)
        found[dtype] = errors(got, want)
    return found


def worst_errors(operator: Operator, device: str, sizes: Sequence[Sizes]) -> dict[torch.dtype, Errors]:
    """For each dtype, the largest errors over variants and sizes, with and without optional operands."""
    found: dict[torch.dtype, Errors] = {}
    for variant, size in product(operator.variants, sizes):
        whole = operator.draw(Draw(), size, variant)
        needed = operator.needed(whole)
        for operands in (whole, needed) if len(needed) < len(whole) else (whole,):
            for dtype, new in compared(operator, operands, variant, device).items():
                found[dtype] = Errors(*map(max, new, found.get(dtype, new)))
    return found


def relative(value: Tensor, definition: Tensor) -> float:
    """‖value − definition‖ / max(‖definition‖, 10⁻⁶); infinite if a value is not finite."""
    difference = (value - definition).norm() / definition.norm().clamp_min(1e-6)
    return difference.nan_to_num(float("inf")).item()


def _exactly(x: Tensor) -> Tensor:
    return x.detach().cpu().double()


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """While entered, new memory is filled with NaN, so that an element that a kernel forgets is noticed."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    deterministic: Any = torch.utils.deterministic
    fill = deterministic.fill_uninitialized_memory
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*deterministic", category=UserWarning)
        torch.use_deterministic_algorithms(True, warn_only=True)
        deterministic.fill_uninitialized_memory = True
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            deterministic.fill_uninitialized_memory = fill


class Recorded(TorchDispatchMode):
    """While entered, `calls` records each call of one of this package's operators, with its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "lrnnx":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))
