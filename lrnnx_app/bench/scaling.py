"""Times training spread over processes: `ddp` and `fsdp` against one device, with synthetic data.

Every row is a job of its own, started by torchrun, in which Lightning trains as `lrnnx train` does: first
with one global batch whatever the number of devices, whose losses must be those of one device; then with the
same batch on each device, which is timed. On a CPU each process has one thread.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer, seed_everything

from lrnnx_app.data.module import DataModule
from lrnnx_app.errors import UserError
from lrnnx_app.recipe import TrainerConfig
from lrnnx_app.registry import LAYERS, MODELS, TASKS
from lrnnx_app.spec import DataSpec, Example
from lrnnx_app.tasks._base import Task
from lrnnx_app.train import processes, strategies
from lrnnx_app.train.learner import learner
from lrnnx_app.train.loaders import Loaders
from lrnnx_app.train.passes import Passes

STRATEGIES = ("ddp", "fsdp")
PRECISIONS = ("32-true", "bf16-mixed")
CURVE = 20  # steps whose losses are compared
WARM = 5  # steps before the clock starts


@dataclass(frozen=True)
class Case:
    """A task on rows of a fixed length; `batch` of each device when timed, of all when compared.

    `pool` is that of a backbone; other models have none. `lr` is one at which training is stable: beyond, it
    blows differences of rounding up within a few steps.
    """

    task: str
    layer: str
    spec: DataSpec
    pool: str
    length: int
    d_model: int
    depth: int
    batch: int
    lr: float = 0.003
    model: str = "backbone"

    def build(self) -> Task:
        sizes: dict[str, Any] = {"d_model": self.d_model, "depth": self.depth}
        sizes |= {"pool": self.pool} if self.pool else {}
        model = MODELS.config(self.model, layer=LAYERS.config(self.layer), **sizes)
        return learner(TASKS.find(self.task))(TASKS.config(self.task, lr=self.lr), model, self.spec)


DIGITS, BYTES = DataSpec(1, 10), DataSpec(256, 256, tokens=True)
CASES = {
    "cuda": {
        "S5 classifier": Case("classify", "s5", DIGITS, "mean", 1024, 256, 6, 64),
        "S6 language model": Case("predict", "s6", BYTES, "none", 1024, 512, 12, 16, 0.0003),
        "S6 of 1.2 B": Case("predict", "s6", BYTES, "", 1024, 2048, 46, 8, 0.0001, "language"),
    },
    "cpu": {
        "S5 classifier": Case("classify", "s5", DIGITS, "mean", 128, 32, 2, 8),
        "S6 language model": Case("predict", "s6", BYTES, "none", 128, 32, 2, 8),
    },
}


class Synthetic(DataModule):
    """Noise in memory, a bit of it dependent on the class or on the byte before."""

    def __init__(self, case: Case, batch: int, rows: int) -> None:
        super().__init__(self.Config(batch_size=batch))
        self.spec, self.rows = case.spec, rows
        rng = np.random.default_rng(0)
        shape = (rows, case.length + 1)
        self.x = torch.from_numpy(rng.integers(0, 64, shape) if case.spec.tokens else rng.normal(size=shape))
        self.y = torch.from_numpy(rng.integers(0, case.spec.d_output, rows))

    def source(self, split: str) -> "Synthetic":
        return self

    def __len__(self) -> int:
        return self.rows

    def example(self, index: int, rng: np.random.Generator) -> Example:
        x, y = self.x[index], self.y[index]
        if self.spec.tokens:
            return Example(x[:-1], x[1:])
        return Example((x[:-1, None] + 0.1 * y).float(), y)


class StepRecorder(Callback):
    """The losses, and the seconds of the steps after the first `warm` ones."""

    def __init__(self, warm: int) -> None:
        self.warm = warm
        self.losses: list[torch.Tensor] = []
        self.seconds = self._start = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(outputs["loss"].detach())
        if batch_idx in (self.warm - 1, trainer.max_steps - 1):
            if trainer.strategy.root_device.type == "cuda":
                torch.cuda.synchronize()
            self.seconds, self._start = time.perf_counter() - self._start, time.perf_counter()


def rows(
    device: str,
    devices: Sequence[int],
    steps: int,
    names: Sequence[str] = (),
    precision: str = "32-true",
    word: str = "",
) -> Iterator[dict[str, Any]]:
    """One dictionary for each case, strategy and number of devices.

    Args:
        device: "cpu" or "cuda".
        devices: how many; one, which the others are compared with, comes first in any case.
        steps: to time.
        names: of the strategies; both if there is none.
        precision: of the training, as in a recipe.
        word: in the names of the cases.
    """
    for case in chosen(CASES[device], word):
        alone = measure(case, device, 1, "auto", steps, precision)
        yield _row(case, "auto", alone, alone)
        for strategy in names or STRATEGIES:
            for count in devices:
                if count > 1:
                    found = measure(case, device, count, strategy, steps, precision)
                    yield _row(case, strategy, found, alone)


def _row(case: str, strategy: str, found: dict[str, Any], alone: dict[str, Any]) -> dict[str, Any]:
    curves = zip(found["losses"], alone["losses"], strict=True)
    return {
        "case": case,
        "strategy": strategy,
        "devices": found["devices"],
        "samples/s": found["samples/s"],
        "ratio": found["samples/s"] / alone["samples/s"],
        "peak MiB / device": found["peak MiB"],
        "loss": found["losses"][-1],
        "largest difference": max(abs(ours - theirs) for ours, theirs in curves),
    }


def measure(
    case: str, device: str, devices: int, strategy: str, steps: int, precision: str = "32-true"
) -> dict[str, Any]:
    """What a job of so many processes found.

    Raises:
        UserError: the batch cannot be divided among so many.
        RuntimeError: the job failed; says what it said.
    """
    if CASES[device][case].batch % devices:
        raise UserError(f"--devices: expected divisors of the batch, {CASES[device][case].batch}")
    found = launched(__name__, devices, case, device, devices, strategy, steps, precision)
    if "failed" in found:
        raise RuntimeError(f"{case}, {strategy} on {devices}:\n{found['failed']}")
    return found


def chosen(cases: dict[str, Case], word: str) -> list[str]:
    """The names of the cases that hold a word.

    Raises:
        UserError: none does.
    """
    found = [name for name in cases if word.lower() in name.lower()]
    if not found:
        raise UserError(f"--case: expected a word of {', '.join(cases)}; not '{word}'")
    return found


def launched(module: str, devices: int, *words: Any, limit: float | None = None) -> dict[str, Any]:
    """What `main` of a module found in so many processes; or why it failed, as "failed".

    Args:
        words: of the job.
        limit: seconds until it is ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}"]
        command = [sys.executable, *launch, "-m", module, *map(str, words), str(out)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            _, said = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun ends its processes
            process.communicate()
            said = f"over {limit:g} s"
        return json.loads(out.read_text()) if out.is_file() else {"failed": said or "killed"}


def main(job: Callable[..., dict[str, Any]]) -> None:
    """In each process: run a job with the words of the command, and write what the first one found."""
    *words, out = sys.argv[1:]
    try:
        found = job(*words)
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        Path(out).write_text(json.dumps({"failed": "out of memory"}))
        os._exit(1)  # others wait for this process: torchrun ends them
    if processes.rank() == 0:
        Path(out).write_text(json.dumps(found))


def job(name: str, device: str, devices: str, strategy: str, steps: str, precision: str) -> dict[str, Any]:
    """Run in each process: the losses at one global batch, then the speed at one batch of each device."""
    case, count = CASES[device][name], int(devices)
    settings = TrainerConfig(accelerator=device, devices=count, strategy=strategy, precision=precision)
    curve, _, trainer = fit(case, settings, case.batch // count, CURVE)
    losses = [float(trainer.strategy.reduce(loss, reduce_op="mean")) for loss in curve.losses]
    timed, peak, _ = fit(case, settings, case.batch, WARM + int(steps))
    speed = int(steps) * case.batch * count / timed.seconds
    return {"devices": count, "losses": losses, "samples/s": speed, "peak MiB": peak}


def fit(
    case: Case,
    settings: TrainerConfig,
    batch: int,
    steps: int,
    warm: int = WARM,
    callbacks: Sequence[Callback] = (),
) -> tuple[StepRecorder, float, Trainer]:
    """Train; the largest memory of this process's device, or of the process on a CPU, in MiB."""
    if settings.accelerator == "cpu":
        torch.set_num_threads(1)
    seed_everything(0, verbose=False)
    task, recorder = case.build(), StepRecorder(warm)
    together = settings.sequence_parallel
    data = Synthetic(case, batch, batch * settings.devices // together * steps)
    trainer = Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        strategy=strategies.build(settings),
        precision=settings.precision,  # type: ignore[arg-type]  (one of PRECISIONS)
        max_steps=steps,
        max_epochs=1,
        limit_val_batches=0,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[Passes(task.model, settings), *callbacks, recorder],
    )
    if torch.cuda.is_initialized():  # else the first device would be, which may be another process's
        torch.cuda.reset_peak_memory_stats()
    trainer.fit(task, Loaders(data, together))
    if settings.accelerator == "cuda":
        return recorder, torch.cuda.max_memory_allocated() / 2**20, trainer
    return recorder, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, trainer


if __name__ == "__main__":
    main(job)
