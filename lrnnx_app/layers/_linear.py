"""Dense layers and short convolutions, as modules that may be wrapped, hooked or replaced.

What reads the weights of a module must not pass by an adapter, a hook or a quantized replacement. These
functions do so for `plain` modules alone, for which kernels take more than one operation at once.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from lrnnx_app.ops._blocked import cast
from lrnnx_app.ops.linear_scan import state_dtype
from lrnnx_app.ops.row_linear import activated, row_linear, wide_linear
from lrnnx_app.ops.short_conv import documents, short_conv, window_at_end
from lrnnx_app.spec import EVEN, Rows


class Linear(nn.Linear):
    """`torch.nn.Linear`, a single launch for the few rows of a stream on a GPU."""

    def forward(self, input: Tensor) -> Tensor:
        return row_linear(input, self.weight, self.bias, checked=False)


def hooked(module: nn.Module) -> bool:
    """Whether a call of the module does more than its `forward`, or `forward` is not that of its class."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or _has_any_global_hook()
    )


def plain(module: nn.Module) -> bool:
    """Whether a call of the module does only what its class does, so that its weights may be read instead."""
    return type(module) in (Linear, nn.Linear, nn.Conv1d) and not hooked(module)


def linear(
    module: Any,
    x: Tensor,
    *,
    activation: str | None = None,
    times: Tensor | None = None,
    gelu: bool = False,
) -> Tensor:
    """act(module(x))∘times, or of GELU(x); options as of `row_linear`."""
    if plain(module):
        weight, bias = module.weight, module.bias
        return row_linear(x, weight, bias, activation=activation, times=times, gelu=gelu, checked=False)
    return activated(module(F.gelu(x) if gelu else x), activation, times)


def without_bias(module: Any, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The product of x and the weights of a dense module; and its bias, if that is still to be added."""
    return (F.linear(x, module.weight), module.bias) if plain(module) else (module(x), None)


def biased(module: Any, x: Tensor, bias: Tensor) -> Tensor:
    """module(x) + bias in the precision of a state, by one launch for the few rows of a stream."""
    if plain(module) and module.bias is None:
        return wide_linear(x, module.weight, bias)
    y = module(x)
    return cast(y, state_dtype(y.dtype)) + bias


def convolve(
    module: Any,
    x: Tensor,
    state: Tensor,
    rows: Rows = EVEN,
    *,
    silu: bool = False,
) -> tuple[Tensor, Tensor]:
    """`short_conv` by a depthwise `nn.Conv1d`, or by what has taken its place.

    That is given (B, D, T + W − 1) and must return (B, D, T), whatever T is.
    """
    if plain(module):
        kernel = module.weight.squeeze(1)
        return short_conv(x, kernel, module.bias, state, lengths=rows.lengths, reset=rows.reset, silu=silu)
    span, x = state.shape[1], rows.unpadded(x)
    padded = torch.cat((state, x.to(state_dtype(x.dtype))), 1)
    document = None if rows.reset is None else documents(rows.reset, span)
    given = padded.to(x.dtype).mT
    if document is None:
        y = module(given).mT
    else:  # each step's window by itself, without what it must not see
        windows = given.unfold(2, span + 1, 1).permute(0, 2, 1, 3)
        seen = document.unfold(1, span + 1, 1) == document[:, span:, None]
        windows = torch.where(seen[:, :, None], windows, 0)
        y = module(windows.flatten(0, 1)).squeeze(-1).unflatten(0, x.shape[:2])
    y = F.silu(y) if silu else y
    return rows.unpadded(y), window_at_end(padded, span, rows.lengths, document)
