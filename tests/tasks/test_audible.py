"""The audible difference: its order follows the damage, and its gradients are finite without a voice too."""

import pytest
import torch

from data_modules._mixtures import prompts
from lrnnx_app.data.audio_io import read_mono
from lrnnx_app.errors import RecipeError
from lrnnx_app.registry import LAYERS, MODELS
from lrnnx_app.spec import DataSpec
from lrnnx_app.tasks._audible import RATE, Audible
from lrnnx_app.tasks.denoise import Denoise
from tests.helpers import relative


@pytest.fixture(scope="module")
def voice() -> torch.Tensor:
    return read_mono(prompts("test")[0][0], RATE)[None, : 3 * RATE]


def test_equal_voices_do_not_differ(voice: torch.Tensor) -> None:
    assert Audible()(voice, voice).item() < 1e-3


def test_short_voices_are_compared_too(voice: torch.Tensor) -> None:
    short = voice[:, RATE : RATE + 300]
    assert Audible()(short, short).item() < 1e-3 < Audible()(short.flip(1), short).item()


def test_levels_do_not_count(voice: torch.Tensor) -> None:
    noisy = voice + 0.01 * torch.randn(voice.shape, generator=torch.Generator().manual_seed(0))
    assert relative(Audible()(0.1 * noisy, 3 * voice), Audible()(noisy, voice)) < 1e-3


def test_more_noise_is_worse(voice: torch.Tensor) -> None:
    noise = voice.std() * torch.randn(voice.shape, generator=torch.Generator().manual_seed(0))
    heard = torch.cat([voice + noise * 10 ** (-snr / 20) for snr in (40, 30, 20, 10, 0, -10)])
    values = Audible()(heard, voice.expand_as(heard))
    assert (values.diff() > 0.02).all()


def test_muffled_is_worse_than_a_slight_slope(voice: torch.Tensor) -> None:
    spectrum = torch.fft.rfft(voice)
    hertz = torch.fft.rfftfreq(voice.shape[1], 1 / RATE)
    heard = [
        torch.fft.irfft(spectrum * gain, voice.shape[1]) for gain in ((1 + hertz / 8000) ** 0.5, hertz < 700)
    ]
    slope, muffled = Audible()(torch.cat(heard), voice.expand(2, -1))
    assert slope < 0.3 * muffled


@pytest.mark.parametrize("level", [0.0, 1e-6, 1.0])
def test_gradients_are_finite(voice: torch.Tensor, level: float) -> None:
    estimate = (level * voice).flip(1).requires_grad_()
    value = Audible()(torch.cat((estimate, estimate)), torch.cat((voice, 0 * voice)))
    (gradient,) = torch.autograd.grad(value.sum(), estimate)
    assert gradient.isfinite().all()
    assert value.isfinite().all()


def test_refuses_another_rate() -> None:
    config = MODELS.config("bands", d_model=8, depth=1, hop=64, bands=8, layer=LAYERS.config("lru"))
    with pytest.raises(RecipeError, match="16000 Hz"):
        Denoise(Denoise.Config(audible=1.0), config, DataSpec(1, 1, sample_rate=8000))
