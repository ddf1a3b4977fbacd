"""Training passes replayed as CUDA graphs, for models whose launches take longer than their kernels."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lrnnx_app.ops.capture import CaptureError, capture_passes
from lrnnx_app.recipe import TrainerConfig
from lrnnx_app.spec import Batch
from lrnnx_app.train.progress import say

NARROW = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class GraphReplay(Callback):
    """Captures the forward and backward pass of one batch as CUDA graphs, and replays them for that shape.

    The first batch without padding, elapsed times or packed sequences is captured; batches of other kinds or
    shapes run without a graph. Nothing is captured on several GPUs, or if gradients of several batches are
    added up, since each replay overwrites them. If a capture fails, one line says so and training goes on.
    """

    def __init__(self, model: nn.Module, settings: TrainerConfig) -> None:
        self.model, self.settings = model, settings
        self.wanted = settings.graph

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        alone = trainer.world_size == 1 and trainer.accumulate_grad_batches == 1
        if not (self.wanted and alone and batch.x.is_cuda and batch.rows.plain):
            return
        self.wanted = False  # one shape is enough
        try:
            replay(self.model, batch.x, NARROW.get(self.settings.precision))
        except CaptureError as error:
            say(f"training without a CUDA graph: {error}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        vars(self.model).pop("forward", None)  # restores the method of the class


class Outputs(nn.Module):
    """A model that returns y without its state.

    Only the forward pass runs under autocast to `dtype`, as it does without a graph. A backward pass under
    autocast would round numbers that the forward pass kept in float32.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.model, self.run, self.dtype = model, model.forward, dtype

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cuda", self.dtype, enabled=self.dtype is not None, cache_enabled=False):
            return self.run(x)[0]


def replay(model: nn.Module, x: Tensor, dtype: torch.dtype | None) -> None:
    """Make `model` replay captured passes for inputs shaped like x; it then returns None for its state.

    Args:
        model: returns (y, state).
        x: the input whose shape counts.
        dtype: of autocast; None for no autocast.

    Raises:
        CaptureError: no graph holds the passes.
    """
    eager, shape = model.forward, x.shape
    graph = capture_passes(Outputs(model, dtype), x)

    def forward(x: Tensor, state: Any = None, **options: Any) -> tuple[Tensor, Any]:
        usual = state is None and all(option is None for option in options.values())
        if usual and model.training and torch.is_grad_enabled() and x.shape == shape:
            return graph(x), None
        return eager(x, state, **options)

    model.forward = forward
