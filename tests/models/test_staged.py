"""Pooled stages: padding, and pooling by hand."""

import pytest
import torch

from lrnnx_app.errors import RecipeError
from lrnnx_app.layers._event_pool import POOLS_BY, EventPool
from lrnnx_app.models.staged import Staged
from lrnnx_app.spec import DataSpec, Rows
from tests.helpers import relative, small


def staged(layer: str = "event_ssm", **options: object) -> Staged:
    config = Staged.Config(
        **{"d_model": 8, "depth": 1, "expansion": 2, "pools": [4, 3], **options},
        layer=small(layer),
    )
    return Staged(DataSpec(10, 5, tokens=True), config).double().eval()


def events(batch: int, time: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(0, 10, (batch, time)), torch.rand(batch, time, dtype=torch.float64)


def test_padding_changes_nothing() -> None:
    model, lengths = staged(), torch.tensor([29, 50])
    x, dt = events(2, 50)
    assert relative(model(x, dt=dt, lengths=lengths)[0][:1], model(x[:1, :29], dt=dt[:1, :29])[0]) < 1e-12


def test_pooling_by_hand() -> None:
    x, dt = torch.tensor([[[1.0], [3.0], [5.0], [9.0], [100.0]]]), torch.tensor([[1.0, 3.0, 0.0, 0.0, 7.0]])
    found = {by: EventPool(1, 2, by)(x, None, Rows(dt)) for by in POOLS_BY}
    assert [found[by][0][0, :2, 0].tolist() for by in POOLS_BY] == [[2, 7], [2.5, 7], [3, 9]]
    for _, state, rows in found.values():
        assert rows.dt[0, :2].tolist() == [4, 0]
        assert rows.lengths.tolist() == [2]
        assert (state.waiting.tolist(), state.x.flatten().tolist(), state.dt.tolist()) == ([1], [100], [[7]])


def test_options_are_checked() -> None:
    with pytest.raises(RecipeError, match=r"pool_by.*mean"):
        Staged.Config(pool_by="men")
    with pytest.raises(RecipeError, match="positive"):
        Staged.Config(pools=[0])
