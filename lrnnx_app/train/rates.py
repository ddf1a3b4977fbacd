"""Learning rates and weight decay of a run that is resumed."""

from lightning import Callback, LightningModule, Trainer
from torch.optim.lr_scheduler import LambdaLR

from lrnnx_app.tasks._base import Task, parameter_groups


class Rates(Callback):
    """Takes the rates from the recipe, not from the checkpoint, since an override may have changed them."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Task)
        fresh = parameter_groups(pl_module.model, pl_module.config)
        for optimizer, config in zip(trainer.optimizers, trainer.lr_scheduler_configs, strict=True):
            schedule = config.scheduler
            assert isinstance(schedule, LambdaLR)
            schedule.base_lrs = [group["lr"] for group in fresh]
            for group, own, rate in zip(optimizer.param_groups, fresh, schedule.lr_lambdas, strict=True):
                group["initial_lr"], group["weight_decay"] = own["lr"], own["weight_decay"]
                group["lr"] = own["lr"] * rate(schedule.last_epoch)
            schedule._last_lr = [group["lr"] for group in optimizer.param_groups]
