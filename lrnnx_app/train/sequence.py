"""`trainer.sequence_parallel`: processes that share each sequence, every one with a part of its time."""

from collections.abc import Callable
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import Tensor, distributed

from lrnnx_app.errors import DataError, RecipeError
from lrnnx_app.layers._relay import Relay, relayed
from lrnnx_app.recipe import Recipe
from lrnnx_app.registry import MODELS
from lrnnx_app.spec import Batch
from lrnnx_app.train.strategies import PATIENCE


class Sequences(Callback):
    """While training, gives each process its part of every sequence: groups of `count` work on one batch.

    Gradients are averaged over all processes. So the loss of a part counts by its share of the steps, and
    `count` times; a loss of whole sequences is the same in all processes of a group.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.relay: Relay | None = None  # of the last step, whose messages may still be on their way
        self.group: Any = None  # of the processes that this one shares sequences with
        self._share: Tensor | None = None  # of the steps, within a training step whose loss is one of steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        world, rank = distributed.get_world_size(), distributed.get_rank()
        for first in range(0, world, self.count):  # every process takes part in making every group
            ranks = list(range(first, first + self.count))
            group = distributed.new_group(ranks, timeout=PATIENCE)
            if rank in ranks:
                self.ranks, self.group = ranks, group
        step, log = pl_module.training_step, pl_module.log
        changed = vars(pl_module)  # Lightning looks for the name batch_idx
        changed["training_step"] = lambda batch, batch_idx: self._step(step, batch, batch_idx)
        changed["log"] = lambda name, value, **how: log(name, self._whole(value), **how)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._arrive()
        for name in ("training_step", "log"):
            vars(pl_module).pop(name, None)  # restores the method of the class

    def _step(self, step: Callable[..., Any], batch: Batch, index: int) -> Tensor:
        """The task's training step on this process's part of the batch."""
        batches, time = batch.x.shape[:2]
        if time < self.count:
            raise DataError(
                f"a row of {time} steps for {self.count} processes; expected one for each at least"
            )
        self._arrive()
        self.relay = relay = Relay(batch.rows, batches, time, self.ranks, self.group, batch.x.device)
        own, steps = relay.own, batch.y.ndim > 1 and batch.y.shape[1] == time
        part = batch._replace(x=relay.of(batch.x), **own._asdict())
        part = part._replace(y=relay.of(batch.y)) if steps else part
        if steps:
            self._share = own.counts(part.x).sum() / batch.rows.counts(batch.x).sum()
        try:
            with relayed(relay):
                loss = step(part, index)
            return loss * self._share * self.count if self._share is not None else loss
        finally:
            self._share = None

    def _arrive(self) -> None:
        """Wait until the messages of the last step have gone, which must stay in memory until then."""
        if self.relay is not None:
            self.relay.finish()

    def _whole(self, value: Any) -> Any:
        """A logged value of a part as that of the whole sequences."""
        if self._share is None or not isinstance(value, Tensor):
            return value
        whole = value.detach() * self._share
        distributed.all_reduce(whole, group=self.group)
        return whole


def check(recipe: Recipe) -> None:
    """Raises:
    RecipeError: time cannot be split over processes in this training.
    """
    settings, count = recipe.trainer, recipe.trainer.sequence_parallel
    processes = settings.devices * settings.nodes
    if processes % count:
        raise RecipeError(
            f"trainer.sequence_parallel: {count} processes share a sequence; expected a divisor of "
            f"trainer.devices × trainer.nodes = {processes}"
        )
    if count == 1:
        return
    if not MODELS.find(recipe.model.name).packs:
        able = ", ".join(name for name in MODELS if MODELS[name].packs)
        raise RecipeError(
            f"trainer.sequence_parallel: model {recipe.model.name} takes sequences whole; expected {able}"
        )
    if recipe.data.pack and getattr(recipe.model, "pool", "none") != "none":
        raise RecipeError(
            "trainer.sequence_parallel: a pool of packed rows takes them whole; expected data.pack=false"
        )
    if settings.compile:
        raise RecipeError("trainer.sequence_parallel: expected trainer.compile to be off")
