"""What `forward` and `step` of every layer take: any floating dtypes, a batch of none, and what fits it.

x is taken in the dtype of the parameters where it is in none of them, dt and states in the precision of a
state; y comes back in the dtype of x. Under autocast x stays as it is. A batch of none runs as one row that
is dropped again, so that shapes, dtypes and gradients are as for any other batch. A state of another batch
and lengths beyond the last step are refused.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from lrnnx_app.ops._operands import check_range
from lrnnx_app.ops.linear_scan import state_dtype


def of_any(run: Callable[..., Any]) -> Callable[..., Any]:
    """`run`, a layer's `forward` or `step`, for any dtypes and batch.

    It is passed on every step of a stream, so that what fits already is found to do so in a microsecond.
    """

    @wraps(run)
    def call(
        self: nn.Module, x: Tensor, state: Any = None, dt: Tensor | None = None, **rest: Any
    ) -> tuple[Tensor, Any]:
        batch = x.shape[0]
        if batch == 0 and not torch.compiler.is_compiling():  # a compiler is given some
            more = {name: _one_more(z) for name, z in rest.items()}
            y, state = call(self, _one_more(x), _each(_one_more, state), _one_more(dt), **more)
            return y[:0], _each(_no_rows, state)
        taken = x if _has(self, x.dtype) else _taken(self, x)
        kind = state_dtype(taken.dtype)
        if state is not None:
            fits = True
            for z in state:
                if z.shape[0] != batch:
                    raise ValueError(f"the state is of a batch of {z.shape[0]}, and x of one of {batch}")
                fits = fits and z.dtype is kind
            if not fits:
                state = _each(lambda z: z.to(kind) if z.is_floating_point() else z, state)
        if dt is not None:
            dt = dt.to(kind)
        if rest and (lengths := rest.get("lengths")) is not None:
            check_range(lengths, x.shape[1])
            rest["lengths"] = lengths.clamp(0, x.shape[1])
        y, state = run(self, taken, state, dt=dt, **rest)
        return y if taken is x else y.to(x.dtype), state

    return call


def _has(module: nn.Module, dtype: torch.dtype) -> bool:
    """Whether a parameter is of the dtype; `parameters()` would take longer than a small step does."""
    for p in module._parameters.values():
        if p is not None and p.dtype is dtype:
            return True
    return any(_has(part, dtype) for part in module._modules.values() if part is not None)


def _taken(module: nn.Module, x: Tensor) -> Tensor:
    """x, of a dtype that no parameter has, in one that the first floating-point parameter has."""
    if not x.is_floating_point() or torch.is_autocast_enabled(x.device.type):
        return x
    kinds = (p.dtype for p in module.parameters() if p.is_floating_point())
    return x.to(next(kinds, x.dtype))


def _each(change: Callable[[Tensor], Any], state: Any) -> Any:
    return None if state is None else type(state)(*map(change, state))


def _one_more(z: Tensor | None) -> Any:
    return z if z is None else torch.cat((z, z.new_ones(1, *z.shape[1:])))


def _no_rows(z: Tensor) -> Tensor:
    return z[:0]
