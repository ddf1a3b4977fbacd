"""Short causal depthwise convolution along time, channels last, with its inputs as state.

y[t] = bias + Σ_j weight[:, j]∘x[t − W + 1 + j]: the last column of `weight` meets the present sample, as
in `torch.nn.Conv1d`. The state is the last W − 1 inputs (never outputs), oldest first.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from lrnnx_app.ops.linear_scan import state_dtype


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
        lengths: (B,) integers; the state is the one after each row's last valid step.
        reset: (B, T) bool; true where a packed sequence starts: no input before it is seen from there.
        silu: apply SiLU to the output.

    Returns:
        y shaped and typed like x; and the inputs that the next call needs, (B, W − 1, D), float32 or wider.

    Raises:
        ValueError: the shapes do not fit; names them.
    """
    _check(x, weight, state, lengths, reset)
    time, span = x.shape[1], weight.shape[1] - 1
    dtype = state_dtype(x.dtype)
    before = x.new_zeros(x.shape[0], span, x.shape[2]) if state is None else state
    padded = torch.cat((before.to(dtype), x.to(dtype)), 1)
    document = None if reset is None else documents(reset, span)

    y = torch.zeros_like(x, dtype=dtype) if bias is None else bias.to(dtype)
    for j, tap in enumerate(weight.to(dtype).unbind(1)):
        seen = padded[:, j : j + time]
        if document is not None:
            seen = torch.where((document[:, j : j + time] == document[:, span:])[..., None], seen, 0)
        y = torch.addcmul(y, seen, tap)
    y = F.silu(y) if silu else y

    return y.to(x.dtype), window_at_end(padded, span, lengths, document)


def documents(reset: Tensor, span: int) -> Tensor:
    """Number of the packed sequence that each step is in, (B, span + T); 0 for the `span` steps before."""
    return F.pad(reset.to(torch.int64).cumsum(1), (span, 0))


def window_at_end(padded: Tensor, span: int, lengths: Tensor | None, document: Tensor | None) -> Tensor:
    """The last `span` entries up to each row's end, as a state to hand on.

    Args:
        padded: (B, span + T, D): the state before, then the steps.
        lengths: (B,) valid steps of each row; None is T.
        document: (B, span + T) from `documents`; entries of another one than the end's become zero.
    """
    if lengths is None:
        lengths = padded.new_full((padded.shape[0],), padded.shape[1] - span, dtype=torch.int64)
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
    batch, time, _ = x.shape
    span, outputs, ends = weight.shape[1] - 1, [], []
    for row in range(batch):
        window = x.new_zeros(span, x.shape[2]) if state is None else state[row]
        end, outputs_row = window, []
        for t in range(time):
            if reset is not None and reset[row, t]:
                window = torch.zeros_like(window)
            seen = torch.cat((window, x[row, t : t + 1]))
            y = (seen * weight.T).sum(0) + (0 if bias is None else bias)
            outputs_row.append(F.silu(y) if silu else y)
            window = seen[1:]
            end = window if lengths is None or t < lengths[row] else end
        outputs.append(torch.stack(outputs_row))
        ends.append(end)
    return torch.stack(outputs), torch.stack(ends)


def _check(
    x: Tensor, weight: Tensor, state: Tensor | None, lengths: Tensor | None, reset: Tensor | None
) -> None:
    if x.ndim != 3 or x.shape[1] < 1:
        raise ValueError(f"x must be (B, T, D) with T ≥ 1, not {tuple(x.shape)}")
    batch, time, channels = x.shape
    if weight.ndim != 2 or weight.shape[0] != channels or weight.shape[1] < 1:
        raise ValueError(f"weight must be ({channels}, W) with W ≥ 1, not {tuple(weight.shape)}")
    expected = (batch, weight.shape[1] - 1, channels)
    if state is not None and state.shape != expected:
        raise ValueError(f"state must be {expected}, not {tuple(state.shape)}")
    if lengths is not None and lengths.shape != (batch,):
        raise ValueError(f"lengths must be {(batch,)}, not {tuple(lengths.shape)}")
    if reset is not None and reset.shape != (batch, time):
        raise ValueError(f"reset must be {(batch, time)}, not {tuple(reset.shape)}")
