"""Models: forward = chunks = steps, padding, causality up to the look-ahead, for all models and layers."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from lrnnx_app.errors import RecipeError, StreamError
from lrnnx_app.models._base import Model, each
from lrnnx_app.models.backbone import Backbone
from lrnnx_app.models.unet import UNet
from lrnnx_app.registry import LAYERS, MODELS
from lrnnx_app.spec import DataSpec
from lrnnx_app.streaming.session import StreamingSession
from tests.helpers import FORMS, HYBRID, TOLERANCE, each_form, relative, small, small_model

SPLIT = [(name, form) for name, form in FORMS if MODELS[name].run is Model.run]
each_layer = pytest.mark.parametrize("layer", [*LAYERS, HYBRID])


def signal(model, batch, time, dtype=torch.float64):
    return torch.randn(batch, time, model.spec.d_input, dtype=dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@each_layer
@each_form
def test_chunks_and_steps_are_one_go(name, form, layer, dtype):
    """The last chunk ends within a hop."""
    model = small_model(name, layer, **form).to(dtype)
    timed = model.hop == 1 and all(LAYERS[part].uses_dt for part in layer.split("+"))
    x = signal(model, 2, 40 * model.hop - model.hop // 2, dtype)
    dt = torch.rand(x.shape[:2], dtype=dtype) if timed else None
    more = signal(model, 2, 3 * model.hop, dtype)
    cuts = [slice(start * model.hop, stop * model.hop) for start, stop in ((0, 1), (1, 18), (18, 40))]
    ways = [(lambda x, state, dt: model(x, state, dt=dt), cuts, torch.cat)]
    if hasattr(model, "step"):
        ways.append((model.step, range(40), torch.stack))
    with torch.inference_mode():
        whole, end = model(x, dt=dt)
        for run, parts, joined in ways:
            state, outputs = model.init_state(2), []
            for part in parts:
                y, state = run(x[:, part], state, None if dt is None else dt[:, part])
                outputs.append(y)
            assert relative(joined(outputs, 1) if whole.ndim == 3 else y, whole) < TOLERANCE[dtype]
            assert relative(model(more, state)[0], model(more, end)[0]) < TOLERANCE[dtype]


@each_layer
@each_form
def test_padding_changes_neither_output_nor_state(name, form, layer):
    model = small_model(name, layer, **form).double()
    time, short = 29 * model.hop - model.hop // 2, 20 * model.hop - model.hop // 3
    x = signal(model, 2, time)
    padded = x.clone()
    padded[1, short:] = torch.nan
    with torch.inference_mode():
        y, state = model(padded, lengths=torch.tensor([time, short]))
        alone, ended = model(x[1:, :short])
        more = signal(model, 1, 3 * model.hop)
        (goes_on, _), (after, _) = model(more, each(lambda leaf: leaf[1:], state)), model(more, ended)
    assert relative(y[1:, :short] if y.ndim == 3 else y[1:], alone) < 1e-12
    assert relative(goes_on, after) < 1e-12


@each_layer
@each_form
def test_hears_its_lookahead_and_no_more(name, form, layer):
    model = small_model(name, layer, **form).double()
    at = 4 * model.hop + model.lookahead
    x = signal(model, 1, at + 5 * model.hop)
    changed = x.clone()
    changed[:, at] += 1
    with torch.inference_mode():
        y, other = model(x)[0], model(changed)[0]
    if y.ndim == 3:  # else it is pooled
        assert int(((y - other).abs() > 1e-12).nonzero()[:, 1].min()) == at - model.lookahead


def test_unet_starts_as_identity():
    model = UNet(DataSpec(1, 1), UNet.Config(layer=small("lru")))
    x = torch.randn(1, 4096, 1)
    assert relative(model(x)[0], x) < 0.3


def test_every_layer_fits_the_backbone_in_both_directions():
    x = torch.randn(2, 9, 3)
    for name in LAYERS:
        model = small_model("backbone", name, bidirectional=True)
        logits, _ = model(x, lengths=torch.tensor([9, 4]))
        alone, _ = model(x[1:, :4])
        assert relative(logits[1:], alone) < 1e-5
        with pytest.raises(StreamError, match="direction"):
            StreamingSession(model)


def test_blocks_take_a_list_of_layers_in_turn():
    kinds = [LAYERS[name] for name in HYBRID.split("+")]
    model = small_model("backbone", HYBRID, depth=5)
    assert [type(block.layer) for block in model.blocks] == (3 * kinds)[:5]
    assert [type(block.layer) for block in small_model("unet", HYBRID).blocks] == 2 * kinds


def test_a_layer_option_that_does_not_fit_is_named_with_its_key():
    config = small("s5")
    config.rule = "zho"
    with pytest.raises(RecipeError, match=r"model\.layer\.rule.*zoh"):
        Backbone(DataSpec(1, 2), Backbone.Config(layer=config))
    with pytest.raises(RecipeError, match=r"model\.layer\[1\]\.rule.*zoh"):
        Backbone(DataSpec(1, 2), Backbone.Config(layer=[small("lru"), config]))


@pytest.mark.parametrize(("name", "form"), SPLIT, ids=str)
def test_a_model_that_splits_reads_its_output_from_its_features(name, form):
    model = small_model(name, **form).double()
    assert model.splits
    x = signal(model, 2, 12)
    features, state = model(x, read=False)
    y, after = model(x)
    assert features.shape != y.shape
    assert torch.equal(model.readout(features), y)
    assert all(map(torch.equal, tree_leaves(state), tree_leaves(after)))
