"""Calibration of a classifier: how well its confidence fits its accuracy."""

import torch
from torch import Tensor
from torchmetrics import Metric

BINS = 15


class Reliability(Metric):
    """(3, BINS): number of rows, sum of confidence and number right, by confidence, over all processes."""

    full_state_update = False
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(3, BINS, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor) -> None:
        confidence, guess = logits.softmax(-1).max(-1)
        rows = torch.stack((torch.ones_like(confidence), confidence, (guess == target).to(confidence.dtype)))
        bins = (confidence * BINS).long().clamp_max(BINS - 1)
        self.sums.index_add_(1, bins, rows.to(self.sums.dtype))

    def compute(self) -> Tensor:
        return self.sums.clone()
