"""A task as Lightning trains and tests it. Inference goes without Lightning, whose import takes seconds."""

from functools import cache
from typing import Any

from lightning import LightningModule

from lrnnx_app.spec import DataSpec
from lrnnx_app.tasks._base import Task


@cache
def learner(kind: type[Task]) -> type[Task]:
    """The class of the same tasks as Lightning modules, with their meters."""

    class Learner(kind, LightningModule):
        def __init__(self, config: Any, model_config: Any, spec: DataSpec) -> None:
            super().__init__(config, model_config, spec)
            self.meters()

    Learner.__name__ = Learner.__qualname__ = kind.__name__
    return Learner
