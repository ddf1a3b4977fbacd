"""Training passes replayed as CUDA graphs, for models whose launches take longer than their kernels."""

import warnings
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lrnnx_app.errors import RecipeError
from lrnnx_app.layers._base import Layer
from lrnnx_app.recipe import TrainerConfig
from lrnnx_app.spec import Batch

NARROW = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class Graphed(Callback):
    """Captures forward and backward of the first batch of whole rows, and replays them for all of its shape.

    Others, padded, timed or packed ones, are run as ever; so is everything where a layer cannot be captured,
    where not a single GPU trains, or where gradients of several batches are added up, since a replay writes
    them to the same place.
    """

    def __init__(self, model: nn.Module, settings: TrainerConfig) -> None:
        self.model, self.settings = model, settings
        self.wanted = settings.graph and capturable(model)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        alone = trainer.world_size == 1 and trainer.accumulate_grad_batches == 1
        if not (self.wanted and alone and batch.x.is_cuda and plain(batch)):
            return
        self.wanted = False  # one shape is enough
        dtype = NARROW.get(self.settings.precision)
        with torch.autocast("cuda", dtype, enabled=dtype is not None, cache_enabled=False):
            replay(self.model, batch.x)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        vars(self.model).pop("forward", None)  # the class's again


def capturable(model: nn.Module) -> bool:
    return all(layer.capturable for layer in model.modules() if isinstance(layer, Layer))


def plain(batch: Batch) -> bool:
    return batch.lengths is None and batch.dt is None and batch.reset is None


class Outputs(nn.Module):
    """A model without its states, which training drops."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.run = model, model.forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)[0]


def replay(model: nn.Module, x: Tensor) -> None:
    """Let `model` replay its passes for inputs shaped like x; the states that it returns then are None.

    Raises:
        RecipeError: no graph takes the passes.
    """
    eager, shape = model.forward, x.shape
    with warnings.catch_warnings():
        # of torch's own warm-up, which says so of any module
        warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream does not match")
        warnings.filterwarnings("ignore", message="Attempting to run cuBLAS, but there was no current CUDA")
        try:
            graph: Any = torch.cuda.make_graphed_callables(Outputs(model), (x.clone(),))
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise RecipeError(
                f"trainer.graph: expected false for this model, whose passes no CUDA graph takes ({reason})"
            ) from error

    def forward(x: Tensor, state: Any = None, **options: Any) -> tuple[Tensor, Any]:
        usual = state is None and all(option is None for option in options.values())
        if usual and model.training and torch.is_grad_enabled() and x.shape == shape:
            return graph(x), None
        return eager(x, state, **options)

    model.forward = forward
