"""Skips and counts steps whose loss or gradient is not finite; too many in a row end the training."""

import json
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from lrnnx_app.console.interrupts import Interrupts
from lrnnx_app.errors import TrainingError
from lrnnx_app.runs.folder import NONFINITE, write_whole

SHOWN = 4  # names of examples in the message; the report names all


class SkipNonfinite(Callback):
    """Skips steps whose loss or gradient is not finite.

    Their gradients are dropped, so they change neither the weights nor the optimizer's averages. The learning
    rate schedule counts such a step.

    Args:
        folder: the run folder. If the training ends, trouble.json there tells the step, the losses, the
            examples of the batch and the norm of each parameter's gradient.
        patience: this many skipped steps in a row end the training.
        interrupts: signals to stop. One reduction in each step tells all processes of a job both whether the
            numbers are finite and whether to stop.
    """

    def __init__(self, folder: Path, patience: int, interrupts: Interrupts) -> None:
        self.folder, self.patience, self.interrupts = folder, patience, interrupts
        self.skipped = 0
        self.row = 0
        self._losses: list[Tensor] = []
        self._names: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "row": self.row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped, self.row = state_dict["skipped"], state_dict["row"]

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._names += batch.names

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        gradients = [
            p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        norm = get_total_norm(gradients)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        good = self._agree(trainer, (norm + torch.stack(self._losses).sum()).isfinite())
        self.row = 0 if good else self.row + 1
        self.skipped += not good
        losses, names = self._losses, self._names
        self._losses, self._names = [], []
        if self.skipped:
            pl_module.log("skipped_steps", float(self.skipped), batch_size=1)
        if good:
            return
        if self.row >= self.patience:
            self._stop(trainer, pl_module, losses, names)
        optimizer.zero_grad(set_to_none=True)

    def _agree(self, trainer: Trainer, finite: Tensor) -> bool:
        """Whether the numbers of all processes are finite. Waits for the device, once in a step."""
        if trainer.world_size == 1:
            self.interrupts.agreed = self.interrupts.asked
            return bool(finite)
        votes = torch.stack((finite, torch.full_like(finite, not self.interrupts.asked))).float()
        good, onwards = trainer.strategy.reduce(votes, reduce_op="min").tolist()
        self.interrupts.agreed = not onwards
        return bool(good)

    def _stop(
        self, trainer: Trainer, pl_module: LightningModule, losses: list[Tensor], names: list[str]
    ) -> None:
        report = {
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "skipped_in_a_row": self.row,
            "losses": [str(float(loss)) for loss in losses],
            "batch": names,
            "gradient_norms": {
                name: str(float(p.grad.norm()))
                for name, p in pl_module.named_parameters()
                if p.grad is not None
            },
        }
        if trainer.is_global_zero:
            write_whole(self.folder / NONFINITE, json.dumps(report, indent=2) + "\n")
        bad = [name for name, norm in report["gradient_norms"].items() if norm in ("nan", "inf")]
        shown = ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
        raise TrainingError(
            f"step {trainer.global_step}: {self.row} steps in a row without finite loss and gradient; batch "
            f"of {shown or 'unnamed sources'}; first parameter without one: {bad[0] if bad else 'none'}; "
            f"see {self.folder / NONFINITE}; try --resume {self.folder} with a smaller task.lr or "
            "trainer.precision=32-true"
        )


class Finite(Callback):
    """Checks that the model's outputs are finite in validations and tests.

    A validation in which no batch has finite outputs ends the training. A test ends at the first batch with
    an output that is not finite, since its metrics would be wrong.
    """

    def __init__(self) -> None:
        self._good = torch.zeros(2)  # number of batches, and of those with finite outputs
        self._hook: Any = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._good = torch.zeros(2, device=pl_module.device)
        self._watch(pl_module, self._count)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hook.remove()
        batches, good = trainer.strategy.reduce(self._good, reduce_op="sum").tolist()
        if batches and not good:
            raise TrainingError(
                f"step {trainer.global_step}: no output of the validation is a finite number, the weights "
                "have grown too large; train anew with a smaller task.lr"
            )

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._watch(pl_module, self._insist)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hook.remove()

    def _watch(self, pl_module: LightningModule, look: Any) -> None:
        self._hook = pl_module.get_submodule("model").register_forward_hook(look)

    def _count(self, module: Any, inputs: Any, output: Any) -> None:
        finite = output[0].isfinite().all().to(self._good)
        self._good += torch.stack((torch.ones_like(finite), finite))  # no wait for the device

    def _insist(self, module: Any, inputs: Any, output: Any) -> None:
        if not output[0].isfinite().all():
            self._hook.remove()
            raise TrainingError(
                "the test: outputs are no finite numbers; expected weights, data and a trainer.precision "
                "that give finite ones"
            )
