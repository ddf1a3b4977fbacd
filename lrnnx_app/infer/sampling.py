"""How the next token of a text is drawn from a model's logits."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lrnnx_app.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How to continue.

    Attributes:
        length: most tokens to add.
        temperature: divides the logits; with 0 the likeliest token is always taken.
        top_k: draw from so many of the likeliest tokens; 0 for all.
        top_p: of these, draw from the fewest that have this probability together (Holtzman et al. 2020, arXiv
            1904.09751); 1 for all.
        stop: texts before which a continuation ends.
    """

    length: int = 400
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[bytes, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.length < 1 or not 0 <= self.temperature < math.inf or self.top_k < 0:
            raise UserError(
                "--length, --temperature, --top-k: expected finite numbers of at least 1, 0 and 0"
            )
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top-p: expected a share above 0 and up to 1, not {self.top_p}")
        if b"" in self.stop:
            raise UserError("--stop: expected a text")


class Sampler:
    """Draws tokens for several texts. Each has random numbers of its own, whatever the others draw."""

    def __init__(self, how: Sampling, batch: int) -> None:
        self.how = how
        self._random = [torch.Generator().manual_seed(how.seed + row) for row in range(batch)]

    def draw(self, logits: Tensor) -> Tensor:
        """Tokens (B,) from logits (B, tokens)."""
        if self.how.temperature == 0:
            return logits.argmax(-1)
        ends = shares(logits, self.how).cumsum(-1)
        at = torch.cat([torch.rand(1, generator=random, dtype=torch.float64) for random in self._random])
        return (ends <= at.to(ends.device)[:, None] * ends[:, -1:]).sum(-1)


def shares(logits: Tensor, how: Sampling) -> Tensor:
    """The probabilities (B, tokens) from which tokens are drawn, float64, up to a factor for each row."""
    logits = logits.double() / how.temperature
    if 0 < how.top_k < logits.shape[-1]:
        least = logits.topk(how.top_k).values[:, -1:]
        logits = logits.where(logits >= least, -torch.inf)
    found = logits.softmax(-1)
    if how.top_p < 1:
        ordered, order = found.sort(-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= how.top_p  # those before have enough
        found = found.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), 0)
    return found
