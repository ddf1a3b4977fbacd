"""`train`, `evaluate` and `dry_run`: what the commands do, without printing."""

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import LambdaCallback
from omegaconf import DictConfig, OmegaConf
from torch.distributed.checkpoint.state_dict import set_model_state_dict

from lrnnx_app import machine
from lrnnx_app.console import outputs, terminal
from lrnnx_app.console.interrupts import Interrupts
from lrnnx_app.data import workers
from lrnnx_app.data.module import DataModule
from lrnnx_app.errors import Interrupted, RunError
from lrnnx_app.recipe import Recipe, load, typed
from lrnnx_app.runs import folder as folders
from lrnnx_app.runs import metrics
from lrnnx_app.runs.checkpoint_file import read_checkpoint
from lrnnx_app.runs.folder import CHECKPOINTS, RECIPE, TAKEN
from lrnnx_app.runs.run import Run, build, build_data, load_weights, with_tokenizer
from lrnnx_app.spec import SPLITS
from lrnnx_app.tasks._base import Task
from lrnnx_app.train import artifacts, begin, processes, progress, trainers
from lrnnx_app.train import resume as resumption
from lrnnx_app.train.checkpoints import Checkpoints
from lrnnx_app.train.learner import learner
from lrnnx_app.train.loaders import Loaders
from lrnnx_app.train.nonfinite import Finite, SkipNonfinite
from lrnnx_app.train.passes import Passes
from lrnnx_app.train.rates import Rates
from lrnnx_app.train.sequence import Sequences, check
from lrnnx_app.train.strategies import WHOLE
from lrnnx_app.train.summary import summary
from lrnnx_app.train.totals import Totals

FOLDER = "LRNNX_RUN"  # environment variable that tells the other processes of a job the run folder


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
        RecipeError: Lightning does not take the settings of `trainer`, or a setting that a resumed run cannot
            change differs from that of `resume`.
        RunError: `out` holds files already, another process trains there, none of the checkpoints of `resume`
            is good, or one cannot be written.
        DataError: the data are not as expected, or a process that prepares them was killed.
        TrainingError: too many steps in a row without finite numbers, or outputs without any.
        Interrupted: a signal asked to stop; a checkpoint is written.
    """
    with outputs.lasting(), ExitStack() as stack:
        recipe = typed(config) if resume is None else with_tokenizer(typed(config), resume)
        checkpoint, content = _start(config, out, resume, stack)
        data, task, taken = _opened(recipe, checkpoint is None)
        if checkpoint is not None:
            load_weights(task, content["state_dict"], checkpoint)
            data.position = content["position"]
        folder = resume or _folder(recipe.name, out, stack)
        observers = _Observers(recipe, task, folder)
        trainer = trainers.training(recipe, task, folder, observers.callbacks)
        if _leads():
            _open(folder, config, data, content, taken)
        with workers.told(folder), observers.peers:
            _fit(trainer, task, data, checkpoint, observers)
            step = _test(trainer, task, data, folder)
        found = summary(recipe, task, trainer, observers.nonfinite.skipped, observers.totals)
        if _leads():
            _close(folder, task, found, step)
        return folder, found


def train_recipe(recipe: str | Path, *overrides: str, out: str | Path | None = None) -> Run:
    """Train a recipe as `lrnnx train` does, and return its run folder.

    Args:
        recipe: path of a YAML file, or a shipped recipe's name.
        overrides: `key.sub=value` each, such as trainer.max_steps=100.
        out: the run folder to make; by default runs/<recipe>/<time>.

    Raises:
        RecipeError, RunError, DataError, TrainingError, Interrupted: see `train`.
    """
    return Run(train(load(str(recipe), overrides), None if out is None else Path(out))[0])


class _Observers:
    """The callbacks of a training, and those of them that `train` asks for results."""

    def __init__(self, recipe: Recipe, task: Task, folder: Path) -> None:
        settings = recipe.trainer
        self.folder = folder
        self.interrupts = Interrupts()
        self.totals = Totals(settings.sequence_parallel)
        self.nonfinite = SkipNonfinite(folder, settings.max_skipped, self.interrupts)
        self.saver = Checkpoints(
            folder / CHECKPOINTS,
            settings.checkpoint_every,
            settings.keep,
            self.interrupts,
            settings.checkpoints,
        )
        self.peers = processes.PeerWatch(folder)
        self.callbacks: list[Callback] = [
            LambdaCallback(setup=self.peers.watch),
            Passes(task.model, settings),
            *([Sequences(settings.sequence_parallel)] if settings.sequence_parallel > 1 else []),
            trainers.BatchSeed(recipe.seed),
            Rates(),
            self.nonfinite,
            self.saver,
            self.totals,
            progress.callback(folder),
        ]


def _leads() -> bool:
    """Whether this process writes the run folder."""
    return machine.rank() == 0


def _start(
    config: DictConfig, out: Path | None, resume: Path | None, stack: ExitStack
) -> tuple[Path | None, dict[str, Any]]:
    """The checkpoint to resume from and its content, or None and {}. Locks the folder of a resumed run."""
    if resume is not None:
        run = Run(resume)
        if _leads():
            stack.enter_context(folders.locked(resume))
        return resumption.start(run, config, progress.say)
    if out is not None and _leads():
        folders.refuse_full(out)
    return None, {}


def _built(recipe: Recipe, fresh: bool = True) -> tuple[DataModule, Task, begin.Taken | None]:
    """The data module and the task of a recipe, with random numbers seeded; reads no data.

    If it is `fresh`, and the recipe names another model, also what it took of that one's weights.

    Raises:
        RunError: `init_from` names no model, or one of which nothing fits.
        RecipeError: `freeze` matches no parameter, or all.
    """
    check(recipe)
    trainers.quiet()
    seed_everything(recipe.seed, workers=True, verbose=False)
    data, task = build(recipe, learner)
    taken = begin.take(task.model, recipe.init_from) if recipe.init_from and fresh else None
    begin.freeze(task.model, recipe.freeze)
    for line in taken.lines() if taken else ():
        progress.say(line)
    return data, task, taken


def _opened(recipe: Recipe, fresh: bool) -> tuple[DataModule, Task, begin.Taken | None]:
    """As `_built`, and opens all data, so that an error in the files comes before anything is written."""
    built = _built(recipe, fresh)
    for split in SPLITS:
        built[0].source(split)
    return built


def _folder(name: str, out: Path | None, stack: ExitStack) -> Path:
    """Make the run folder and lock it. Processes that this one starts find its name in `FOLDER`."""
    if _leads():
        folder = stack.enter_context(folders.new(name, out))
        os.environ[FOLDER] = str(folder)
        return folder
    if out is None and FOLDER not in os.environ:
        raise RunError("processes started by another launcher need a common run folder: name one with -o")
    return out or Path(os.environ[FOLDER])


def _open(
    folder: Path, config: DictConfig, data: DataModule, content: dict[str, Any], taken: begin.Taken | None
) -> None:
    """Write the recipe and what the run keeps of its data and of another model, keep the metrics of the
    resumed run so far, and remove half-written checkpoints.
    """
    found = {TAKEN: terminal.as_json(taken.content(), 2) + "\n"} if taken else {}
    for name, text in {**data.kept(), **found, RECIPE: OmegaConf.to_yaml(config)}.items():
        folders.write_whole(folder / name, text)
    metrics.carry(folder, content.get("global_step", 0))
    Checkpoints.clear(folder / CHECKPOINTS)


def _fit(
    trainer: Trainer, task: Task, data: DataModule, checkpoint: Path | None, observers: _Observers
) -> None:
    """Train up to the recipe's limit of steps or epochs. Raises Interrupted if a signal came meanwhile."""
    with observers.interrupts:
        observers.totals.start()
        loaders = Loaders(data, observers.totals.together)
        trainer.fit(task, loaders, ckpt_path=checkpoint, weights_only=True)
        observers.totals.stop()
        observers.saver.finish(trainer, checkpoint)
        if trainer.strategy.reduce_boolean_decision(observers.interrupts.asked, all=False):
            raise Interrupted(observers.folder, trainer.global_step)


