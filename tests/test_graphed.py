"""Training by CUDA graphs takes the steps that training without them takes."""

import pytest
import torch

from lrnnx_app import graphed, training
from lrnnx_app.recipe import load
from lrnnx_app.run import read_checkpoint


@pytest.fixture
def captures(monkeypatch):
    """How often passes were captured."""
    count, replay = [], graphed.replay

    def counted(model, x):
        count.append(tuple(x.shape))
        replay(model, x)

    monkeypatch.setattr(graphed, "replay", counted)
    return count


def weights(folder, recipe, *options):
    config = load(recipe, [*options, "trainer.max_steps=8"])
    training.train(config, folder)
    return read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(
    "recipe", ["denoise_attenuate", "denoise_lru", "digits_s5", "digits_s6", "digits_rglru", "text_s6_mini"]
)
def test_steps_are_the_same(recipe, precision, tmp_path, captures):
    options = ["model.dropout=0", f"trainer.precision={precision}"]
    eager = weights(tmp_path / "eager", recipe, *options, "trainer.graph=false")
    assert not captures
    graph = weights(tmp_path / "graph", recipe, *options, "trainer.graph=true")
    assert len(captures) == 1
    distance = sum((graph[k] - v).double().square().sum() for k, v in eager.items() if v.is_floating_point())
    assert distance.sqrt() <= (1e-4 if precision == "32-true" else 1e-2)


def test_elsewhere_nothing_changes(tmp_path, captures):
    options = ["trainer.accelerator=cpu", "data.batch_size=4"]
    usual = weights(tmp_path / "usual", "digits_lru", *options)
    graph = weights(tmp_path / "graph", "digits_lru", *options, "trainer.graph=true")
    assert not captures
    assert all(torch.equal(graph[k], v) for k, v in usual.items())
