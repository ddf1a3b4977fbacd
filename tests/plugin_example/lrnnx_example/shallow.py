"""A backbone of one block."""

from dataclasses import dataclass
from typing import Any

from lrnnx_app.models.backbone import Backbone
from lrnnx_app.spec import DataSpec


class Shallow(Backbone):
    """lrnnx's backbone with a depth of 1."""

    @dataclass
    class Config:
        d_model: int = 8  # channels
        layer: Any = None  # the one layer

    def __init__(self, spec: DataSpec, config: Config) -> None:
        super().__init__(spec, Backbone.Config(d_model=config.d_model, depth=1, layer=config.layer))
