"""Lightning's trainers for a recipe: one that writes a run folder, and one for a single pass over data."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lrnnx_app.errors import RecipeError
from lrnnx_app.ops.capture import HARMLESS
from lrnnx_app.recipe import Recipe
from lrnnx_app.runs.folder import BEST, CHECKPOINTS
from lrnnx_app.tasks._base import Task
from lrnnx_app.train import progress, strategies
from lrnnx_app.train.checkpoints import SealedIO
from lrnnx_app.train.nonfinite import Finite


class Events(TensorBoardLogger):
    """Writes TensorBoard's events, but no file of hyperparameters, since recipe.yaml holds these."""

    def save(self) -> None:
        self.experiment.flush()


class BatchSeed(Callback):
    """Seeds dropout for each batch by (seed, epoch, batch, rank).

    So a resumed run repeats it exactly, although no checkpoint holds the state of a random generator.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        address = [self.seed, trainer.current_epoch, batch_idx, trainer.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(address).generate_state(1, np.uint64)[0]))


def training(recipe: Recipe, task: Task, folder: Path, callbacks: list[Callback]) -> Trainer:
    """The trainer of a run."""
    settings = recipe.trainer
    best = ModelCheckpoint(
        folder / CHECKPOINTS,
        Path(BEST).stem,
        monitor=task.monitor,
        mode=task.mode,
        save_on_train_epoch_end=False,  # after validations only
        enable_version_counter=False,
    )
    with _settings_checked():
        return Trainer(
            max_steps=settings.max_steps,
            max_epochs=settings.max_epochs,
            check_val_every_n_epoch=settings.validate_every,
            log_every_n_steps=settings.log_every,
            precision=settings.precision,  # type: ignore[arg-type]  (Lightning checks the name itself)
            gradient_clip_val=settings.gradient_clip or None,
            accumulate_grad_batches=settings.accumulate,
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.nodes,
            strategy=strategies.build(settings),
            logger=[Events(folder, name="", version=""), CSVLogger(folder, name="", version="")],
            callbacks=[*callbacks, Finite(), best],
            enable_progress_bar=any(isinstance(callback, progress.Bar) for callback in callbacks),
            plugins=[SealedIO()],
            num_sanity_val_steps=0,
            enable_model_summary=False,
            use_distributed_sampler=False,  # that of lrnnx_app.data.module deals addresses to ranks
        )


def passing(recipe: Recipe, callbacks: list[Callback], **options: Any) -> Trainer:
    """A trainer on one device that leaves no run behind."""
    with _settings_checked():
        return Trainer(
            enable_model_summary=False,
            accelerator=recipe.trainer.accelerator,
            devices=1,
            precision=recipe.trainer.precision,  # type: ignore[arg-type]  (as above)
            callbacks=callbacks,
            **options,
        )


@contextmanager
def _settings_checked() -> Iterator[None]:
    """Turns Lightning's complaints about settings into a RecipeError of one line."""
    try:
        yield
    except (MisconfigurationException, ValueError) as error:
        raise RecipeError(f"trainer: {' '.join(str(error).split())}") from error


def quiet() -> None:
    """Silence Lightning's advice about choices that are made on purpose, and harmless warnings of torch."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in HARMLESS:
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", message="GPU available but not used")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*when logging on epoch level.*")  # metrics do
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")  # its sampler is
    warnings.filterwarnings(
        "ignore", message=".*number of training batches.*smaller than the logging interval.*"
    )
