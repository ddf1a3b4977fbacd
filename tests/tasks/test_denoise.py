"""The loss of denoising: least for the clean wave, alike at every level, finite without speech."""

import math

import pytest
import torch

from lrnnx_app.registry import LAYERS, MODELS
from lrnnx_app.spec import Batch, DataSpec
from lrnnx_app.tasks.denoise import HIGHEST, Denoise, snr

SPEC = DataSpec(1, 1, sample_rate=16000)


def task(**options: float) -> Denoise:
    torch.manual_seed(0)
    config = MODELS.config("bands", d_model=8, depth=1, hop=64, bands=8, layer=LAYERS.config("lru"))
    built = Denoise(Denoise.Config(**options), config, SPEC)
    built.log = lambda *_, **__: None  # which only a trainer takes
    return built


def waves(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randn(2, 2048, 1, generator=generator)
    return clean + 0.5 * torch.randn(2, 2048, 1, generator=generator), clean


@pytest.mark.parametrize("decibels", [-40, 20])
def test_loss_is_alike_at_every_level(decibels: float) -> None:
    noisy, clean = waves()
    gain, built = 10 ** (decibels / 20), task()
    losses = [built.training_step(Batch(g * noisy, g * clean), 0) for g in (1.0, gain)]
    assert torch.allclose(*losses, rtol=1e-3)


def test_without_speech_loss_and_gradients_are_finite() -> None:
    noisy, clean = waves()
    clean[0] = 0
    built = task()
    loss = built.training_step(Batch(noisy, clean), 0)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in built.parameters())


def test_a_late_output_is_compared_with_the_sample_it_belongs_to() -> None:
    built = task()
    torch.nn.init.zeros_(built.model.mask.weight)  # a mask of one: a delay, but for the lowest bins
    t = torch.arange(2048) / 8
    wave = torch.sin(2 * torch.pi * t)[None, :, None]
    estimate, target = built._waves(Batch(wave, wave))
    assert estimate.shape == target.shape
    assert (estimate - target)[:, 128:-128].abs().max() < 0.02


def test_distance_is_least_for_the_clean_wave() -> None:
    noisy, clean = (wave[..., 0] for wave in waves())
    power = noisy.square().mean(-1, keepdim=True)
    distances = [float(task()._distance(clean + s * (noisy - clean), clean, power)) for s in (0.0, 0.1, 1.0)]
    assert distances[0] < 1e-12
    assert distances == sorted(distances)
    assert distances[2] > distances[1] > 0


def test_the_ratio_punishes_a_wrong_level_and_has_a_ceiling() -> None:
    _, clean = (wave[..., 0] for wave in waves())
    expected = torch.tensor([HIGHEST, 20 * math.log10(2), 0.0])
    found = torch.stack([snr(gain * clean, clean).mean() for gain in (1.0, 0.5, 2.0)])
    assert torch.allclose(found, expected, atol=1e-2)