def _test(trainer: Trainer, task: Task, data: DataModule, folder: Path) -> int:
    """Test the best checkpoint, and return its optimizer step."""
    best = read_checkpoint(Run(folder).checkpoint())
    set_model_state_dict(task, best["state_dict"], options=WHOLE)
    trainer.test(task, Loaders(data), verbose=False)
    return best["global_step"]


def _close(folder: Path, task: Task, found: dict[str, Any], step: int) -> None:
    """Write metrics, summary and pictures of a finished run; `step` is that of the tested weights."""
    metrics.keep(folder)
    folders.write_summary(folder, found)
    artifacts.draw(task, folder, step)


def evaluate(run: Run, split: str) -> dict[str, float]:
    """Metrics of a run's best checkpoint on one split ("train", "valid" or "test"), by name.

    Losses are means over examples, accuracies shares from 0 to 1, SI-SNR is in dB.

    Raises:
        RunError: the checkpoint is missing, unreadable or another model's.
        DataError: the data are not as expected.
        TrainingError: an output is not finite.
    """
    trainers.quiet()
    seed_everything(run.recipe.seed, workers=True, verbose=False)
    task = run.task(learner)
    trainer = trainers.passing(
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


def dry_run(config: DictConfig) -> tuple[float, list[tuple[str, str, int, int]]]:
    """One batch forward and backward; its loss, and rows (module, type, parameters, trained ones)."""
    recipe = typed(config)
    data, task, _ = _built(recipe)
    trainer = trainers.passing(recipe, [], fast_dev_run=True, enable_progress_bar=False)
    with workers.told():
        trainer.fit(task, Loaders(data))
    rows = [
        (name, type(module).__name__, sum(p.numel() for p in module.parameters()), begin.trained(module))
        for name, module in task.model.named_children()
    ]
    return float(trainer.callback_metrics["train/loss"]), rows
