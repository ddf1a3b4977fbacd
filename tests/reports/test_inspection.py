"""What `lrnnx data` says of data of any kind, against data that are known."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from lrnnx_app.data.module import DataModule
from lrnnx_app.errors import RecipeError
from lrnnx_app.registry import DATA
from lrnnx_app.reports import inspection
from lrnnx_app.spec import DataSpec, Example

KINDS = {
    "events": DataSpec(d_input=8, d_output=2, tokens=True, classes=("left", "right")),
    "channels": DataSpec(d_input=12, d_output=2),
    "colours": DataSpec(d_input=3, d_output=2),
    "audio": DataSpec(d_input=1, d_output=1, sample_rate=8000),
}


class Known:
    """Ten examples of 4, 9, 16 … steps, the classes 1, 0, 1 …; events have times ½, 1½, ½ …"""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __len__(self) -> int:
        return 10

    def example(self, index: int, rng: np.random.Generator) -> Example:
        steps, spec = (index + 2) ** 2, KINDS[self.kind]
        y = torch.tensor(1 - index % 2)
        if spec.tokens:
            return Example(torch.arange(steps) % 8, y, 0.5 + torch.arange(steps) % 2, str(index))
        x = torch.arange(steps * spec.d_input).reshape(steps, -1) / steps
        return Example(x, 2 * x if self.kind == "audio" else y, name=str(index))


class Module(DataModule):
    @dataclass
    class Config(DataModule.Config):
        kind: str = "events"

    def __init__(self, kind: str) -> None:
        super().__init__(self.Config(kind=kind, batch_size=4))
        self.spec = KINDS[kind]

    def source(self, split: str) -> Known:
        return Known(self.config.kind)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_said_is_what_is_there(kind: str) -> None:
    found = dict(inspection.splits(Module(kind)))
    assert list(found) == ["train", "valid", "test"]
    split = found["test"]
    assert split.examples == split.read == 10
    assert split.lengths[0] == 4
    assert split.lengths[-1] == 121
    assert split.dt == ([0.5, 0.5, 1.5] if kind == "events" else None)
    names = KINDS[kind].classes or ("0", "1")
    assert split.classes == ({} if kind == "audio" else {names[0]: 5, names[1]: 5})
    steps = [(i + 2) ** 2 for i in range(10)]
    taken = sum(max(steps[i : i + 4]) * len(steps[i : i + 4]) for i in range(0, 10, 4))
    assert split.padding == pytest.approx(1 - sum(steps) / taken)


@pytest.mark.parametrize("kind", KINDS)
def test_picture_of_four_examples(kind: str) -> None:
    figure = inspection.picture(Module(kind))
    drawn = [axis for axis in figure.axes if axis.get_title()]
    assert len(drawn) == (4 if kind == "audio" else 2)
    content = drawn[-1].get_children()
    figure.canvas.draw()
    assert any(type(c).__name__ in ("AxesImage", "Line2D", "PathCollection") for c in content)


@pytest.mark.parametrize("name", DATA)
def test_a_data_module_is_opened_by_its_name(name: str) -> None:
    data = inspection.open_data(name, ["data.batch_size=3"])
    assert type(data) is DATA[name]
    assert data.config.batch_size == 3
    with pytest.raises(RecipeError, match="'batch_size'"):
        inspection.open_data(name, ["data.batch_siz=3"])
