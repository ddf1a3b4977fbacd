"""The base of tasks: the model, its optimizer and schedule, and the description kept in a checkpoint."""

import math
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from lrnnx_app.errors import RecipeError
from lrnnx_app.layers._base import Layer
from lrnnx_app.registry import MODELS
from lrnnx_app.spec import TARGETS, Batch, DataSpec

if TYPE_CHECKING:
    from lightning import LightningModule as Learner
else:
    Learner = nn.Module  # what Lightning adds comes with `train.learner`: inference goes without


class Meaning(NamedTuple):
    """An output of a model in words and numbers for a user.

    Attributes:
        values: named values, in the order in which they are shown.
        column: the kind of the values, such as "probability".
        key: the name of the values in the output of --json.
        headline: the most important values, in one line.
    """

    values: dict[str, float]
    column: str
    key: str
    headline: str


class Task(Learner):
    """A model with a loss and metrics: `TASKS[name](Config(…), model_config, spec)`.

    A subclass has a nested dataclass `Config(Task.Config)`, and sets these attributes. Training and tests
    turn it into a LightningModule; its steps and hooks are those of one, and may use `log` and `trainer`.

    Attributes:
        monitor: the validation metric by which the best checkpoint is chosen.
        mode: "max" or "min": whether a large or a small value of `monitor` is good.
        score: the test metric by which runs are compared, if that is not `monitor`'s.
        targets: the kinds of `DataSpec.target` that the task can learn from.
        inference: what `lrnnx infer` does with a run. "audio" converts audio to audio. "meaning" shows the
            output for each file or chunk, by the method `meaning`. "errors" prints how well each file is
            predicted, by the method `errors_from`. "" refuses.
        packs: whether a row of a batch may contain several examples.
        unit: the unit of the errors of `errors_from`, such as "bits_per_byte".
        next_words: the command that a user may type after training; {run} stands for the run folder.
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
        ssm_lr: float = 1e-3  # peak for parameters of the recurrence, which have no weight decay
        weight_decay: float = 0.01  # of AdamW, for the matrices outside the recurrence
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

    def meters(self) -> None:
        """Make what training and tests measure with, such as metrics of torchmetrics, imported here."""

    @classmethod
    def headline(cls, metrics: Collection[str]) -> str:
        """The test metric, of those that runs have, by which they are compared."""
        return cls.score or cls.monitor.removeprefix("valid/")

    def configure_model(self) -> None:
        """Spread the weights over processes, if the strategy does so; called before every fit and test."""
        if shard := getattr(self.trainer.strategy, "shard", None):  # only fsdp has it
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
        """The meaning of an output (d_output,); for tasks whose `inference` is "meaning"."""
        raise NotImplementedError

    def errors_from(self, output: Tensor, batch: Batch) -> Tensor:
        """The error (B, T) of each step of an output (B, T, d_output); for `inference` "errors"."""
        raise NotImplementedError

    def figures(self) -> Iterator[tuple[str, Any]]:
        """Names and matplotlib figures of the last test."""
        return iter(())

    def details(self) -> dict[str, Any]:
        """Results of the last test besides its metrics, for the summary of a run."""
        return {}

    def sounds(self) -> Iterator[tuple[str, Tensor]]:
        """Names and waveforms (T,) at `spec.sample_rate` from the last test."""
        return iter(())


def parameter_groups(model: nn.Module, config: Task.Config) -> list[dict[str, Any]]:
    """Recurrence (own rate, no decay); matrices (decay); norms and biases (no decay); no frozen ones."""
    recurrent = {id(p): p for m in model.modules() if isinstance(m, Layer) for p in m.recurrent_parameters()}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in recurrent]
    slow = [p for p in recurrent.values() if p.requires_grad]
    groups = [
        {"params": slow, "lr": config.ssm_lr, "weight_decay": 0.0},
        {"params": [p for p in rest if p.ndim > 1], "lr": config.lr, "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "lr": config.lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
