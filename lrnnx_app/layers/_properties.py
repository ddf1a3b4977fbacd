"""What holds for every layer, whatever its mathematics: the contract of `_base.Layer`, on small examples.

`trials` lists what there is to try of a layer of the registry. The tests try all of it for lrnnx's own
layers, `lrnnx doctor --plugin` for those of a file.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from lrnnx_app.layers import _bidirectional
from lrnnx_app.layers._base import DiagonalLayer
from lrnnx_app.layers._definition import definition_of, differences
from lrnnx_app.layers._examples import D_MODEL, Case, examples
from lrnnx_app.registry import LAYERS

BATCH, TIME = 3, 11
EXACT = {torch.float64: 1e-10, torch.float32: 1e-5}  # relative error between two ways to the same numbers
DEFINED = 1e-9  # the same, of the definition, and of gradients through it
PIECES = ([1] * TIME, [4, 1, 6], [2, 9], [8, 1, 1, 1])


class Broken(AssertionError):  # noqa: N818  (says what is broken)
    """A property does not hold; the text says by how much."""


class Trial(NamedTuple):
    """A property of a layer with some of its options, with or without elapsed time."""

    name: str
    check: Callable[[Case, bool], None]
    case: Case
    timed: bool

    def run(self) -> None:
        """Raises Broken if the property does not hold."""
        self.check(self.case, self.timed)

    def __str__(self) -> str:
        return "-".join([self.name, str(self.case), *["dt"] * self.timed])


class _Property(NamedTuple):
    check: Callable[[Case, bool], None]
    streams: bool  # it is about layers that take and give a state
    both: bool  # it is about those that read a sequence in both directions too
    timed: bool  # it is tried with elapsed time as well


PROPERTIES: dict[str, _Property] = {}


def _property(streams: bool = False, both: bool = True, timed: bool = True) -> Callable[..., Any]:
    def add(check: Callable[[Case, bool], None]) -> Callable[[Case, bool], None]:
        PROPERTIES[check.__name__] = _Property(check, streams, both and not streams, timed)
        return check

    return add


def trials(name: str) -> Iterator[Trial]:
    """All that there is to try of one layer."""
    alone = examples(name)
    for label, about in PROPERTIES.items():
        cases = [case for case in alone if not about.streams or case.build().causal]
        cases = list({str(by_rule): by_rule for case in cases for by_rule in case.by_each_rule()}.values())
        cases += [Case(name, alone[0].options, True)] if about.both else []
        for case in cases:
            yield Trial(label, about.check, case, False)
            if about.timed and case.build().uses_dt:
                yield Trial(label, about.check, case, True)


def inputs(timed: bool, dtype: torch.dtype = torch.float64, time: int = TIME) -> tuple[Tensor, Tensor | None]:
    """x (BATCH, time, D_MODEL), and dt (BATCH, time) from 0.1 to 2.1, or None."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, time, D_MODEL, generator=generator, dtype=dtype)
    dt = torch.rand(BATCH, time, generator=generator, dtype=dtype) * 2 + 0.1
    return x, dt if timed else None


def close(found: Any, expected: Any, tolerance: float = EXACT[torch.float64]) -> None:
    """Compare two trees of tensors.

    Raises:
        Broken: a shape differs, or ‖found − expected‖ is beyond tolerance · max(1, ‖expected‖).
    """
    found, expected = tree_leaves(found), tree_leaves(expected)
    require(len(found) == len(expected) > 0, f"{len(found)} tensors instead of {len(expected)}")
    for one, other in zip(found, expected, strict=True):
        require(one.shape == other.shape, f"shape {tuple(one.shape)} instead of {tuple(other.shape)}")
        one, other = one.detach().double(), other.detach().double()
        error = float((one - other).norm() / max(1.0, float(other.norm())))
        require(error <= tolerance, f"differs by {error:.2g}, allowed are {tolerance:.2g}")


def require(holds: Any, otherwise: str) -> None:
    if not holds:
        raise Broken(otherwise)


def _cut(dt: Tensor | None, *index: Any) -> Tensor | None:
    return None if dt is None else dt[index]


def _row(state: Any, row: int) -> Any:
    return tree_map(lambda s: s[row, None], state)


def in_pieces(
    layer: Any, x: Tensor, dt: Tensor | None, sizes: list[int], state: Any = None
) -> tuple[Tensor, Any]:
    """Chunks of the given sizes, those of size 1 by `step`."""
    state, start, ys = layer.init_state(x.shape[0]) if state is None else state, 0, []
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


