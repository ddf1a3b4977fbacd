"""Support for function transforms (`torch.func`) and forward-mode derivatives.

An operator of torch.library has no rules for them; it even drops forward-mode tangents without an error. So
under a transform every public function of this folder runs plain torch calls without writes in place. Any
combination of transforms is then right, but takes more memory than the operators.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint


def transformed() -> bool:
    """Whether a transform of `torch.func` (`vmap`, `grad`, `jvp`, …) or forward-mode autograd is active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def free(*sizes: Any) -> bool:
    """Whether `torch.export` is running and one of the sizes is dynamic."""
    return torch.compiler.is_exporting() and any(isinstance(n, torch.SymInt) for n in sizes)


def refuse_free(steps: Any, what: str) -> None:
    """Refuse an export with a dynamic number of steps, for a layer that loops over steps in Python.

    Raises:
        ValueError: says what to export instead.
    """
    if free(steps):
        raise ValueError(
            f"{what} is exported for a fixed number of steps: leave time out of dynamic_shapes, and run "
            "longer sequences chunk by chunk with the state"
        )


def recomputed(run: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """run(…), computed again in the backward pass to save memory, unless a transform is active."""
    if transformed():
        return run(*arguments, **options)
    return checkpoint(run, *arguments, use_reentrant=False, preserve_rng_state=False, **options)
