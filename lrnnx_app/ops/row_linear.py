"""A matmul of a few rows with the elementwise work after it, for streaming: a single launch on a GPU.

    y = act(W x + bias + skip∘via)∘times, or with GELU(x) instead of x

One step of a layer is a chain of such products. Each is so small that a general matmul would take longer to
start than to run. The kernel takes float32 and is as accurate, whatever precision torch allows for matmuls.
In all other cases (more rows, other dtypes, autocast, gradients, other devices) torch calls do the same.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from lrnnx_app.ops import _extension
from lrnnx_app.ops._blocked import cast, state_dtype
from lrnnx_app.ops._operands import FLOAT, check
from lrnnx_app.ops.linear_scan import wants_gradient

MOST = 64  # rows that the kernel takes; more go to a general matmul
CODES = {None: 0, "sigmoid": 1, "gelu_tanh": 2}  # as csrc/ numbers them
ACTIVATIONS = {0: lambda y: y, 1: torch.sigmoid, 2: lambda y: F.gelu(y, approximate="tanh")}


def row_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    skip: Tensor | None = None,
    via: Tensor | None = None,
    times: Tensor | None = None,
    heads: int = 1,
    activation: str | None = None,
    gelu: bool = False,
    checked: bool = True,
) -> Tensor:
    """Multiply rows by a matrix.

    Args:
        x: (…, heads·K).
        weight: (M, K). With several heads it holds one or more block-diagonal matrices below each other. Each
            has a block (K, K) for each head, and only these blocks are stored: (…·heads·K, K).
        bias: (M,); None is 0.
        skip: (M,) factor of `via`, whose product is added; None adds nothing.
        via: (…, M); needed by skip.
        times: (…, M) factor of the result; None is 1.
        activation: None | sigmoid | gelu_tanh.
        gelu: multiply GELU(x).
        checked: false leaves out the checks, for a layer's own weights.

    Returns:
        y (…, M).

    Raises:
        ValueError: a shape, dtype or device does not fit; names it.
    """
    if checked:
        _check(x, weight, bias, skip, via, times, heads)
    code = CODES[activation]
    if not few(x, weight) or wants_gradient(x, weight, bias, skip, via, times):
        return reference(x, weight, bias, skip, via, times, heads, code, gelu)
    rows, wide = x.reshape(-1, x.shape[-1]), weight.shape[0]
    via, times = (z if z is None else z.float().reshape(-1, wide) for z in (via, times))
    y = torch.ops.lrnnx.row_linear(rows, weight, bias, skip, via, times, heads, code, gelu)
    return y.reshape(*x.shape[:-1], wide)


def wide_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """W x + bias for x (…, K) and weight (M, K), with the bias added in float32 or wider."""
    if few(x, weight):
        return row_linear(x, weight, bias, checked=False)
    y = F.linear(x, weight)
    return cast(y, state_dtype(y.dtype)) + bias


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    skip: Tensor | None,
    via: Tensor | None,
    times: Tensor | None,
    heads: int,
) -> None:
    sizes, before = weight.shape, x.shape
    if len(sizes) != 2 or 0 in sizes or heads < 1 or (heads > 1 and sizes[0] % (heads * sizes[1])):
        raise ValueError(f"weight must be (M, K), or (…·{heads}·K, K), with M, K ≥ 1, not {tuple(sizes)}")
    wide, inner = sizes
    if before[-1:] != (heads * inner,) or x.dtype not in FLOAT:
        check("x", x, (*before[:-1], heads * inner), weight)
    check("weight", weight, sizes, x)
    check("bias", bias, (wide,), x)
    check("skip", skip, (wide,), x)
    if via is None and times is None and skip is None:
        return
    after = (*before[:-1], wide)
    check("via", via, after, x)
    check("times", times, after, x)
    if skip is not None and via is None:
        raise ValueError("skip needs via, which it is a factor of")


def few(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernel takes such x and weight, if no gradient is wanted."""
    return (
        x.is_cuda
        and x.dtype == weight.dtype == torch.float32
        and 0 < x.numel() <= MOST * x.shape[-1]
        and weight.shape[1] % 4 == 0
        and (x.shape[-1] == weight.shape[1] or weight.shape[1] % 16 == 0)
        and not torch.is_autocast_enabled("cuda")
        and not torch.compiler.is_compiling()
    )


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    skip: Tensor | None,
    via: Tensor | None,
    times: Tensor | None,
    heads: int,
    activation: int,
    gelu: bool,
) -> Tensor:
    """The definition by torch calls; arguments and result as of `row_linear`."""
    x = F.gelu(x) if gelu else x
    if heads == 1:
        y = F.linear(x, weight, bias)
    else:
        blocks = weight.unflatten(0, (-1, heads, weight.shape[1]))
        y = torch.einsum("...hk,shmk->...shm", x.unflatten(-1, (heads, -1)), blocks).flatten(-3)
        y = y if bias is None else y + bias.to(y.dtype)
    if skip is not None and via is not None:
        y = torch.addcmul(y, cast(skip, y.dtype), cast(via, y.dtype))
    return _after(y, activation, times)


def activated(y: Tensor, activation: str | None, times: Tensor | None) -> Tensor:
    """act(y)∘times, the last part of `row_linear`."""
    return _after(y, CODES[activation], times)


def _after(y: Tensor, activation: int, times: Tensor | None) -> Tensor:
    y = ACTIVATIONS[activation](y)
    return y if times is None else y * cast(times, y.dtype)


_library = torch.library.Library("lrnnx", "FRAGMENT")
_library.define(
    "row_linear(Tensor x, Tensor weight, Tensor? bias, Tensor? skip, Tensor? via, Tensor? times, int heads,"
    " int activation, bool gelu) -> Tensor"
)

_extension.without_kernels(_library, "row_linear", reference, ["cuda"])


@torch.library.register_fake("lrnnx::row_linear", lib=_library)
def _(x, weight, bias, skip, via, times, heads, activation, gelu):
    return x.new_empty((*x.shape[:-1], weight.shape[0]))
