"""Several block-diagonal matrices times the same rows, by one product, as for the gates of the RG-LRU."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lrnnx_app.ops.linear_scan import wants_gradient
from lrnnx_app.ops.row_linear import few, row_linear


class BlockLinear:
    """k products y = x W + bias with matrices that have square blocks on their diagonal.

    A few rows on a GPU, as in streaming, go through `row_linear`; other inputs through one batched matmul.
    Each of the two needs the weights in another layout, which is made at its first use and kept.

    Args:
        weights: k of (heads, width, width), inputs by outputs.
        biases: k of (heads, width).
    """

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
        self.weights, self.biases = tuple(weights), tuple(biases)
        self.heads = self.weights[0].shape[0]
        self._rows: tuple[Tensor, Tensor] | None = None
        self._blocks: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """The k products (B, T, heads·width) of x (B, T, heads·width)."""
        if few(x, self.weights[0]) and not wants_gradient(x, *self.weights, *self.biases):
            self._rows = self._rows or self._as_rows()
            return row_linear(x, *self._rows, heads=self.heads, checked=False).chunk(len(self.weights), -1)
        self._blocks = self._blocks or self._as_blocks()
        weight, bias = self._blocks
        parts = torch.unflatten(x.flatten(0, 1), -1, (self.heads, -1)).transpose(0, 1)
        y = torch.unflatten(torch.baddbmm(bias.unsqueeze(1), parts, weight), -1, (len(self.weights), -1))
        return y.permute(2, 1, 0, 3).reshape(len(self.weights), *x.shape).unbind()

    def _as_rows(self) -> tuple[Tensor, Tensor]:
        """Weights below each other, as `row_linear` takes them: (k·heads·width, width), (k·heads·width,)."""
        return torch.stack(self.weights).mT.flatten(0, 2), torch.stack(self.biases).flatten()

    def _as_blocks(self) -> tuple[Tensor, Tensor]:
        """Weights side by side, for a batched matmul: (heads, width, k·width), (heads, k·width)."""
        return torch.cat(self.weights, -1), torch.cat(self.biases, -1)
