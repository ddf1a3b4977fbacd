"""Checks the operands of all operators, before a kernel or torch code reads them.

Shapes, dtypes and devices are checked. Values on a GPU are not, since that would wait for the GPU. So lengths
outside 0 … T are refused on a CPU; on a GPU and in compiled code they are clamped to that range.
"""

import torch
from torch import Tensor

from lrnnx_app.ops._transforms import transformed

FLOAT = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGER = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
NUMBER = FLOAT + INTEGER
BOOL = (torch.bool,)
ANY = NUMBER + BOOL
WORDS = {
    FLOAT: "floating-point",
    INTEGER: "integers",
    NUMBER: "real numbers",
    BOOL: "bool",
    ANY: "real or bool",
}


def principal(name: str, x: Tensor, axes: str) -> torch.Size:
    """The sizes of the operand x, from which those of all others follow.

    Args:
        name: name of x, for messages.
        x: the operand.
        axes: a letter for each axis, such as "BTN"; all sizes but the first, B, must be at least 1.

    Raises:
        ValueError: x has another number of axes, an axis of size 0, or no floating-point dtype.
    """
    sizes = x.shape
    if len(sizes) != len(axes) or 0 in sizes[1:]:
        least = ", ".join(f"{axis} ≥ 1" for axis in axes[1:] if axis.isalpha())
        wanted = f"({', '.join(axes)}) with {least}"
        raise ValueError(f"{name} must be {wanted}, not {tuple(sizes)}")
    if x.dtype not in FLOAT:
        check(name, x, sizes, x)
    return sizes


def check(
    name: str, x: Tensor | None, shape: tuple[int, ...], like: Tensor, kind: tuple[torch.dtype, ...] = FLOAT
) -> None:
    """Refuse an operand with another shape or kind of dtype, or on another device than `like`; None passes.

    Raises:
        ValueError: says what was expected.
    """
    if x is None or (x.shape == shape and x.dtype in kind and x.device == like.device):
        return
    if x.shape != shape:
        raise ValueError(f"{name} must be {tuple(shape)}, not {tuple(x.shape)}")
    if x.dtype not in kind:
        raise ValueError(f"{name} must be {WORDS[kind]}, not {x.dtype}")
    raise ValueError(f"{name} must be on {like.device} as the others are, not on {x.device}")


def check_broadcast(name: str, x: Tensor | None, shape: tuple[int, ...], like: Tensor) -> None:
    """As `check`, for an operand that may broadcast to `shape`."""
    if x is None:
        return
    sizes = x.shape
    fits = len(sizes) <= len(shape)
    for n, m in zip(reversed(sizes), reversed(shape), strict=False):
        if n != m and n != 1:
            fits = False
    if not fits:
        raise ValueError(f"{name} must broadcast to {tuple(shape)}, not be {tuple(sizes)}")
    if x.dtype not in FLOAT or x.device != like.device:
        check(name, x, sizes, like)


def check_range(lengths: Tensor | None, time: int) -> None:
    """Refuse lengths outside 0 … `time`; checks nothing on a GPU and in compiled or transformed code.

    Raises:
        ValueError: says which range was expected.
    """
    if lengths is None or not lengths.is_cpu or torch.compiler.is_compiling() or transformed():
        return
    values = lengths.tolist()
    if values and not 0 <= min(values) <= max(values) <= time:
        raise ValueError(f"lengths must be from 0 to {time}, not {min(values)} to {max(values)}")


def check_steps(
    like: Tensor,
    *,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    dt: Tensor | None = None,
    first: Tensor | None = None,
) -> None:
    """Refuse lengths (B,), or reset, dt and first (B, T), that do not fit the first two axes of `like`.

    Raises:
        ValueError: says what was expected.
    """
    if lengths is None and reset is None and dt is None and first is None:
        return
    steps = like.shape[:2]
    check("lengths", lengths, steps[:1], like, INTEGER)
    check_range(lengths, steps[1])
    check("reset", reset, steps, like, BOOL)
    check("dt", dt, steps, like, NUMBER)
    check("first", first, steps, like, ANY)
