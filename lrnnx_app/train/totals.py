"""Samples, time and memory of a whole training, over all parts of a run that was resumed."""

import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from lrnnx_app.machine import peaks


class Totals(Callback):
    """Samples, seconds and peak memory from the start of a run on; checkpoints carry them.

    Attributes:
        samples: number of training samples, in all processes.
        training: seconds of training, without validations.
        seconds: all seconds between `start` and `stop`.
        memory: the largest values of `lrnnx_app.machine.peaks`, in MiB.
    """

    def __init__(self) -> None:
        self.samples = 0
        self.training = 0.0
        self.seconds = 0.0
        self.memory: dict[str, float] = {}
        self._since = 0.0
        self._batch = 0.0
        self._device = torch.device("cpu")

    def start(self) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
        self._since = time.perf_counter()

    def stop(self) -> None:
        self._measure()
        self._since = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._device = trainer.strategy.root_device

    def state_dict(self) -> dict[str, Any]:
        self._measure()
        return {
            "samples": self.samples,
            "training": self.training,
            "seconds": self.seconds,
            "memory": dict(self.memory),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.samples, self.training = state_dict["samples"], state_dict["training"]
        self.seconds += state_dict["seconds"]
        self.memory = dict(state_dict["memory"])

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batch = self._batch or time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        self.samples += len(batch.x) * trainer.world_size
        self.training += now - self._batch
        self._batch = now
        pl_module.log("samples_per_second", self.rate, prog_bar=True, batch_size=len(batch.x))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._batch = 0.0

    @property
    def rate(self) -> float:
        """Samples per second of training."""
        return self.samples / self.training if self.training else 0.0

    def _measure(self) -> None:
        """Add the time since the last call, and update the peak memory."""
        if self._since:
            now = time.perf_counter()
            self.seconds, self._since = self.seconds + now - self._since, now
            for key, value in peaks(self._device).items():
                self.memory[key] = max(value, self.memory.get(key, 0.0))
