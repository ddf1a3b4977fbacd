"""Times the operators, and compares each with the time to copy the least bytes that it must move.

Where forward and backward pass are an operator of torch each, these are timed alone. Other functions are
timed as they are called, on a GPU from a CUDA graph.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lrnnx_app import machine
from lrnnx_app.bench import _timing
from lrnnx_app.ops import _extension
from lrnnx_app.ops._compare import Recorded, outputs_of
from lrnnx_app.ops._examples import Draw, Operands
from lrnnx_app.ops._table import OPERATORS, Operator
from lrnnx_app.ops._timed import TIMED, Timed

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
WITH_TORCH = ("linear_scan", "selective_scan")  # timed as torch code and step by step, on a CPU


class Call(NamedTuple):
    """An operator of torch.ops.lrnnx and its arguments."""

    operator: Any
    args: tuple[Any, ...]

    def __call__(self) -> Any:
        return self.operator(*self.args)

    def by_torch(self) -> Any:
        """The same call by the torch code that is used without kernels."""
        return self.operator._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *self.args)


class Calls(NamedTuple):
    forward: Call
    backward: Call
    training: tuple[Call, ...]  # forward, which may keep states, and backward


def rows(device: str, cases: Sequence[Timed] | None = None) -> list[dict[str, Any]]:
    """One dictionary for each case: op, shape, dtype, ms and share of copy bandwidth forward and backward.

    Functions that are no pair of operators have ms of a training pass, both ways, in place of backward ms.
    On a CPU some operators are also compared with the torch code that runs without kernels, and with a loop
    over single steps. There the copy is timed again for every case, since other programs use bandwidth too.
    """
    _extension.load(device)
    bandwidth = _timing.copy_bandwidth(device)
    return [
        _row(case, device, _timing.copy_bandwidth(device) if device == "cpu" else bandwidth)
        for case in cases or TIMED[device]
    ]


def _row(case: Timed, device: str, bandwidth: float) -> dict[str, Any]:
    operator = OPERATORS[case.operator]
    drawn = operator.draw(Draw(0, device, fine=True), case.sizes, case.variant)
    operands = operator.typed(operator.needed(drawn, case.keep), case.dtype)
    row = {
        "op": f"{case.operator} {case.variant.words}".strip(),
        "shape": str(tuple(case.sizes)),
        "dtype": NAMES[case.dtype],
    }
    paired = f"{case.operator}_backward" in operator.registered
    found = (_of_operators if paired else _of_function)(operator, operands, case, device)
    for way in ("forward", "backward"):
        if f"{way} MB" in found:
            found[f"{way} / copy"] = found[f"{way} MB"] / bandwidth / found[f"{way} ms"] * 1e9
    return row | found | {"copy GB/s": bandwidth / 1e9}


def _of_operators(operator: Operator, operands: Operands, case: Timed, device: str) -> dict[str, float]:
    calls = _calls(operator, operands, case)
    forward, backward = (machine.median_ms(call, device) for call in calls[:2])
    sizes = [_moved(call, case.sizes.time) for call in calls[:2]]
    row = {
        "forward ms": forward,
        "backward ms": backward,
        "forward MB": sizes[0] / 1e6,
        "backward MB": sizes[1] / 1e6,
    }
    if calls.training:
        row["training ms"] = machine.median_ms(lambda: [call() for call in calls.training], device)
    if device == "cpu" and case.operator in WITH_TORCH:
        row |= _slower(operator, operands, case, calls, row)
    return row


def _of_function(operator: Operator, operands: Operands, case: Timed, device: str) -> dict[str, float]:
    run = partial(operator.run, **case.variant.options)
    leaves = {k: x.detach().requires_grad_() for k, x in operator.leaves(operands).items()}

    def forward() -> list[Tensor]:
        with torch.no_grad():
            return outputs_of(run(**operands))

    outputs = forward()
    along = [torch.randn_like(outputs[0]), *map(torch.zeros_like, outputs[1:])]

    def training() -> Any:
        return torch.autograd.grad(outputs_of(run(**(operands | leaves))), list(leaves.values()), along)

    def ms(run: Callable[[], Any]) -> float:
        return machine.median_ms(_timing.captured(run) if device == "cuda" else run, device)

    moved = sum(x.nbytes for x in (*operands.values(), *outputs))
    return {"forward ms": ms(forward), "training ms": ms(training), "forward MB": moved / 1e6}


def _calls(operator: Operator, operands: Operands, case: Timed) -> Calls:
    """The calls of the operator, forward and backward, without and with gradients."""
    with torch.no_grad(), Recorded() as alone:
        operator.run(**operands, **case.variant.options)
    forward = Call(*alone.calls[0])
    leaves = {k: x.requires_grad_() for k, x in operator.leaves(operands).items()}
    with Recorded() as both:
        outputs = outputs_of(operator.run(**(operands | leaves), **case.variant.options))
        along = [torch.randn_like(outputs[0]), *map(torch.zeros_like, outputs[1:])]
        torch.autograd.grad(outputs, list(leaves.values()), along)
    recorded = tuple(Call(*each) for each in both.calls)
    backward = recorded[-1]
    for x in leaves.values():
        x.requires_grad_(False)
    if recorded[0].operator is forward.operator:
        return Calls(forward, backward, ())
    # Timed apart, the backward pass makes the states again: its third argument is those that were kept.
    grads, rest = backward.args[:2], backward.args[3:]
    again = getattr(torch.ops.lrnnx, f"{case.operator}_backward")
    return Calls(forward, Call(again, (*grads, *rest)), recorded)


def _moved(call: Call, time: int) -> int:
    """The least bytes to read and write: those of all tensors with a time axis."""
    with torch.no_grad():
        tensors = [x for x in (*call.args, *outputs_of(call())) if isinstance(x, Tensor)]
    return sum(x.nbytes for x in tensors if x.ndim > 1 and x.shape[1] == time)


def _slower(
    operator: Operator, operands: Operands, case: Timed, calls: Calls, row: dict[str, Any]
) -> dict[str, float]:
    with torch.no_grad():
        found = {
            "torch × forward": machine.median_ms(calls.forward.by_torch, "cpu", 3) / row["forward ms"],
            "torch × backward": machine.median_ms(calls.backward.by_torch, "cpu", 3) / row["backward ms"],
        }

        def by_steps() -> None:
            operator.definition(**operands, **case.variant.options)

        return found | {"steps × forward": machine.median_ms(by_steps, "cpu", 1) / row["forward ms"]}
