"""The progress of a training on standard error: a bar in a terminal, lines in a log file."""

import sys
import time
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from lrnnx_app.console import terminal

EVERY = 10.0  # seconds between lines
RATES = {  # as the bar calls them
    "samples_per_second": "samples/s",
    "time_steps_per_second": "tokens/s",
    "model_flop_utilization": "MFU",
}
FORMAT = "{desc} |{bar:10}| {n_fmt}/{total_fmt} {elapsed}<{remaining}{postfix}"  # the bar shows at 80 columns


def say(text: str) -> None:
    """A line on standard error."""
    terminal.say(text, aside=True)


def callback(folder: Path) -> Callback:
    """The callback that shows progress: a bar if standard error is a terminal, else lines."""
    return Bar() if sys.stderr.isatty() else Lines(folder)


class Lines(Callback):
    """A line at the start, one after each validation, and one every `EVERY` seconds between them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._said = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        count = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        where = f"{trainer.world_size} × {trainer.strategy.root_device}"
        self._say(f"training {count:,} parameters on {where}, {_limit(trainer)}, in {self.folder}")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if time.monotonic() - self._said > EVERY:
            self._say(f"{_place(trainer)}, {_values(trainer.progress_bar_metrics)}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = {key: float(value) for key, value in trainer.callback_metrics.items() if "/" in key}
        self._say(f"epoch {trainer.current_epoch}, step {trainer.global_step}: {_values(values)}")

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        say(text)


class Bar(TQDMProgressBar):
    """Lightning's bar, on standard error, short enough for 80 columns."""

    def init_train_tqdm(self) -> Tqdm:
        return self._bar(self.train_description)

    def init_validation_tqdm(self) -> Tqdm:
        return self._bar(self.validation_description, position=1, leave=False)

    def init_test_tqdm(self) -> Tqdm:
        return self._bar(self.test_description)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        found = trainer.progress_bar_metrics
        rates = {word: found[name] for name, word in RATES.items() if name in found}
        rates.pop("samples/s" if pl_module.spec.tokens else "tokens/s", None)  # type: ignore[union-attr]  (a task has one)
        names = [key for key in found if key.startswith("train/")] or [key for key in found if "/" in key]
        shown = {name.rpartition("/")[2]: found[name] for name in names[: 3 - max(1, len(rates))]}
        return shown | rates

    def _bar(self, text: str, position: int = 0, leave: bool = True) -> Tqdm:
        return Tqdm(
            desc=text,
            position=position,
            leave=leave,
            disable=self.is_disabled,
            dynamic_ncols=True,
            file=sys.stderr,
            smoothing=0,
            bar_format=FORMAT,
        )


def _values(metrics: Any) -> str:
    return ", ".join(f"{key} {float(value):.4g}" for key, value in sorted(metrics.items()))


def _place(trainer: Trainer) -> str:
    batch = f"batch {trainer.fit_loop.batch_idx + 1} of {trainer.num_training_batches}"
    return f"step {trainer.global_step}, {batch} of epoch {trainer.current_epoch}"


def _limit(trainer: Trainer) -> str:
    """When the training ends."""
    steps = f"step {trainer.max_steps}" if trainer.max_steps > 0 else ""
    epochs = f"{trainer.max_epochs} epochs" if (trainer.max_epochs or -1) > 0 else ""
    batches = f" of {trainer.num_training_batches} batches"
    return f"to {' or '.join(filter(None, (steps, epochs)))}{batches if epochs else ''}"