def moved(case: Case) -> tuple[Any, Callable[..., Tensor]]:
    """The layer with no parameter at 0 or 1, where an error could hide; and its definition."""
    layer = case.build()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.1 * torch.randn_like(p))
    definition = _bidirectional.definition if case.bidirectional else definition_of(LAYERS[case.name])
    return layer, partial(definition, layer)


@_property()
def equals_its_definition(case: Case, timed: bool) -> None:
    """Outputs and gradients are those of the paper's loop beside the class."""
    layer, definition = moved(case)
    found = differences(layer, definition, *inputs(timed))
    wrong = {name: f"{error:.2g}" for name, error in found.items() if not error <= DEFINED}
    require(not wrong, f"differs by {wrong}, allowed are {DEFINED:.2g}")


@_property(streams=True)
def forward_is_chunks_is_steps(case: Case, timed: bool) -> None:
    """A sequence in one go, in chunks and step by step give the same outputs and states."""
    for dtype, tolerance in EXACT.items():
        layer, (x, dt) = case.build(dtype), inputs(timed, dtype)
        with torch.no_grad():
            whole = layer(x, dt=dt)
            for sizes in PIECES:
                close(in_pieces(layer, x, dt, sizes), whole, tolerance)


@_property()
def packed_is_separate(case: Case, timed: bool) -> None:
    """Sequences in one row, each begun by a reset, are what they are alone."""
    layer, (x, dt) = case.build(), inputs(timed)
    starts = [[0, 4, 5], [0, 8], [0]]  # the sequences of each row
    reset = torch.zeros(BATCH, TIME, dtype=torch.bool)
    for row, where in enumerate(starts):
        reset[row, where] = True
    y, state = layer(x, dt=dt, reset=reset)
    for row, where in enumerate(starts):
        ys, after = [], None
        for first, last in zip(where, [*where[1:], TIME], strict=True):
            alone, after = layer(x[row, None, first:last], dt=_cut(dt, [row], slice(first, last)))
            ys.append(alone)
        close(y[row, None], torch.cat(ys, 1))
        if state is not None:
            close(_row(state, row), after)


@_property(streams=True)
def reset_drops_the_state(case: Case, timed: bool) -> None:
    """A state that is handed in counts until the first reset of its row."""
    layer, (x, dt) = case.build(), inputs(timed)
    _, state = layer(x, dt=dt)
    reset = torch.zeros(BATCH, TIME, dtype=torch.bool)
    reset[0, 0] = reset[1, 3] = True
    y, last = layer(x, state, dt=dt, reset=reset)
    close((y[:1], _row(last, 0)), layer(x[:1], dt=_cut(dt, slice(1))))
    close((y[2:], _row(last, 2)), layer(x[2:], _row(state, 2), dt=_cut(dt, slice(2, 3))))


@_property()
def right_padding_is_not_read(case: Case, timed: bool) -> None:
    """Steps beyond a row's length change neither its outputs nor its state."""
    layer, (x, dt) = case.build(), inputs(timed)
    lengths = torch.tensor([TIME, 1, 6])
    beyond = torch.arange(TIME) >= lengths[:, None]
    x = torch.where(beyond[..., None], 1e3, x)
    y, state = layer(x, dt=dt, lengths=lengths)
    require(y.isfinite().all(), "outputs that are no finite numbers")
    for row, length in enumerate(lengths.tolist()):
        alone, after = layer(x[row, None, :length], dt=_cut(dt, [row], slice(length)))
        close(y[row, None, :length], alone)
        if state is not None:
            close(_row(state, row), after)


@_property()
def left_padding_is_forgotten(case: Case, timed: bool) -> None:
    """Inputs before a reset change no output after it."""
    layer, (x, dt) = case.build(), inputs(timed)
    firsts = [0, TIME - 1, 5]
    reset = torch.zeros(BATCH, TIME, dtype=torch.bool)
    for row, first in enumerate(firsts):
        reset[row, first] = True
        x[row, :first] = 1e3
    y, state = layer(x, dt=dt, reset=reset)
    for row, first in enumerate(firsts):
        alone, after = layer(x[row, None, first:], dt=_cut(dt, [row], slice(first, None)))
        close(y[row, None, first:], alone)
        if state is not None:
            close(_row(state, row), after)


@_property(streams=True, timed=False)
def state_and_lengths_go_together(case: Case, timed: bool) -> None:
    """A padded batch goes on from states as its rows do alone."""
    layer, (x, _) = case.build(), inputs(timed)
    _, state = layer(x)
    lengths = torch.tensor([TIME, 1, 6])
    y, last = layer(x, state, lengths=lengths)
    for row, length in enumerate(lengths.tolist()):
        alone, after = layer(x[row, None, :length], _row(state, row))
        close(y[row, None, :length], alone)
        close(_row(last, row), after)


