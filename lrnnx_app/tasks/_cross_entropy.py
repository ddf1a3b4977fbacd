"""Cross-entropy of a readout, a part of the rows at a time, so that the logits of all rows never exist."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

AT_ONCE = 2**24  # logits: 64 MiB in float32
AT_ONCE_ON_GPU = 2**27  # 512 MiB; smaller parts leave it idle


def cross_entropy(
    readout: Callable[[Tensor], Tensor],
    features: Tensor,
    targets: Tensor,
    valid: Tensor | None,
    parameters: Sequence[Tensor],
    rows: int,
) -> tuple[Tensor, Tensor]:
    """The sum of −log softmax(readout(features))[target] in nats, and its summands, which have no gradient.

    Gradients are made together with the loss, so that no logits are kept or made again. Those of parameters
    are added up in float32 at least.

    Args:
        readout: makes logits (n, V) of features (n, d), each row by itself.
        features: (N, d).
        targets: (N,), below V.
        valid: (N,) false where a row does not count; None if all do.
        parameters: all that `readout` may use; others among them get no gradient from here.
        rows: how many at a time.

    Returns:
        A scalar, and (N,) with 0 where a row does not count; in float32, or float64 for such logits.
    """
    learned = (features, *parameters) if torch.is_grad_enabled() else (features.detach(),)
    return _Summed.apply(readout, targets, valid, rows, *learned)  # type: ignore[return-value]  (two tensors)


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        readout: Callable[[Tensor], Tensor],
        targets: Tensor,
        valid: Tensor | None,
        rows: int,
        features: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad[4:]
        slopes = torch.empty_like(features) if wanted[0] else None
        sums: list[Tensor | None] = [None] * len(wanted[1:])
        learned = [index for index, want in enumerate(wanted[1:]) if want]
        errors = []
        for start in range(0, len(features), rows):
            part = slice(start, start + rows)
            x = features[part].detach().requires_grad_(wanted[0])
            with torch.set_grad_enabled(any(wanted)):
                logits = readout(x)
            error, slope = _of_rows(logits.detach(), targets[part], None if valid is None else valid[part])
            errors.append(error)
            if not any(wanted):
                continue
            inputs = [t for t, want in zip((x, *parameters), wanted, strict=True) if want]
            with torch.autocast(x.device.type, enabled=False):  # the logits know what it rounded
                found = iter(torch.autograd.grad(logits, inputs, slope, allow_unused=True))
            if slopes is not None:
                slopes[part] = next(found)
            for index in learned:
                sums[index] = _added(sums[index], next(found))
            if not start:  # what this part did not use, the others do not
                learned = [index for index in learned if sums[index] is not None]
                wanted = (wanted[0], *(total is not None for total in sums))
        summed = (s if s is None else s.to(p.dtype) for s, p in zip(sums, parameters, strict=True))
        ctx.save_for_backward(slopes, *summed)
        each = torch.cat(errors)
        ctx.mark_non_differentiable(each)
        return each.sum(), each

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]  (of any gradients)
        return *(None,) * 4, *(g if g is None else g * scale for g in ctx.saved_tensors)


def _of_rows(logits: Tensor, targets: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """The cross-entropy (n,) of each row, and its gradient (n, V) by the logits, in their dtype."""
    slope = logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    error = -slope.gather(1, targets[:, None])[:, 0]
    slope = slope.exp_()
    slope[torch.arange(len(targets), device=targets.device), targets] -= 1
    if valid is not None:
        error, slope = torch.where(valid, error, 0), slope.masked_fill_(~valid[:, None], 0)
    return error, slope.to(logits.dtype)


def _added(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    if total is None or more is None:
        return more if more is None else more.to(torch.promote_types(more.dtype, torch.float32))
    return total.add_(more)
