"""Models: forward = chunks = steps, padding, causality up to the look-ahead, for layers of the registry."""

from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from lrnnx_app.errors import RecipeError, StreamError
from lrnnx_app.models.backbone import Backbone
from lrnnx_app.models.unet import UNet
from lrnnx_app.registry import LAYERS
from lrnnx_app.spec import DataSpec
from lrnnx_app.streaming.session import StreamingSession
from tests.helpers import HYBRID, TOLERANCE, relative, small

STREAMED = (*LAYERS, HYBRID)
LENGTH = 96


def unet(name: str, dtype: torch.dtype = torch.float64) -> UNet:
    config = UNet.Config(channels=[8, 16, 24], strides=[4, 2, 2], layer=small(name))
    model = UNet(DataSpec(1, 1), config).to(dtype).eval()
    torch.nn.init.normal_(model.mask.weight)  # off its start near the identity
    return model


def backbone(name: str, dtype: torch.dtype = torch.float64, **options: Any) -> Backbone:
    config = Backbone.Config(d_model=8, depth=3, layer=small(name), **options)
    return Backbone(DataSpec(3, 5), config).to(dtype).eval()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("pool", ["mean", "last", "none"])
@pytest.mark.parametrize("name", STREAMED)
def test_backbone_streams(name: str, pool: str, dtype: torch.dtype) -> None:
    model = backbone(name, dtype, pool=pool)
    x = torch.randn(2, 40, 3, dtype=dtype)
    timed = all(LAYERS[part].uses_dt for part in name.split("+"))
    dt = torch.rand(2, 40, dtype=dtype) if timed else None
    with torch.inference_mode():
        whole, end = model(x, dt=dt)
        state, outputs = None, []
        for part in (slice(0, 1), slice(1, 18), slice(18, 40)):
            y, state = model(x[:, part], state, dt=None if dt is None else dt[:, part])
            outputs.append(y)
        stepped, steps = model.init_state(2), []
        for t in range(40):
            y, stepped = model.step(x[:, t], stepped, None if dt is None else dt[:, t])
            steps.append(y)
    chunked = torch.cat(outputs, 1) if pool == "none" else outputs[-1]
    by_step = torch.stack(steps, 1) if pool == "none" else steps[-1]
    assert relative(chunked, whole) < TOLERANCE[dtype]
    assert relative(by_step, whole) < TOLERANCE[dtype]
    for other in (state, stepped):
        for value, expected in zip(tree_leaves(other), tree_leaves(end), strict=True):
            assert relative(value, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("name", STREAMED)
def test_padding_changes_nothing(name: str) -> None:
    lengths = torch.tensor([37, 90])
    audio = torch.randn(2, 90, 1, dtype=torch.float64)
    model = unet(name)
    padded, _ = model(audio, lengths=lengths)
    alone, _ = model(audio[:1, :37])
    assert relative(padded[:1, :37], alone) < 1e-12
    x = torch.randn(2, 90, 3, dtype=torch.float64)
    for pool in ("mean", "last"):
        model = backbone(name, pool=pool)
        assert relative(model(x, lengths=lengths)[0][:1], model(x[:1, :37])[0]) < 1e-12


@pytest.mark.parametrize("name", STREAMED)
def test_unet_hears_its_lookahead_and_no_more(name: str) -> None:
    model = unet(name)
    x = torch.randn(1, LENGTH, 1, dtype=torch.float64)
    changed = x.clone()
    at = 2 * model.hop + model.lookahead
    changed[:, at] += 1
    moved = ((model(x)[0] - model(changed)[0]).abs() > 1e-12).flatten().nonzero()
    assert int(moved.min()) == at - model.lookahead


def test_unet_starts_as_identity() -> None:
    model = UNet(DataSpec(1, 1), UNet.Config(layer=small("lru")))
    x = torch.randn(1, 4096, 1)
    assert relative(model(x)[0], x) < 0.3


def test_every_layer_fits_the_backbone_in_both_directions() -> None:
    x = torch.randn(2, 9, 3)
    for name in LAYERS:
        model = backbone(name, torch.float32, bidirectional=True)
        logits, _ = model(x, lengths=torch.tensor([9, 4]))
        alone, _ = model(x[1:, :4])
        assert relative(logits[1:], alone) < 1e-5
        with pytest.raises(StreamError, match="direction"):
            StreamingSession(model)


def test_blocks_take_a_list_of_layers_in_turn() -> None:
    kinds = [LAYERS[name] for name in HYBRID.split("+")]
    model = Backbone(DataSpec(1, 2), Backbone.Config(d_model=8, depth=5, layer=small(HYBRID)))
    assert [type(block.layer) for block in model.blocks] == (2 * kinds)[:5]
    assert [type(block.layer) for block in unet(HYBRID).blocks] == 2 * kinds


def test_a_layer_option_that_does_not_fit_is_named_with_its_key() -> None:
    config = small("s5")
    config.rule = "zho"
    with pytest.raises(RecipeError, match=r"model\.layer\.rule.*zoh"):
        Backbone(DataSpec(1, 2), Backbone.Config(layer=config))
    with pytest.raises(RecipeError, match=r"model\.layer\[1\]\.rule.*zoh"):
        Backbone(DataSpec(1, 2), Backbone.Config(layer=[small("lru"), config]))
