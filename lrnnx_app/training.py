"""`train`, `evaluate` and `dry_run`: what the commands do, without printing."""

import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from omegaconf import DictConfig, OmegaConf
from torch.distributed.checkpoint.state_dict import set_model_state_dict

from lrnnx_app import __version__, folders, outputs, processes, progress, report, strategies, workers
from lrnnx_app import resume as resumption
from lrnnx_app.checkpoints import Checkpoints, SealedIO
from lrnnx_app.data import SPLITS
from lrnnx_app.errors import Interrupted, RecipeError, RunError
from lrnnx_app.graphed import Graphed
from lrnnx_app.interrupts import Interrupts
from lrnnx_app.progress import say
from lrnnx_app.recipe import Recipe, typed
from lrnnx_app.run import RECIPE, Run, build_data, build_task, load_weights, read_checkpoint
from lrnnx_app.strategies import WHOLE
from lrnnx_app.tasks._base import Task
from lrnnx_app.totals import Totals
from lrnnx_app.trouble import Finite, Trouble

FOLDER = "LRNNX_RUN"  # environment variable: the run folder, for the other processes of a job
RECORDED = ("torch", "torchaudio", "lightning", "torchmetrics")


class Events(TensorBoardLogger):
    """TensorBoard's events, without the file of hyperparameters, which recipe.yaml holds."""

    def save(self) -> None:
        self.experiment.flush()


