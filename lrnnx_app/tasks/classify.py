"""Classification of whole sequences."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrnnx_app.errors import RecipeError
from lrnnx_app.spec import Batch, DataSpec, Example
from lrnnx_app.tasks._base import Meaning, Task

EXAMPLES = 8  # sequences kept for a picture, of those classified right and as many of those wrong


class Classify(Task):
    """Loss: cross-entropy. Metric: accuracy.

    The test also gives the standard error of the accuracy, the accuracy of each class and their mean, the
    calibration error, and the confusion matrix.
    """

    monitor = "valid/loss"  # not the accuracy, which is often equal for two checkpoints on a small set
    mode = "min"
    score = "accuracy"
    targets = ("class",)
    inference = "meaning"
    packs = True

    @dataclass
    class Config(Task.Config):
        label_smoothing: float = 0.0  # share of the target that goes to all classes alike

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0 <= self.label_smoothing <= 1:
                raise RecipeError(f"label_smoothing: expected a share in [0, 1], not {self.label_smoothing}")

    def __init__(self, config: Config, model_config: Any, spec: DataSpec) -> None:
        super().__init__(config, model_config, spec)
        classes = spec.d_output
        self.loss = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
        self.counts, self.bins = torch.zeros(classes, classes), torch.zeros(3, 1)  # of the last test
        self.examples: dict[bool, list[tuple[Example, int, float]]] = {}

    def meters(self) -> None:
        from torchmetrics import MetricCollection
        from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

        from lrnnx_app.tasks._reliability import Reliability

        classes = self.spec.d_output
        accuracy = MetricCollection({"accuracy": MulticlassAccuracy(classes, average="micro")})
        self.train_metrics = accuracy.clone("train/")
        self.valid_metrics = accuracy.clone("valid/")
        self.test_metrics = accuracy.clone("test/")
        self.confusion, self.reliability = MulticlassConfusionMatrix(classes), Reliability()

    def _logits(self, batch: Batch) -> Tensor:
        logits, _ = self.model(batch.x, **batch.rows._asdict())
        return logits.float()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits = self._logits(batch)
        loss = self.loss(logits, batch.y)
        self.train_metrics(logits, batch.y)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch.y))
        self.log_dict(self.train_metrics, prog_bar=True, batch_size=len(batch.y))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits = self._logits(batch)
        self.valid_metrics.update(logits, batch.y)
        self.log("valid/loss", self.loss(logits, batch.y), batch_size=len(batch.y), sync_dist=True)
        self.log_dict(self.valid_metrics, prog_bar=True, batch_size=len(batch.y))

    def on_test_epoch_start(self) -> None:
        self.examples = {True: [], False: []}

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        logits = self._logits(batch)
        for metric in (self.test_metrics, self.confusion, self.reliability):
            metric.update(logits, batch.y)
        self.log("test/loss", self.loss(logits, batch.y), batch_size=len(batch.y), sync_dist=True)
        self.log_dict(self.test_metrics, batch_size=len(batch.y))
        if len(batch.x) == len(batch.y):  # not for packed rows, which have several classes
            self._keep(batch, logits.softmax(-1))

    def on_test_epoch_end(self) -> None:
        """Add up the counts of all processes, and keep them for `figures` and `details`."""
        self.counts, self.bins = self.confusion.compute().cpu(), self.reliability.compute().cpu()
        self.confusion.reset()
        self.reliability.reset()
        rows = self.counts.sum()
        share = self.counts.diagonal().sum() / rows
        seen = self.counts.sum(1) > 0
        self.log_dict(
            {
                "test/accuracy_stderr": torch.sqrt(share * (1 - share) / rows),
                "test/accuracy_of_classes": self._class_accuracy()[seen].mean(),
                "test/calibration_error": calibration_error(self.bins).float(),
            },
            sync_dist=True,  # equal in every process
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes, or their numbers if they have no names."""
        return self.spec.classes or tuple(map(str, range(self.spec.d_output)))

    def meaning(self, output: Tensor) -> Meaning:
        """Probabilities of the classes, the likeliest first."""
        shares = zip(self.names, output.float().softmax(-1).tolist(), strict=True)
        ranked = dict(sorted(shares, key=lambda pair: -pair[1]))
        best = next(iter(ranked))
        return Meaning(ranked, "probability", "classes", f"{best}  {ranked[best]:.4f}")

    def details(self) -> dict[str, Any]:
        shares = zip(self.names, self._class_accuracy().tolist(), self.counts.sum(1).tolist(), strict=True)
        return {"accuracy_by_class": {name: round(share, 5) for name, share, rows in shares if rows}}

    def figures(self) -> Iterator[tuple[str, Any]]:
        from lrnnx_app import plots

        yield "confusion_matrix", plots.confusion_matrix(self.counts.numpy(), self.spec.classes)
        yield "reliability", plots.reliability(self.bins.numpy(), float(calibration_error(self.bins)))
        for right, examples in self.examples.items():
            if examples:
                titles = [self._title(*example) for example in examples]
                picture = plots.examples([e for e, _, _ in examples], titles, self.spec)
                yield f"examples_{'right' if right else 'wrong'}", picture

    def _class_accuracy(self) -> Tensor:
        return self.counts.diagonal() / self.counts.sum(1).clamp_min(1)

    def _keep(self, batch: Batch, probability: Tensor) -> None:
        confidence, guess = probability.max(-1)
        for right, kept in self.examples.items():
            rows = ((guess == batch.y) == right).nonzero()[: EXAMPLES - len(kept), 0].tolist()
            kept += [(example_of(batch, row), int(guess[row]), float(confidence[row])) for row in rows]

    def _title(self, example: Example, guess: int, confidence: float) -> str:
        true, told = self.names[int(example.y)], self.names[guess]
        return f"{told} ({confidence:.0%})" if true == told else f"{told} ({confidence:.0%}), is {true}"


def example_of(batch: Batch, row: int) -> Example:
    """A row of a batch, unpacked, without its padding, on the CPU."""
    end = None if batch.lengths is None else int(batch.lengths[row])
    dt = None if batch.dt is None else batch.dt[row, :end].cpu()
    name = batch.names[row] if batch.names else ""
    return Example(batch.x[row, :end].cpu(), batch.y[row].cpu(), dt, name)


def calibration_error(sums: Tensor) -> Tensor:
    """Expected calibration error: mean |accuracy − confidence| (Guo et al. 2017, arXiv 1706.04599)."""
    rows, confidence, right = sums
    return (right - confidence).abs().sum() / rows.sum().clamp_min(1)
