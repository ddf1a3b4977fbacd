"""Classification whose loss is weighed."""

from dataclasses import dataclass

from torch import Tensor

from lrnnx_app.spec import Batch
from lrnnx_app.tasks.classify import Classify


class Weighed(Classify):
    """lrnnx's classification with a loss of another size."""

    @dataclass
    class Config(Classify.Config):
        weight: float = 2.0  # of the loss

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.config.weight * super().training_step(batch, batch_idx)
