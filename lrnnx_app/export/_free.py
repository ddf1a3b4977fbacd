"""A model's forward pass as an exported graph for any batch and any number of steps."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dynamo.exc import UserError as ExportError
from torch.export import Dim, ExportedProgram, default_decompositions, export
from torch.export.graph_signature import InputKind
from torch.utils._pytree import tree_flatten, tree_unflatten

from lrnnx_app.errors import StreamError
from lrnnx_app.export import _rules
from lrnnx_app.layers._base import Layer
from lrnnx_app.ops import discretized_scan, rglru_scan, selective_scan, short_conv
from lrnnx_app.ops.rules import numbered
from lrnnx_app.spec import Rows

EXAMPLE = 5  # hops of the sequence that is traced
MOST = 2**24  # steps

_library = torch.library.Library("lrnnx_export", "DEF")
_library.define(
    "by_step(Tensor x, Tensor[] state, Tensor[] weights, Tensor? dt, Tensor? lengths, str layer) -> Tensor[]"
)


@torch.library.register_fake("lrnnx_export::by_step", lib=_library)
def _by_step(x, state, weights, dt, lengths, layer):
    return [torch.empty_like(x), *(torch.empty_like(z) for z in state)]


def _discretized(z, dt, v, h0, lengths, reset, reverse, rule):
    options = {"rule": numbered(rule), "lengths": lengths, "reset": reset, "reverse": reverse}
    return discretized_scan.reference(z, dt, v, h0, **options)


def _gated(gate, input_gate, u, rate, dt, first, h0, lengths, reset):
    options = {"dt": dt, "first": first, "lengths": lengths, "reset": reset}
    return rglru_scan.reference(gate, input_gate, u, rate, h0, **options)


_ops = torch.ops.lrnnx
COMPOSED: dict[Any, Any] = {  # operators that are made of others
    _ops.discretized_scan.default: _discretized,
    _ops.rglru_scan.default: _gated,
    _ops.selective_scan.default: partial(selective_scan.blocked, whole=True),
    _ops.short_conv.default: short_conv.blocked,
}


@dataclass
class Free:
    """An exported graph, and what its placeholders are: parameters by name, or inputs in their order."""

    graph: fx.Graph
    weights: dict[fx.Node, str]
    inputs: list[fx.Node]
    constants: dict[str, Tensor]


def traced(model: nn.Module, state: Any, x: Tensor, timed: bool, hop: int = 1) -> Free:
    """model(x, state, lengths=…, dt=…) with B and T, a multiple of `hop`, free; dt only if `timed`.

    The inputs of the graph are x, the tensors of the state, and what is given of lengths and dt.

    Raises:
        StreamError: torch cannot export the model for every number of steps.
    """
    batch, steps = Dim("batch", min=1), hop * Dim("steps", min=1, max=MOST)
    leaves, form = ([], None) if state is None else tree_flatten(state)
    lengths, dt = torch.full(x.shape[:1], x.shape[1] - 1), [torch.ones(x.shape[:2])] * timed
    shapes = [
        {0: batch, 1: steps},
        *({0: batch} for _ in (*leaves, lengths)),
        *({0: batch, 1: steps} for _ in dt),
    ]

    def forward(*tensors: Tensor) -> tuple[Tensor, ...]:
        x, *rest = tensors
        before = None if form is None else tree_unflatten(rest[: len(leaves)], form)
        lengths, *dt = rest[len(leaves) :]
        y, after = type(model).forward(model, x, before, lengths=lengths, dt=dt[0] if dt else None)
        return (y,) if form is None else (y, *tree_flatten(after)[0])

    with _by_steps(model):
        return _exported(model, forward, (x, *leaves, lengths, *dt), shapes)


def step_of(layer: Layer, state: Any, timed: bool) -> Free:
    """layer.step(x, state, dt) with B free; its inputs are x, dt if `timed`, and the state's tensors."""
    tensors = (torch.zeros(2, layer.d_model), *([torch.ones(2)] if timed else []), *state)

    def forward(*tensors: Tensor) -> tuple[Tensor, ...]:
        x, dt, *rest = tensors if timed else (tensors[0], None, *tensors[1:])
        y, after = layer.step(x, type(state)(*rest), dt)
        return y, *after

    batch = Dim("batch", min=1)
    return _exported(layer, forward, tensors, [{0: batch} for _ in tensors])


def _exported(module: nn.Module, forward: Any, tensors: Any, shapes: list[Any]) -> Free:
    """The graph of `forward` in place of the module's own, with tensors alone as inputs and outputs."""
    options: Any = {"strict": False, "prefer_deferred_runtime_asserts_over_guards": True}
    try:
        with torch.no_grad():
            program = export(
                _Of(module, forward), tensors, dynamic_shapes={"tensors": tuple(shapes)}, **options
            )
            program = program.run_decompositions(_decompositions())
    except (ExportError, ValueError) as error:
        raise StreamError(
            f"this model cannot be written for any number of steps: {str(error).splitlines()[0]}"
        ) from error
    return _read(program)


class _Of(nn.Module):
    """A module that calls a function of another one, `of`."""

    def __init__(self, of: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.of, self.call = of, call

    def forward(self, *tensors: Tensor) -> Any:
        return self.call(*tensors)


def own(path: str) -> str:
    """A path in the module that was exported."""
    return path.removeprefix("of").removeprefix(".")


def _decompositions() -> dict[Any, Any]:
    """Of lrnnx's composed operators, and of torch's that there is no line for."""
    table = {op: made for op, made in default_decompositions().items() if not _rules.known(op)}
    return {**table, **COMPOSED}


def _read(program: ExportedProgram) -> Free:
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    weights, inputs, constants = {}, [], {}
    for spec in program.graph_signature.input_specs:
        node = nodes[spec.arg.name]
        if spec.kind is InputKind.USER_INPUT:
            inputs.append(node)
        else:
            assert spec.target is not None
            weights[node] = own(spec.target)
            if spec.target not in program.state_dict:
                constants[own(spec.target)] = program.constants[spec.target]
    return Free(program.graph, weights, inputs, constants)


@contextmanager
def _by_steps(model: nn.Module) -> Iterator[None]:
    """While entered, layers that loop over their steps in Python run as the operator `by_step`."""
    looping = [(path, part) for path, part in model.named_modules() if isinstance(part, Layer) and part.loops]

    def run(path: str, layer: Layer, x: Tensor, state: Any, rows: Rows) -> tuple[Tensor, Any]:
        state = layer.init_state(x.shape[0]) if state is None else state
        weights = list(layer.parameters())
        y, *after = torch.ops.lrnnx_export.by_step(x, list(state), weights, rows.dt, rows.lengths, path)
        return y, type(state)(*after)

    for path, layer in looping:
        layer.run = partial(run, path, layer)  # type: ignore[assignment]  (an attribute of this layer alone)
    try:
        yield
    finally:
        for _, layer in looping:
            del layer.run