class Addressed(Callback):
    """Dropout of a batch is seeded by (seed, epoch, batch, rank): no generator's state needs keeping."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        address = [self.seed, trainer.current_epoch, batch_idx, trainer.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(address).generate_state(1, np.uint64)[0]))


def train(
    config: DictConfig, out: Path | None = None, resume: Path | None = None
) -> tuple[Path, dict[str, Any]]:
    """Train a resolved recipe, test its best checkpoint, and write the run folder.

    Args:
        config: from `recipe.load`, or from `resume.settings` for a run that is resumed.
        out: the run folder to make; by default runs/<recipe>/<time>.
        resume: a run folder to continue in place from its newest good checkpoint, or from the start if it was
            ended before its first one.

    Returns:
        The run folder and its summary.

    Raises:
        RecipeError: Lightning does not take the settings of `trainer`, or a setting differs from that of
            `resume` and cannot count any more.
        RunError: `out` holds files already, another process trains there, none of the checkpoints of `resume`
            is good, or one cannot be written.
        DataError: the data are not as expected, or a process that prepares them was killed.
        TrainingError: too many steps in a row without finite numbers, or outputs without any.
        Interrupted: a signal asked to stop; a checkpoint is written.
    """
    with outputs.lasting(), ExitStack() as stack:
        return _train(config, out, resume, stack)


def _train(
    config: DictConfig, out: Path | None, resume: Path | None, stack: ExitStack
) -> tuple[Path, dict[str, Any]]:
    recipe = typed(config)
    leads = processes.rank() == 0
    checkpoint, content = None, {}
    if resume is not None:
        run = Run(resume)
        if leads:
            stack.enter_context(folders.locked(resume))
        checkpoint, content = resumption.start(run, config, say)
    elif out is not None and leads:
        folders.refuse_full(out)

    _quiet()
    seed_everything(recipe.seed, workers=True, verbose=False)
    data = build_data(recipe)
    task = build_task(recipe, data.spec)
    for split in SPLITS:  # what is wrong with the data is said before anything is written
        data.source(split)
    if checkpoint is not None:
        load_weights(task, content["state_dict"], checkpoint)
        data.position = content["position"]

    folder = resume or (_new_folder(recipe.name, out, stack) if leads else _leaders_folder(out))
    totals, interrupts = Totals(), Interrupts()
    saver = Checkpoints(
        folder / "checkpoints", recipe.trainer.checkpoint_every, recipe.trainer.keep, interrupts
    )
    trouble = Trouble(folder, recipe.trainer.max_skipped, interrupts)
    companions = processes.Companions(folder)
    callbacks = [
        LambdaCallback(setup=companions.watch),
        Graphed(task.model, recipe.trainer),
        Addressed(recipe.seed),
        trouble,
        saver,
        totals,
        progress.callback(folder),
    ]
    trainer = _trainer(recipe, task, folder, callbacks)
    if leads:
        report.write_whole(folder / RECIPE, OmegaConf.to_yaml(config))
        report.carry_metrics(folder, content.get("global_step", 0))
        Checkpoints.clear(folder / "checkpoints")
    with workers.told(folder), companions:
        with interrupts:
            totals.start()
            trainer.fit(task, data, ckpt_path=checkpoint, weights_only=True)
            totals.stop()
            saver.finish(trainer, checkpoint)
            if trainer.strategy.reduce_boolean_decision(interrupts.asked, all=False):
                raise Interrupted(folder, trainer.global_step)
        best = read_checkpoint(Run(folder).checkpoint())
        set_model_state_dict(task, best["state_dict"], options=WHOLE)
        trainer.test(task, data, verbose=False)
    summary = _summary(recipe, task, trainer, trouble, totals)
    if leads:
        report.keep_metrics(folder)
        report.write_summary(folder, summary)
        report.draw(task, folder, best["global_step"])
    return folder, summary


def _summary(
    recipe: Recipe, task: Task, trainer: Trainer, trouble: Trouble, totals: Totals
) -> dict[str, Any]:
    """What summary.json says; steps, seconds, rates and memory are those of all parts of a resumed run."""
    return {
        "recipe": recipe.name,
        "metrics": {
            key: float(value) for key, value in sorted(trainer.callback_metrics.items()) if "/" in key
        },
        **task.details(),
        "parameters": sum(p.numel() for p in task.parameters()),
        "steps": trainer.global_step,
        "skipped_steps": trouble.skipped,
        "seconds": round(totals.seconds, 2),
        "samples_per_second": round(totals.rate, 2),
        "samples_per_second_per_device": round(totals.rate / trainer.world_size, 2),
        **totals.memory,
        "devices": trainer.world_size,
        "strategy": recipe.trainer.strategy,
        "seed": recipe.seed,
        "versions": {
            "lrnnx": __version__,
            "python": sys.version.split()[0],
            **{name: version(name) for name in RECORDED},
        },
        "device": str(trainer.strategy.root_device),
        "git": _commit(),
    }


def _new_folder(name: str, out: Path | None, stack: ExitStack) -> Path:
    """The run folder to make, told to the processes that this one will start."""
    folder = stack.enter_context(folders.new(name, out))
    os.environ[FOLDER] = str(folder)
    return folder


def _leaders_folder(out: Path | None) -> Path:
    """The run folder that the first process of this job makes."""
    if out is None and FOLDER not in os.environ:
        raise RunError("processes started by another launcher need a common run folder: name one with -o")
    return out or Path(os.environ[FOLDER])


def evaluate(run: Run, split: str) -> dict[str, float]:
    """Metrics of a run's best checkpoint on one split ("train", "valid" or "test")."""
    _quiet()
    seed_everything(run.recipe.seed, workers=True, verbose=False)
    task = run.task()
    trainer = _passing_trainer(
        run.recipe,
        [Finite()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=sys.stderr.isatty(),
    )
    with workers.told():
        trainer.test(task, build_data(run.recipe).loader(split), verbose=False)
    return {
        key.removeprefix("test/"): float(value) for key, value in sorted(trainer.callback_metrics.items())
    }


def dry_run(config: DictConfig) -> tuple[float, list[tuple[str, str, int]]]:
    """One batch forward and backward; returns its loss and (module, type, parameters) rows."""
    recipe = typed(config)
    _quiet()
    seed_everything(recipe.seed, workers=True, verbose=False)
    data = build_data(recipe)
    task = build_task(recipe, data.spec)
    trainer = _passing_trainer(recipe, [], fast_dev_run=True, enable_progress_bar=False)
    with workers.told():
        trainer.fit(task, data)
    rows = [
        (name, type(module).__name__, sum(p.numel() for p in module.parameters()))
        for name, module in task.model.named_children()
    ]
    return float(trainer.callback_metrics["train/loss"]), rows


def _passing_trainer(recipe: Recipe, callbacks: list[Callback], **options: Any) -> Trainer:
    """A trainer on one device that leaves no run behind."""
    with _settings_checked():
        return Trainer(
            enable_model_summary=False,
            accelerator=recipe.trainer.accelerator,
            devices=1,
            precision=recipe.trainer.precision,  # type: ignore[arg-type]  (Lightning checks the name itself)
            callbacks=callbacks,
            **options,
        )


def _trainer(recipe: Recipe, task: Task, folder: Path, callbacks: list[Callback]) -> Trainer:
    settings = recipe.trainer
    best = ModelCheckpoint(
        folder / "checkpoints",
        "best",
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
            precision=settings.precision,  # type: ignore[arg-type]  (as above)
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
            use_distributed_sampler=False,  # that of lrnnx_app.data deals addresses to ranks
        )


@contextmanager
def _settings_checked() -> Iterator[None]:
    """Say in one line what Lightning does not take."""
    try:
        yield
    except (MisconfigurationException, ValueError) as error:
        raise RecipeError(f"trainer: {' '.join(str(error).split())}") from error


def _quiet() -> None:
    """Silence Lightning's advice about choices that are made on purpose."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*when logging on epoch level.*")  # metrics do
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")  # its sampler is
    warnings.filterwarnings(
        "ignore", message=".*number of training batches.*smaller than the logging interval.*"
    )


def _commit() -> str | None:
    """The checkout's commit, with "+" if it has changes; None for an installed package."""
    here = Path(__file__).parent
    if not (here.parent / ".git").exists():
        return None
    try:

        def git(*words: str) -> str:
            return subprocess.run(
                ("git", "-C", str(here), *words), capture_output=True, text=True, check=True
            ).stdout.strip()

        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
