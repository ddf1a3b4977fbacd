"""Overwrites the states of active streams by new ones: all tensors of a model in one launch on a GPU."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lrnnx_app.ops import _extension
from lrnnx_app.ops._blocked import cast
from lrnnx_app.ops._operands import ANY, BOOL, check

LARGEST = 2**31  # most bytes of a tensor that the kernel takes; kLargest in csrc/ is the same


def advance(held: Sequence[Tensor], new: Sequence[Tensor], active: Tensor) -> None:
    """Set held[i][b] = new[i][b] for every i and every b with active[b].

    Args:
        held: contiguous tensors (B, …), which are overwritten.
        new: a tensor of the same shape for each of them.
        active: (B,) bool.

    Raises:
        ValueError: the number of tensors, a shape, dtype or device does not fit.
    """
    check("active", active, active.shape[:1], active, BOOL)
    if len(held) != len(new):
        raise ValueError(f"new must be as many as held, {len(held)}, not {len(new)}")
    for old, value in zip(held, new, strict=True):
        sizes = old.shape
        if sizes[:1] != active.shape or old.dtype not in ANY or old.device != active.device:
            check("held", old, (*active.shape, *sizes[1:]), active, ANY)
        check("new", value, sizes, active, ANY)
        if not old.is_contiguous():
            raise ValueError(f"held must be contiguous, not {tuple(old.shape)} of strides {old.stride()}")
    countable = all(x.nbytes <= LARGEST for x in held)
    run = torch.ops.lrnnx.advance if countable else reference
    run(held, new, active)


def reference(held: Sequence[Tensor], new: Sequence[Tensor], active: Tensor) -> None:
    """The definition; arguments as of `advance`."""
    for old, value in zip(held, new, strict=True):
        torch.where(active.view(-1, *[1] * (old.ndim - 1)), cast(value, old.dtype), old, out=old)


_library = torch.library.Library("lrnnx", "FRAGMENT")
_library.define("advance(Tensor(a!)[] held, Tensor[] new, Tensor active) -> ()")

_extension.without_kernels(_library, "advance", reference, ["cuda"])


@torch.library.register_fake("lrnnx::advance", lib=_library)
def _(held, new, active):
    pass
