"""What function transforms (`torch.func`) and forward-mode derivatives ask of the code: plain torch calls.

An operator of torch.library drops tangents without a word, and knows neither batched tensors nor a gradient
inside a transform. While one is at work, every public function here runs torch calls without side effects,
so that each transform, and each composition of them, is right; they take more memory than the operators.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint


def transformed() -> bool:
    """Whether `vmap`, `grad`, `jvp` or the like of `torch.func` is at work, or a level of forward mode."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def free(*sizes: Any) -> bool:
    """Whether `torch.export` leaves one of the sizes open."""
    return torch.compiler.is_exporting() and any(isinstance(n, torch.SymInt) for n in sizes)


def refuse_free(steps: Any, what: str) -> None:
    """Refuse an export that leaves the number of steps open, where a layer runs over them in a Python loop.

    Raises:
        ValueError: says what to export instead.
    """
    if free(steps):
        raise ValueError(
            f"{what} is exported for a fixed number of steps: leave time out of dynamic_shapes, and run "
            "longer sequences chunk by chunk with the state"
        )


def recomputed(run: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """run(…), computed again in the backward pass instead of kept, where torch can do so."""
    if transformed():
        return run(*arguments, **options)
    return checkpoint(run, *arguments, use_reentrant=False, preserve_rng_state=False, **options)
