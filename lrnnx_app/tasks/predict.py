"""Prediction of the next step: a byte, judged in bits, or a signal's sample, judged by squared error."""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrnnx_app.spec import Batch, DataSpec
from lrnnx_app.tasks._base import Task
from lrnnx_app.tasks._cross_entropy import AT_ONCE, AT_ONCE_ON_GPU, cross_entropy

EXAMPLES = 3  # test rows kept for pictures
SHOWN = 400  # steps of a row that are drawn


class Predict(Task):
    """Loss: bits per token (per byte, for text), or the mean squared error of a signal's next sample.

    Metrics: the loss over all steps; for tokens of several bytes also bits per byte, which compare across
    tokenizers; for signals also the loss of predicting that nothing changes. The test also gives the standard
    error over rows.
    """

    monitor = "valid/loss"
    mode = "min"
    targets = ("step",)
    inference = "errors"
    packs = True

    @dataclass
    class Config(Task.Config):
        pass

    def __init__(self, config: Config, model_config: Any, spec: DataSpec) -> None:
        super().__init__(config, model_config, spec)
        self.unit = ("bits_per_byte" if spec.d_output == 256 else "bits_per_token") if spec.tokens else "mse"
        self.examples: list[tuple[str, Tensor, Tensor, Tensor]] = []

    @classmethod
    def headline(cls, metrics: Collection[str]) -> str:
        of_tokens = {"bits_per_token", "bits_per_byte"} <= set(metrics)
        return "bits_per_byte" if of_tokens else super().headline(metrics)  # which other tokens have too

    def meters(self) -> None:
        from torchmetrics import CatMetric

        self.errors, self.steps, self.bytes, self.unchanged = (CatMetric() for _ in range(4))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        total, _, _ = self.errors_of(batch)
        loss = total / batch.rows.counts(batch.x).sum().clamp_min(1)  # a part of time may hold none
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch.x))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._score(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        errors, output = self._score(batch)
        for row in range(min(EXAMPLES - len(self.examples), len(batch.x))):
            end = None if batch.lengths is None else int(batch.lengths[row])
            part = slice(0, min(SHOWN, end or SHOWN))
            name = batch.names[row] if batch.names else str(row)
            shown = (batch.y, errors, errors if output is None else output)
            y, error, guess = (t[row, part].float().cpu() for t in shown)
            self.examples.append((name, y, error, guess))

    def on_test_epoch_start(self) -> None:
        self.examples = []

    def on_validation_epoch_end(self) -> None:
        self._log_scores("valid")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def figures(self) -> Iterator[tuple[str, Any]]:
        from lrnnx_app import plots

        for index, (name, y, errors, output) in enumerate(self.examples):
            title = f"prediction_{index}_{name}"
            if self.spec.tokens:
                yield title, plots.surprise(y.long(), errors)
            else:
                yield title, plots.prediction(y, output)

    def errors_of(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """The sum of the errors; bits or squared error of each step (B, T), zero in padding; and the output.

        The sum alone has gradients. For tokens no output is made as a whole, if the model splits.
        """
        if self.spec.tokens and self.model.splits:
            return *self._bits(batch), None
        output, _ = self.model(batch.x, **batch.rows._asdict())
        errors = self.errors_from(output, batch)
        return errors.sum(), errors.detach(), output.detach().float()

    def _bits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The sum of the bits of a batch of tokens, and those of each step (B, T)."""
        features, _ = self.model(batch.x, **batch.rows._asdict(), read=False)
        valid = batch.rows.valid(batch.x)
        at_once = AT_ONCE if features.device.type == "cpu" else AT_ONCE_ON_GPU
        total, nats = cross_entropy(
            self.model.readout,
            batch.rows.unpadded(features).flatten(0, 1),
            batch.y.flatten(),
            None if valid is None else valid.flatten(),
            tuple(self.model.parameters()),
            max(1, at_once // self.spec.d_output),
        )
        return total / math.log(2), nats.unflatten(0, batch.x.shape) / math.log(2)

    def errors_from(self, output: Tensor, batch: Batch) -> Tensor:
        """The errors of a model's output (B, T, d_output) for the batch: (B, T), zero in padding."""
        output = output.float()
        if self.spec.tokens:
            errors = nn.functional.cross_entropy(output.mT, batch.y, reduction="none") / math.log(2)
        else:
            errors = (output - batch.y).square().mean(-1)
        return batch.rows.unpadded(errors)

    def _score(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        _, errors, output = self.errors_of(batch)
        self.errors.update(errors.sum(1))
        self.steps.update(batch.rows.counts(batch.x).float())
        if batch.bytes is not None:
            self.bytes.update(batch.bytes.float())
        if not self.spec.tokens:
            self.unchanged.update(batch.rows.unpadded((batch.x - batch.y).square().mean(-1)).sum(1))
        return errors, output

    def _log_scores(self, split: str) -> None:
        sums, steps = (torch.as_tensor(m.compute()).reshape(-1) for m in (self.errors, self.steps))
        loss = sums.sum() / steps.sum()
        values = {"loss": loss, self.unit: loss}
        if self.bytes.update_called:
            values["bits_per_byte"] = sums.sum() / torch.as_tensor(self.bytes.compute()).sum()
        if not self.spec.tokens:
            values["mse_of_no_change"] = torch.as_tensor(self.unchanged.compute()).sum() / steps.sum()
        if split == "test" and len(sums) > 1:  # standard error of a ratio of sums over rows
            residual = (sums - loss * steps).square().sum().sqrt() / steps.sum()
            values["loss_stderr"] = residual
        for key, value in values.items():
            self.log(f"{split}/{key}", value, prog_bar=key == "loss")
        for metric in (self.errors, self.steps, self.bytes, self.unchanged):
            metric.reset()
