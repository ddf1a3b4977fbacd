"""A live stream through a model."""

from typing import Any

import torch
from torch import Tensor

from lrnnx_app.errors import StreamError
from lrnnx_app.models._base import Model


class StreamingSession:
    """Feeds a model in evaluation mode chunk by chunk and carries its state.

    Args:
        model: any causal model.
        batch: streams side by side.
        chunk: samples a push takes at the most; a multiple of the model's hop.

    Raises:
        StreamError: the chunk does not fit the model's hop.
    """

    def __init__(self, model: Model, batch: int = 1, chunk: int | None = None) -> None:
        self.model = model.eval()
        self.chunk = model.hop if chunk is None else chunk
        if self.chunk < 1 or self.chunk % model.hop:
            raise StreamError(f"chunk of {self.chunk} samples: expected a multiple of hop {model.hop}")
        self.state: Any = model.init_state(batch)
        self._ended = False

    @torch.inference_mode()
    def warm_up(self, x: Tensor) -> None:
        """Run x once and forget it, so that the first push pays for no build and no first allocation."""
        self.model(x, self.state)

    @torch.inference_mode()
    def push(self, x: Tensor, dt: Tensor | None = None) -> Tensor:
        """The outputs that belong to x (B, T, d_input), T ≤ chunk; a T off the hop ends the stream.

        Raises:
            StreamError: x is too long, or follows the last push.
        """
        if self._ended:
            raise StreamError("the stream ended with a part of a hop; start a new session")
        if not 1 <= x.shape[1] <= self.chunk:
            raise StreamError(f"a push of {x.shape[1]} samples: expected 1 to {self.chunk}")
        self._ended = x.shape[1] % self.model.hop != 0
        y, self.state = self.model(x, self.state, dt=dt)
        return y
