"""The denoiser of bands: it scales with its input, and begins as a delay."""

import pytest
import torch

from lrnnx_app.errors import RecipeError
from lrnnx_app.export._chunk import Chunk, traced
from lrnnx_app.models.bands import FLOOR, Bands, edges
from lrnnx_app.registry import LAYERS
from lrnnx_app.spec import DataSpec
from tests.helpers import TOLERANCE, relative

SPEC = DataSpec(1, 1, sample_rate=16000)
HOP, TIME = 16, 16 * 20 + 5


def bands(layer: str = "mingru", dtype: torch.dtype = torch.float64, spread: bool = True, **options) -> Bands:
    torch.manual_seed(0)
    config = Bands.Config(d_model=8, depth=2, bands=4, hop=HOP, layer=LAYERS.config(layer), **options)
    model = Bands(SPEC, config).to(dtype).eval()
    torch.nn.init.normal_(model.mask.weight, std=1.0 if spread else 0.0)
    return model


def test_a_share_of_the_input_is_kept_outside_training():
    x = torch.randn(1, TIME, 1, dtype=torch.float64)
    model, mixed = bands(), bands(kept=0.25)
    through = bands(spread=False)  # whose mask is one
    with torch.inference_mode():
        expected = 0.75 * model(x)[0] + 0.25 * through(x)[0]
        assert relative(mixed(x)[0], expected) < 1e-12
        assert torch.equal(mixed.train()(x)[0], model(x)[0])


@pytest.mark.parametrize("decibels", [-40, -20, 20])
def test_output_scales_with_input(decibels):
    model, x = bands(), torch.randn(1, TIME, 1, dtype=torch.float64)
    gain = 10 ** (decibels / 20)
    with torch.inference_mode():
        expected, scaled = model(x)[0] * gain, model(x * gain)[0]
    assert relative(scaled, expected) < 2 * FLOOR / min(1, gain) ** 2


def test_begins_as_a_delay():
    """But for the lowest bins, which hold the offset."""
    model = bands(spread=False)
    t = torch.arange(TIME, dtype=torch.float64)
    x = torch.sin(2 * torch.pi * t / 4)[None, :, None]
    with torch.inference_mode():
        y, _ = model(x)
    assert relative(y[:, 2 * HOP :], x[:, HOP:-HOP]) < 0.02


def test_an_offset_is_taken_out():
    model, x = bands(), torch.randn(1, 20 * HOP, 1, dtype=torch.float64)  # whole hops, which none fills
    with torch.inference_mode():
        (y, _), (moved, _) = model(x), model(x + 10)
    assert relative(moved, y) < 1e-6


def test_silence_stays_silent():
    with torch.inference_mode():
        y, _ = bands()(torch.zeros(1, TIME, 1, dtype=torch.float64))
    assert not y.any()


def test_exported_it_streams_alike_for_any_batch():
    chunk = Chunk(bands("lru", torch.float32))
    program, x = traced(chunk).module(), torch.randn(3, 4 * HOP, 1)
    state, parts = chunk.start(3), []
    with torch.inference_mode():
        for piece in x.split(HOP, 1):
            y, *state = program(piece, *state)
            parts.append(y)
        whole, _ = chunk.model(x)
    assert relative(torch.cat(parts, 1), whole) < TOLERANCE[torch.float32]


def test_bands_widen_and_leave_no_gap():
    starts = torch.tensor(edges(256, 32, 4))
    widths = starts.diff()
    assert starts[0] == 0
    assert starts[-1] == 256
    assert widths[0] == 4
    assert widths[-1] > 3 * widths[0]
    assert (widths.diff() >= -1).all()  # but for rounding each is as wide as the last one
    assert edges(64, 16, 4) == list(range(0, 65, 4))


def test_a_mask_acts_on_the_bins_of_its_band_alone():
    model = bands(spread=False, narrowest=1)
    with torch.no_grad():
        model.mask.bias[:] = torch.arange(4.0)[:, None, None]
        mask, _ = model._mask(torch.randn(1, 1, 3, HOP).double(), model.init_state(1).layers, None)
    widths = torch.tensor(edges(HOP, 4, 1)).diff()
    assert mask[0, 0, 0].tolist() == torch.arange(4).repeat_interleave(widths).tolist()


@pytest.mark.parametrize(
    ("options", "spec", "word"),
    [
        ({"bands": 5}, SPEC, "bands"),
        ({"heads": 3}, SPEC, "heads"),
        ({"depth": 0}, SPEC, "depth"),
        ({"kept": 1.5}, SPEC, "kept"),
        ({}, DataSpec(3, 5), "bands"),
    ],
)
def test_refuses(options, spec, word):
    with pytest.raises(RecipeError, match=word):
        Bands(spec, Bands.Config(**{"hop": HOP, "bands": 4, "layer": LAYERS.config("lru"), **options}))
