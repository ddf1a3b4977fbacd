"""When a training writes checkpoints, and which of them it keeps."""

import os
from concurrent.futures import Future
from contextlib import nullcontext, suppress
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.io import TorchCheckpointIO
from torch import distributed

from lrnnx_app.console.interrupts import Interrupts
from lrnnx_app.disk import atomic
from lrnnx_app.errors import Interrupted, RunError
from lrnnx_app.recipe import FORMS
from lrnnx_app.runs.checkpoint_file import candidates, link, load, step_of
from lrnnx_app.runs.folder import LAST
from lrnnx_app.runs.sealed import write
from lrnnx_app.train.strategies import PATIENCE, FullyShard


class SealedIO(TorchCheckpointIO):
    """Reads and writes checkpoints for Lightning, with a digest: `write` adds it, `verify` checks it."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        write(checkpoint, Path(path))

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any = lambda storage, _: storage,
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        return load(Path(path))


class Checkpoints(Callback):
    """Writes checkpoints/step_N.ckpt every so many steps and when asked to stop; last.ckpt is the newest.

    If they are `sharded` it writes folders step_N.shards, and training goes on meanwhile.

    The checkpoint of a step is written just before the next batch starts. By then the step's log entries and
    its validation, if there is one, are done, so a resumed run neither repeats nor misses them. The state of
    Lightning's loops is copied earlier, at the end of the step or epoch, since Lightning can resume from
    there.

    Args:
        folder: of the checkpoints.
        every: optimizer steps between checkpoints.
        keep: how many to keep.
        interrupts: says whether to stop. Then the checkpoint is written and `Interrupted` is raised.
        form: one of `recipe.FORMS`.
    """

    def __init__(self, folder: Path, every: int, keep: int, interrupts: Interrupts, form: str) -> None:
        self.folder, self.every, self.keep, self.interrupts = folder, every, keep, interrupts
        self.form, self.sharded = form, form == "sharded"
        self._group: Any = None  # of the processes that write shards
        self._writing: tuple[Future[Any], Path] | None = None  # what is not yet on the disk
        self._step = -1
        self._due = False
        self._stop = False
        self._loops: dict[str, Any] | None = None
        self._position = (0, 0)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._position = checkpoint["position"]
        _locate_best(checkpoint, os.path.realpath(self.folder))  # as ModelCheckpoint has it

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.interrupts.install()
        if self._position[1] == 0:  # else Lightning would repeat the last validation if max_steps is set
            trainer.fit_loop.epoch_loop.restarting = False
        if self.sharded and trainer.world_size > 1:
            self._group = distributed.new_group(backend="gloo", timeout=PATIENCE)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._step:  # gradients are being accumulated
            return
        self._step = step
        self._stop = self.interrupts.agreed
        self._due = self._due or step % self.every == 0
        if self._due or self._stop or step == trainer.max_steps:
            self._loops = deepcopy(trainer.fit_loop.state_dict())
            self._position = (trainer.current_epoch, batch_idx + 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_last_batch:  # false if the training ended in the middle of an epoch
            self._loops = deepcopy(trainer.fit_loop.state_dict())
            for progress in self._loops["epoch_progress"].values():
                progress["completed"] = progress["processed"]  # Lightning does so later, after the last hook
            self._position = (trainer.current_epoch + 1, 0)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._loops is None:
            return
        if self._due or self._stop:
            self.save(trainer)
        if self._stop:
            self.wait()
            raise Interrupted(self.folder.parent, trainer.global_step)
        self._loops = None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["position"] = self._position
        _locate_best(checkpoint, "")
        if self._loops is not None:
            checkpoint["loops"]["fit_loop"] = self._loops

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        with suppress(RunError):  # which is not why the training ends
            self.wait()

    def save(self, trainer: Trainer) -> None:
        """Write the checkpoint of the step that ended last; every process calls this."""
        for logger in trainer.loggers:
            logger.save()
        path = self.folder / f"step_{trainer.global_step:08d}{FORMS[self.form]}"
        self._due = False
        if self.sharded:
            self._begin(trainer, path)
            return
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            self._written(path)

    def _begin(self, trainer: Trainer, path: Path) -> None:
        from lrnnx_app.runs import shards  # which takes long to import

        self.wait()
        strategy = trainer.strategy
        with strategy.in_parts() if isinstance(strategy, FullyShard) else nullcontext():
            content = trainer._checkpoint_connector.dump_checkpoint(False)
        self._writing = shards.begin(content, path, self._group, partial(self._written, path)), path

    def wait(self) -> None:
        """Wait until the last checkpoint is on the disk.

        Raises:
            RunError: it cannot be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            from lrnnx_app.runs import shards

            shards.finished(*writing)

    def _written(self, path: Path) -> None:
        """Name a checkpoint that is on the disk the last, and remove those that are no longer wanted."""
        link(path, self.folder / LAST)
        for old in candidates(self.folder):
            if old.name != LAST and step_of(old) > step_of(path):
                atomic.discard(old)  # from before a resume at an earlier step: no longer part of the run
        for old in [path for path in candidates(self.folder) if path.name != LAST][self.keep :]:
            atomic.discard(old)

    def finish(self, trainer: Trainer, source: Path | None) -> None:
        """Write the checkpoint of the end of training.

        If the run was resumed from `source` after its last step, that checkpoint is there already. Only
        last.ckpt may be missing, where a kill came between the two.
        """
        if self._loops is not None:
            self.save(trainer)
            self.wait()
        elif source is not None and source.name != LAST and trainer.is_global_zero:
            link(source, self.folder / LAST)

    @staticmethod
    def clear(folder: Path) -> None:
        """Remove what a killed writer left."""
        for part in folder.glob(".*.part*"):
            atomic.discard(part)


def _locate_best(checkpoint: dict[str, Any], folder: str) -> None:
    """Change ModelCheckpoint's paths to lie in `folder`, in place.

    So a run that was moved or copied still finds its best checkpoint.
    """

    def moved(path: str) -> str:
        return path and os.path.join(folder, os.path.basename(path))

    for key, state in checkpoint.get("callbacks", {}).items():
        if "best_k_models" in state:
            checkpoint["callbacks"][key] = {
                **state,
                "dirpath": folder,
                "best_k_models": {moved(path): score for path, score in state["best_k_models"].items()},
                **{name: moved(path) for name, path in state.items() if name.endswith("_model_path")},
            }