@_property(streams=True)
def a_row_of_length_zero_keeps_its_state(case: Case, timed: bool) -> None:
    layer, (x, dt) = case.build(), inputs(timed)
    for state in (layer.init_state(BATCH), layer(x)[1]):
        _, last = layer(x, state, dt=dt, lengths=torch.zeros(BATCH, dtype=torch.int64))
        close(last, state, 0.0)


@_property()
def causality_is_as_declared(case: Case, timed: bool) -> None:
    """A change of the input acts from its step on, and before it exactly if the layer is not `causal`."""
    layer, (x, dt) = case.build(), inputs(timed)
    changed = x.clone()
    changed[:, 6:] += 1
    before, after = layer(x, dt=dt)[0], layer(changed, dt=dt)[0]
    require(not (case.bidirectional and layer.causal), "two directions that call themselves causal")
    untouched = torch.allclose(before[:, :6], after[:, :6], rtol=0, atol=1e-12)
    require(untouched == layer.causal, f"causal is {layer.causal}, but earlier outputs say otherwise")
    require(not torch.allclose(before[:, 6:], after[:, 6:]), "later outputs do not depend on the input")


@_property(timed=False)
def elapsed_time_acts_or_is_refused(case: Case, timed: bool) -> None:
    """With `uses_dt`, a dt of 1 is none and others count; without it, ValueError names the layer."""
    layer, (x, dt) = case.build(), inputs(True)
    if layer.uses_dt:
        require(not torch.allclose(layer(x, dt=dt)[0], layer(x)[0]), "elapsed time changes nothing")
        return close(layer(x, dt=torch.ones_like(x[..., 0]))[0], layer(x)[0])
    try:
        layer(x, dt=dt)
    except ValueError as error:
        return require(LAYERS[case.name].__name__ in str(error), f"refuses dt without its name: {error}")
    raise Broken("ignores dt, though uses_dt is False")


@_property(streams=True)
def states_do_not_grow(case: Case, timed: bool) -> None:
    """|a| ≤ 1 for a diagonal layer; a state of any other stays finite without input."""
    layer, (x, dt) = case.build(), inputs(timed)
    if not isinstance(layer, DiagonalLayer):
        state = tree_map(lambda s: s + 1 if s.is_floating_point() else s, layer.init_state(BATCH))
        _, last = layer(torch.zeros_like(x).repeat(1, 30, 1), state)
        bounded = all(s.isfinite().all() and s.abs().max() < 1e3 for s in tree_leaves(last))
        return require(bounded, "a state grows without input")
    one = torch.zeros_like(layer.init_state(BATCH).h)
    (one if one.ndim == 2 else one[:, 0]).fill_(1)
    for t in range(x.shape[1]):
        a, b = layer.coefficients(x[:, t : t + 1], dt[:, t : t + 1] if dt is not None else None)
        _, h, *_ = a.step(torch.zeros_like(b[:, 0]), *layer.init_state(BATCH)._replace(h=one))
        size = float((h.detach().abs() if h.ndim == 2 else torch.linalg.vector_norm(h.detach(), dim=1)).max())
        rounding = torch.finfo(h.dtype).eps  # where nothing decays
        require(size <= 1 + rounding, f"|a| is {size:.4g}, allowed is 1")


@_property(streams=True)
def gradients_are_those_of_differences(case: Case, timed: bool) -> None:
    """torch.autograd.gradcheck through the input, the state and elapsed time."""
    layer, (x, dt) = case.build(), inputs(timed, time=3)
    _, state = layer(x[:2], dt=_cut(dt, slice(2)))
    leaves, spec = tree_flatten(state)
    soft = [i for i, leaf in enumerate(leaves) if leaf.is_floating_point()]

    def run(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        given = list(leaves)
        for i, leaf in zip(soft, rest, strict=False):
            given[i] = leaf
        y, last = layer(x, tree_unflatten(given, spec), dt=rest[-1] if timed else None)
        return (y, *(leaf for leaf in tree_leaves(last) if leaf.requires_grad))

    given = [x[:2], *(leaves[i] for i in soft), *([] if dt is None else [dt[:2]])]
    given = [tensor.detach().clone().requires_grad_() for tensor in given]
    require(torch.autograd.gradcheck(run, given, fast_mode=True), "gradients are wrong")


@_property(timed=False)
def every_parameter_has_a_finite_gradient(case: Case, timed: bool) -> None:
    layer, (x, _) = case.build(), inputs(timed)
    layer(x)[0].square().sum().backward()
    missing = [name for name, p in layer.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    require(not missing, f"no finite gradient of {', '.join(missing)}")
