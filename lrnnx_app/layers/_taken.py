"""What `forward` and `step` of every layer take: any floating dtypes, and a batch of none.

x is taken in the dtype of the parameters where it is in none of them, dt and states in the precision of a
state; y comes back in the dtype of x. Under autocast x stays as it is. A batch of none runs as one row that
is dropped again, so that shapes, dtypes and gradients are as for any other batch.
"""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from lrnnx_app.ops.linear_scan import state_dtype


def forward_of_any(run: Callable[..., Any]) -> Callable[..., Any]:
    """`run`, a layer's `forward`, for any dtypes and batch."""

    @wraps(run)
    def forward(
        self: nn.Module, x: Tensor, state: Any = None, *, dt: Tensor | None = None, **rest: Any
    ) -> tuple[Tensor, Any]:
        if _none(x):
            more = {name: _one_more(z) for name, z in rest.items()}
            y, state = forward(self, _one_more(x), _each(_one_more, state), dt=_one_more(dt), **more)
            return y[:0], _each(_no_rows, state)
        taken = _taken(self, x)
        kind = state_dtype(taken.dtype)
        dt = dt if dt is None else dt.to(kind)
        y, state = run(self, taken, _in_precision(state, kind), dt=dt, **rest)
        return y if taken is x else y.to(x.dtype), state

    return forward


def step_of_any(run: Callable[..., Any]) -> Callable[..., Any]:
    """`run`, a layer's `step`, for any dtypes and batch."""

    @wraps(run)
    def step(self: nn.Module, x: Tensor, state: Any, dt: Tensor | None = None) -> tuple[Tensor, Any]:
        if _none(x):
            y, state = step(self, _one_more(x), _each(_one_more, state), _one_more(dt))
            return y[:0], _each(_no_rows, state)
        taken = _taken(self, x)
        kind = state_dtype(taken.dtype)
        dt = dt if dt is None else dt.to(kind)
        y, state = run(self, taken, _in_precision(state, kind), dt)
        return y if taken is x else y.to(x.dtype), state

    return step


def _none(x: Tensor) -> bool:
    return x.shape[0] == 0 and not torch.compiler.is_compiling()  # a compiler is given some


def _taken(module: nn.Module, x: Tensor) -> Tensor:
    """x in a dtype that the module's parameters have."""
    if not x.is_floating_point() or torch.is_autocast_enabled(x.device.type):
        return x
    other = None
    for dtype in _dtypes(module):
        if dtype == x.dtype:
            return x
        if other is None and dtype.is_floating_point:
            other = dtype
    return x if other is None else x.to(other)


def _dtypes(module: nn.Module) -> Iterator[torch.dtype]:
    """Those of the parameters; `parameters()` would take longer than a small step does."""
    for p in module._parameters.values():
        if p is not None:
            yield p.dtype
    for part in module._modules.values():
        if part is not None:
            yield from _dtypes(part)


def _in_precision(state: Any, kind: torch.dtype) -> Any:
    if state is None or all(z.dtype == kind or not z.is_floating_point() for z in state):
        return state
    return _each(lambda z: z.to(kind) if z.is_floating_point() else z, state)


def _each(change: Callable[[Tensor], Any], state: Any) -> Any:
    return None if state is None else type(state)(*map(change, state))


def _one_more(z: Tensor | None) -> Any:
    return z if z is None else torch.cat((z, z.new_ones(1, *z.shape[1:])))


def _no_rows(z: Tensor) -> Tensor:
    return z[:0]
