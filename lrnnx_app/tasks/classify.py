"""Classification of whole sequences."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from lrnnx_app.data import Batch, DataSpec
from lrnnx_app.tasks._base import Task


class Classify(Task):
    """Cross-entropy; accuracy, and a confusion matrix at the test."""

    monitor = "valid/loss"  # the accuracy of a small validation set ties early
    mode = "min"

    @dataclass
    class Config(Task.Config):
        label_smoothing: float = 0.0

    def __init__(self, config: Config, model_config: Any, spec: DataSpec) -> None:
        super().__init__(config, model_config, spec)
        classes = spec.d_output
        self.loss = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
        accuracy = MetricCollection({"accuracy": MulticlassAccuracy(classes, average="micro")})
        self.train_metrics = accuracy.clone("train/")
        self.valid_metrics = accuracy.clone("valid/")
        self.test_metrics = accuracy.clone("test/")
        self.confusion = MulticlassConfusionMatrix(classes)

    def _logits(self, batch: Batch) -> Tensor:
        logits, _ = self.model(batch.x, dt=batch.dt, lengths=batch.lengths)
        return logits.float()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits = self._logits(batch)
        loss = self.loss(logits, batch.y)
        self.train_metrics(logits, batch.y)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch.x))
        self.log_dict(self.train_metrics, prog_bar=True, batch_size=len(batch.x))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits = self._logits(batch)
        self.valid_metrics.update(logits, batch.y)
        self.log("valid/loss", self.loss(logits, batch.y), batch_size=len(batch.x))
        self.log_dict(self.valid_metrics, prog_bar=True, batch_size=len(batch.x))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        logits = self._logits(batch)
        self.test_metrics.update(logits, batch.y)
        self.confusion.update(logits, batch.y)
        self.log("test/loss", self.loss(logits, batch.y), batch_size=len(batch.x))
        self.log_dict(self.test_metrics, batch_size=len(batch.x))

    def on_test_epoch_start(self) -> None:
        self.confusion.reset()

    def figures(self) -> Iterator[tuple[str, Any]]:
        from lrnnx_app.plots import confusion_matrix

        yield "confusion_matrix", confusion_matrix(self.confusion.compute().cpu().numpy(), self.spec.classes)
