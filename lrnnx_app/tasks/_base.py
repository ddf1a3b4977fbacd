"""What every task shares: the model, its optimizer and schedule, and what a checkpoint says of itself."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from lrnnx_app.errors import RecipeError
from lrnnx_app.layers._base import Layer
from lrnnx_app.registry import MODELS
from lrnnx_app.spec import TARGETS, Batch, DataSpec


class Meaning(NamedTuple):
    """What one output of a model says to a user.

    Attributes:
        values: by name, in the order in which they are shown.
        column: what the values are, such as "probability".
        key: under which --json writes them.
        headline: the values in a few words, one line.
    """

    values: dict[str, float]
    column: str
    key: str
    headline: str


class Task(LightningModule):
    """A model with a loss and metrics: `TASKS[name](Config(…), model_config, spec)`.

    A subclass has a nested dataclass `Config(Task.Config)` and says what it is by these attributes.

    Attributes:
        monitor: the validation metric that decides which checkpoint is best.
        mode: "max" or "min", of `monitor`.
        score: the test metric that runs are compared by, if it is another one.
        targets: the kinds of `DataSpec.target` that it learns from.
        inference: what `lrnnx infer` does with a run. "audio": files or a stream of audio become audio.
            "meaning": the output of each file or chunk is shown as `meaning` says. "errors": it prints how
            well each file is predicted, by `errors_from`. "": nothing; the command refuses.
        packs: whether rows of its batches may hold several examples.
        unit: of these errors, such as "bits_per_byte".
        next_words: the command that a user types after training, {run} being the run folder.
    """

    monitor: ClassVar[str]
    mode: ClassVar[str]
    score: ClassVar[str] = ""
    targets: ClassVar[tuple[str, ...]] = tuple(TARGETS)
    inference: ClassVar[str] = ""
    unit: str = "error"
    next_words: ClassVar[str] = "lrnnx evaluate {run}"
    packs: ClassVar[bool] = False

    @dataclass
    class Config:
        lr: float = 3e-3  # peak of the learning rate
        ssm_lr: float = 1e-3  # the same for what shapes the recurrence, which gets no weight decay
        weight_decay: float = 0.01  # AdamW's, for matrices that lr is for
        warmup: float = 0.05  # share of the steps over which the learning rate rises; then a cosine to 0

        def __post_init__(self) -> None:
            if not 0 <= self.warmup < 1:
                raise RecipeError(f"warmup: expected a share in [0, 1), not {self.warmup}")
            if min(self.lr, self.ssm_lr, self.weight_decay) < 0:
                raise RecipeError("lr, ssm_lr and weight_decay: expected at least 0")

    def __init__(self, config: Any, model_config: Any, spec: DataSpec) -> None:
        super().__init__()
        self.config = config
        self.spec = spec
        self.model = MODELS.find(model_config.name, "model.name")(spec, model_config)

    @classmethod
    def headline(cls) -> str:
        """The test metric that runs are compared by."""
        return cls.score or cls.monitor.removeprefix("valid/")

    def configure_model(self) -> None:
        """Spread the weights over the processes where the strategy does; called before every fit and test."""
        if shard := getattr(self.trainer.strategy, "shard", None):  # fsdp's
            shard(self.model)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(parameter_groups(self.model, self.config))
        total = int(self.trainer.estimated_stepping_batches)
        warm = max(1, round(total * self.config.warmup))

        def rate(step: int) -> float:
            if step < warm:
                return (step + 1) / warm
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, total - warm))))

        schedule = LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["spec"] = asdict(self.spec)

    @classmethod
    def check(cls, spec: DataSpec) -> None:
        """Raises:
        RecipeError: the data give another kind of target than this task learns from.
        """
        if spec.target and spec.target not in cls.targets:
            learns = " or ".join(f"{TARGETS[kind]} ({kind})" for kind in cls.targets)
            raise RecipeError(
                f"task.name: {cls.__name__.lower()} learns {learns}; "
                f"these data give {TARGETS[spec.target]} ({spec.target})"
            )

    def meaning(self, output: Tensor) -> Meaning:
        """What an output (d_output,) says; for tasks whose `inference` is "meaning"."""
        raise NotImplementedError

    def errors_from(self, output: Tensor, batch: Batch) -> Tensor:
        """The error (B, T) of each step of an output (B, T, d_output); for `inference` "errors"."""
        raise NotImplementedError

    def figures(self) -> Iterator[tuple[str, Any]]:
        """Names and matplotlib figures of what the last test saw."""
        return iter(())

    def details(self) -> dict[str, Any]:
        """What the last test found beside its metrics, for the summary of a run."""
        return {}

    def sounds(self) -> Iterator[tuple[str, Tensor]]:
        """Names and waveforms (T,) at `spec.sample_rate` of what the last test heard."""
        return iter(())


def parameter_groups(model: nn.Module, config: Task.Config) -> list[dict[str, Any]]:
    """Recurrence (own rate, no decay); matrices (decay); norms and biases (no decay)."""
    recurrent = {id(p): p for m in model.modules() if isinstance(m, Layer) for p in m.recurrent_parameters()}
    rest = [p for p in model.parameters() if id(p) not in recurrent]
    groups = [
        {"params": list(recurrent.values()), "lr": config.ssm_lr, "weight_decay": 0.0},
        {"params": [p for p in rest if p.ndim > 1], "lr": config.lr, "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "lr": config.lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
