"""How a training is spread over processes, as Lightning does it: `trainer.strategy`.

auto       one process, or ddp where there are several
ddp        each process has all weights and a share of every batch; gradients are averaged
fsdp       as ddp, but each process keeps only a part of the weights, gradients and optimizer states (FSDP2)

Checkpoints are read alike for all of them: as one whole state dict. So a run can be resumed under another
strategy.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lrnnx_app.errors import RecipeError
from lrnnx_app.models._base import Residual

if TYPE_CHECKING:
    from lrnnx_app.recipe import TrainerConfig

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
PATIENCE = timedelta(minutes=30)  # how long a process waits for the others, which may be building kernels


def build(settings: "TrainerConfig") -> Strategy | str:
    """The `strategy` argument of `lightning.Trainer`.

    Raises:
        RecipeError: more processes are asked for than this CPU has cores.
    """
    on_cpu = settings.accelerator == "cpu" or not torch.accelerator.is_available()
    most = max(2, os.cpu_count() or 1)
    if on_cpu and settings.devices > most:
        raise RecipeError(f"trainer.devices: expected at most {most} on this CPU, not {settings.devices}")
    processes = settings.devices * settings.nodes
    if settings.strategy == "fsdp":
        return FullyShard(processes)
    if settings.strategy == "ddp" or processes > 1:
        # Every parameter has a gradient in every step, so DDP need not search for unused ones, and
        # static_graph, which saves that search, would bring nothing.
        return Replicated(gradient_as_bucket_view=True, timeout=PATIENCE)
    return settings.strategy


class Replicated(DDPStrategy):
    """DDP that is set up on the CUDA stream of the training.

    Lightning sets it up on another stream; then every gradient would wait for an exchange between streams.
    """

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        return DistributedDataParallel(model, device_ids=self.determine_ddp_device_ids(), **self._ddp_kwargs)


class FullyShard(ModelParallelStrategy):
    """FSDP2 over all processes, with whole checkpoints.

    Within `in_parts`, state dicts have this process's parts alone.

    A checkpoint numbers the parameters of the optimizer's state as a single process does, in the order of the
    optimizer's groups. Lightning would number them in the order of the model's parameters.
    """

    def __init__(self, processes: int) -> None:
        super().__init__(processes, 1, save_distributed_checkpoint=False, timeout=PATIENCE)

    def shard(self, model: nn.Module) -> None:
        """Spread a model's weights over the processes, block by block; does nothing the second time."""
        if isinstance(model, FSDPModule):
            return
        mesh = self.device_mesh["data_parallel"]
        for module in (*(m for m in model.modules() if isinstance(m, Residual)), model):
            fully_shard(module, mesh=mesh)

    @contextmanager
    def in_parts(self) -> Iterator[None]:
        self._save_distributed_checkpoint = True
        try:
            yield
        finally:
            self._save_distributed_checkpoint = False

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        assert self.model is not None
        options = StateDictOptions() if self._save_distributed_checkpoint else WHOLE
        state: dict[str, Any] = get_optimizer_state_dict(self.model, optimizer, options=options)
        if not state:  # not the first process
            return state
        names = [name for group in state["param_groups"] for name in group["params"]]
        return _renamed(state, {name: number for number, name in enumerate(names)})

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        content = self.checkpoint_io.load_checkpoint(checkpoint_path, map_location="cpu")
        assert self.model is not None
        set_model_state_dict(self.model, content.pop("state_dict"), options=WHOLE)
        names = {id(p): name for name, p in self.model.named_parameters()}
        for optimizer, state in zip(self.optimizers, content["optimizer_states"], strict=False):
            order = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
            set_optimizer_state_dict(
                self.model, optimizer, _renamed(state, dict(enumerate(order))), options=WHOLE
            )
        return content


def _renamed(state: dict[str, Any], names: dict[Any, Any]) -> dict[str, Any]:
    """An optimizer's state, in which the parameter `key` is called `names[key]`."""
    return {
        "state": {names[key]: value for key, value in state["state"].items()},
        "param_groups": [
            {**group, "params": [names[key] for key in group["params"]]} for group in state["param_groups"]
        ],
    }
