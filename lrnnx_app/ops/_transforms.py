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


def recomputed(run: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """run(…), computed again in the backward pass instead of kept, where torch can do so."""
    if transformed():
        return run(*arguments, **options)
    return checkpoint(run, *arguments, use_reentrant=False, preserve_rng_state=False, **options)
