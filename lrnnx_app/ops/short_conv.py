"""Short causal depthwise convolution along time, channels last, with its inputs as state.

y[t] = bias + Σ_j weight[:, j]∘x[t − W + 1 + j]: the last column of `weight` is for the present sample, as in
`torch.nn.Conv1d`. The state is the last W − 1 inputs, oldest first. Kernels for W ≤ 4 read x once, forward
and backward. For larger W, and without kernels, torch calls do the same.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lrnnx_app.ops import _extension
from lrnnx_app.ops._operands import check, check_steps, principal
from lrnnx_app.ops._transforms import transformed
from lrnnx_app.ops.linear_scan import leaf, recording, state_dtype, wants_gradient
from lrnnx_app.spec import unpadded

WIDEST = 4  # largest W of the kernels in csrc/


def short_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    state: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    silu: bool = False,
) -> tuple[Tensor, Tensor]:
    """Convolve; every argument but `lengths` and `reset` is differentiable.

    Args:
        x: input (B, T, D), T ≥ 1.
        weight: (D, W), W ≥ 1.
        bias: (D,) or None.
        state: the W − 1 inputs before x, (B, W − 1, D); zero if None.
        lengths: (B,) integers. Steps at and beyond a row's length are not read and have output 0. The
            returned state is that after each row's last valid step.
        reset: (B, T) bool; true where a packed sequence starts, whose outputs do not see inputs before it.
        silu: apply SiLU to the output.

    Returns:
        y shaped and typed like x; and the inputs that the next call needs, (B, W − 1, D), float32 or wider.

    Raises:
        ValueError: a shape, dtype or device does not fit; names it.
    """
    batch, _, channels = principal("x", x, "BTD")
    sizes = weight.shape
    if len(sizes) != 2 or sizes[0] != channels or sizes[1] < 1:
        raise ValueError(f"weight must be ({channels}, W) with W ≥ 1, not {tuple(sizes)}")
    check("weight", weight, sizes, x)
    check("bias", bias, (channels,), x)
    check("state", state, (batch, sizes[1] - 1, channels), x)
    check_steps(x, lengths=lengths, reset=reset)
    if sizes[1] > WIDEST or transformed():
        return blocked(x, weight, bias, state, lengths, reset, silu)
    return torch.ops.lrnnx.short_conv(x, weight, bias, state, lengths, reset, silu)


def blocked(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """The convolution from torch calls, one for each tap; arguments and results as in `short_conv`."""
    time, span = x.shape[1], weight.shape[1] - 1
    dtype, x = state_dtype(x.dtype), unpadded(x, lengths)
    before = x.new_zeros(x.shape[0], span, x.shape[2]) if state is None else state
    padded = torch.cat((before.to(dtype), x.to(dtype)), 1)
    document = None if reset is None else documents(reset, span)

    y = torch.zeros_like(x, dtype=dtype) if bias is None else bias.to(dtype)
    for j, tap in enumerate(weight.to(dtype).unbind(1)):
        seen = padded[:, j : j + time]
        if document is not None:
            seen = torch.where((document[:, j : j + time] == document[:, span:])[..., None], seen, 0)
        y = torch.addcmul(y, seen, tap)
    y = unpadded(F.silu(y) if silu else y, lengths)
    return y.to(x.dtype), window_at_end(padded, span, lengths, document)


def documents(reset: Tensor, span: int) -> Tensor:
    """Number of the packed sequence that each step is in, (B, span + T); 0 for the `span` steps before."""
    return F.pad(reset.to(torch.int64).cumsum(1), (span, 0))


def window_at_end(padded: Tensor, span: int, lengths: Tensor | None, document: Tensor | None) -> Tensor:
    """The last `span` entries before each row's end: the state for the next call.

    Args:
        padded: (B, span + T, D): the state before, then the steps.
        lengths: (B,) valid steps of each row, clamped to 0 … T; None is T.
        document: (B, span + T) from `documents`. Entries of another sequence than the last one become zero.
    """
    if lengths is None:
        lengths = padded.new_full((padded.shape[0],), padded.shape[1] - span, dtype=torch.int64)
    else:
        lengths = lengths.long().clamp(0, padded.shape[1] - span)
    index = lengths[:, None] + torch.arange(span, device=padded.device)
    window = padded.gather(1, index[..., None].expand(-1, -1, padded.shape[2]))
    if document is None or span == 0:
        return window
    newest = document.gather(1, lengths[:, None] + (span - 1))
    return torch.where((document.gather(1, index) == newest)[..., None], window, 0)


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    state: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    silu: bool = False,
) -> tuple[Tensor, Tensor]:
    """The definition, one row and one step at a time; arguments and results as in `short_conv`."""
    batch, time, channels = x.shape
    span, outputs, ends = weight.shape[1] - 1, [], []
    for row in range(batch):
        window = x.new_zeros(span, channels) if state is None else state[row]
        outputs_row = []
        for t in range(time if lengths is None else min(int(lengths[row]), time)):
            if reset is not None and reset[row, t]:
                window = torch.zeros_like(window)
            seen = torch.cat((window, x[row, t : t + 1]))
            y = (seen * weight.T).sum(0) + (0 if bias is None else bias)
            outputs_row.append(F.silu(y) if silu else y)
            window = seen[1:]
        padding = [x.new_zeros(channels)] * (time - len(outputs_row))
        outputs.append(torch.stack(outputs_row + padding))
        ends.append(window)
    return torch.stack(outputs), torch.stack(ends)


_library = torch.library.Library("lrnnx", "FRAGMENT")
_library.define(
    "short_conv(Tensor x, Tensor weight, Tensor? bias, Tensor? state, Tensor? lengths, Tensor? reset,"
    " bool silu) -> (Tensor, Tensor)"
)
# Gradients of x, weight, bias (also if bias is None) and state, the last two in float32 or wider.
_library.define(
    "short_conv_backward(Tensor grad, Tensor grad_last, Tensor x, Tensor weight, Tensor? bias, Tensor? state,"
    " Tensor? lengths, Tensor? reset, bool silu) -> (Tensor, Tensor, Tensor, Tensor)"
)


def _adjoint(grad, grad_last, x, weight, bias, state, lengths, reset, silu):
    """Gradients by differentiating `blocked`. If autograd records, they can be differentiated again."""
    dtype, again = state_dtype(x.dtype), wants_gradient(grad, grad_last, x, weight, bias, state)
    bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
    state = x.new_zeros(grad_last.shape, dtype=dtype) if state is None else state
    with recording():
        leaves = x, weight, bias, state = [leaf(z) for z in (x, weight, bias, state)]
        outputs = blocked(x, weight, bias, state, lengths, reset, silu)
        grads = torch.autograd.grad(
            outputs, leaves, (grad.to(x.dtype), grad_last), create_graph=again, materialize_grads=True
        )
    dx, d_weight, d_bias, d_state = (z.contiguous() for z in grads)  # as a kernel gives them
    return dx, d_weight, d_bias.to(dtype), d_state.to(dtype)


_extension.without_kernels(_library, "short_conv", blocked)
_extension.without_kernels(_library, "short_conv_backward", _adjoint)


@torch.library.register_fake("lrnnx::short_conv", lib=_library)
def _(x, weight, bias, state, lengths, reset, silu):
    batch, _, channels = x.shape
    last = x.new_empty((batch, weight.shape[1] - 1, channels), dtype=state_dtype(x.dtype))
    return x.new_empty(x.shape), last


@torch.library.register_fake("lrnnx::short_conv_backward", lib=_library)
def _(grad, grad_last, x, weight, bias, state, lengths, reset, silu):
    d_bias = x.new_empty((x.shape[2],), dtype=state_dtype(x.dtype))
    return x.new_empty(x.shape), weight.new_empty(weight.shape), d_bias, torch.empty_like(grad_last)


def _setup(ctx, inputs, output):
    *tensors, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, *grads):
    x, weight, bias, state, lengths, reset = ctx.saved_tensors
    # If second derivatives may be wanted, the gradients must come from operations that can be differentiated.
    run: Any = _adjoint if torch.is_grad_enabled() else torch.ops.lrnnx.short_conv_backward
    dx, d_weight, d_bias, d_state = run(*grads, x, weight, bias, state, lengths, reset, ctx.silu)
    d_bias = d_bias.to(bias.dtype) if ctx.needs_input_grad[2] else None
    d_state = d_state.to(state.dtype) if ctx.needs_input_grad[3] else None
    return dx, d_weight, d_bias, d_state, None, None, None


torch.library.register_autograd("lrnnx::short_conv", _backward, setup_context=_setup, lib=_library)
