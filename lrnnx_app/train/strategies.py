"""How a training is spread over processes, as Lightning does it: `trainer.strategy`.

auto       one process, or ddp where there are several
ddp        each process has all weights and a share of every batch; gradients are averaged
fsdp       so too, and weights, gradients and optimizer states are spread over the processes (FSDP2)

Each has checkpoints of one process: whole state dicts that run, export and resume under any other.
"""

import os
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
from lrnnx_app.models._base import Block

if TYPE_CHECKING:
    from lrnnx_app.recipe import TrainerConfig

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
PATIENCE = timedelta(minutes=30)  # of a process for the others, which may be building kernels


def build(settings: "TrainerConfig") -> Strategy | str:
    """What `lightning.Trainer` takes as its strategy.

    Raises:
        RecipeError: more processes than this CPU has cores; every one would be started.
    """
    on_cpu = settings.accelerator == "cpu" or not torch.accelerator.is_available()
    most = max(2, os.cpu_count() or 1)
    if on_cpu and settings.devices > most:
        raise RecipeError(f"trainer.devices: expected at most {most} on this CPU, not {settings.devices}")
    processes = settings.devices * settings.nodes
    if settings.strategy == "fsdp":
        return FullyShard(processes)
    if settings.strategy == "ddp" or processes > 1:
        # All parameters take part in every step, so there are none to search for, which is what a static
        # graph would spare.
        return Replicated(gradient_as_bucket_view=True, timeout=PATIENCE)
    return settings.strategy


class Replicated(DDPStrategy):
    """DDP, wrapped on the stream that trains: on another one, where Lightning does it, each gradient would be
    waited for across streams."""

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        return DistributedDataParallel(model, device_ids=self.determine_ddp_device_ids(), **self._ddp_kwargs)


class FullyShard(ModelParallelStrategy):
    """FSDP2 over all processes, with whole checkpoints.

    Their optimizer states are numbered as those of one process, in the order of the optimizer's groups;
    Lightning's are in that of the model's parameters.
    """

    def __init__(self, processes: int) -> None:
        super().__init__(processes, 1, save_distributed_checkpoint=False, timeout=PATIENCE)

    def shard(self, model: nn.Module) -> None:
        """Spread a model's weights, block by block; once."""
        if isinstance(model, FSDPModule):
            return
        mesh = self.device_mesh["data_parallel"]
        for module in (*(m for m in model.modules() if isinstance(m, Block)), model):
            fully_shard(module, mesh=mesh)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        assert self.model is not None
        state: dict[str, Any] = get_optimizer_state_dict(self.model, optimizer, options=WHOLE)
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
    """An optimizer's state with its parameters called otherwise."""
    return {
        "state": {names[key]: value for key, value in state["state"].items()},
        "param_groups": [
            {**group, "params": [names[key] for key in group["params"]]} for group in state["param_groups"]
        ],
    }
