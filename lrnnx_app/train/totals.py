"""Samples, time, speed and memory of a whole training, over all parts of a run that was resumed."""

import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lrnnx_app.machine import peaks
from lrnnx_app.train import flops


class Totals(Callback):
    """Samples, seconds and peak memory from the start of a run on; checkpoints carry them.

    Attributes:
        samples: number of training samples, in all processes.
        time_steps: number of their steps, such as tokens, without padding; all processes count alike.
        training: seconds of training, without validations.
        seconds: all seconds between `start` and `stop`.
        memory: the largest values of `lrnnx_app.machine.peaks`, in MiB.
    """

    def __init__(self, together: int = 1) -> None:
        self.together = together  # processes that share each sample
        self.samples = 0
        self.time_steps: int | Tensor = 0  # on the device where rows have ends, so that nothing waits for it
        self.training = 0.0
        self.seconds = 0.0
        self.memory: dict[str, float] = {}
        self._since = 0.0
        self._batch = 0.0
        self._device = torch.device("cpu")
        self._peak: float | None = None  # FLOP/s of the device
        self._flops = 0.0  # of a time step

    def start(self) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
        self._since = time.perf_counter()

    def stop(self) -> None:
        self._measure()
        self._since = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._device = trainer.strategy.root_device
        # Counted on whole sequences, which one device may have no room for.
        known = flops.peak(self._device, str(trainer.precision)) if self.together == 1 else None
        self._peak = known and known * trainer.world_size

    def state_dict(self) -> dict[str, Any]:
        self._measure()
        return {
            "samples": self.samples,
            "time_steps": int(self.time_steps),
            "training": self.training,
            "seconds": self.seconds,
            "memory": dict(self.memory),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.samples, self.training = state_dict["samples"], state_dict["training"]
        self.time_steps = state_dict.get("time_steps", 0)  # older checkpoints have none
        self.seconds += state_dict["seconds"]
        self.memory = dict(state_dict["memory"])

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._peak and not self._flops:
            self._flops = flops.of_step(pl_module.get_submodule("model"), batch)
        self._batch = self._batch or time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        batches = trainer.world_size // self.together
        self.samples += len(batch.x) * batches
        counts = batch.x.shape[:2].numel() if batch.lengths is None else batch.lengths.sum()
        self.time_steps = self.time_steps + counts * batches
        self.training += now - self._batch
        self._batch = now
        pl_module.log_dict(self.rates(), prog_bar=True, batch_size=len(batch.x))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._batch = 0.0

    def rates(self) -> dict[str, float | Tensor]:
        """Samples and time steps for each second of training; and the share of the peak that the model's own
        operations reach, where the device is known.
        """
        seconds = self.training or 1.0
        steps = self.time_steps / seconds
        found = {"samples_per_second": self.samples / seconds, "time_steps_per_second": steps}
        return found | ({"model_flop_utilization": steps * self._flops / self._peak} if self._peak else {})

    def _measure(self) -> None:
        """Add the time since the last call, and update the peak memory."""
        if self._since:
            now = time.perf_counter()
            self.seconds, self._since = self.seconds + now - self._since, now
            for key, value in peaks(self._device).items():
                self.memory[key] = max(value, self.memory.get(key, 0.0))
