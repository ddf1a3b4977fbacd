"""Training mixtures of every kind: without noise, without speech, at any level, in rooms, badly recorded."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities import move_data_to_device
from torch.utils.data._utils.pin_memory import pin_memory

from data_modules._augment import (
    EARLY,
    Augment,
    AugmentConfig,
    convolved,
    echoed,
    filtered,
    room,
    shelved,
    telephone,
)
from data_modules.audio import Audio
from lrnnx_app.errors import RecipeError
from lrnnx_app.spec import Batch
from lrnnx_app.train.loaders import Loaders

RATE, COUNT = 16000, 24


def examples(
    augment: dict[str, Any] | None = None, **options: Any
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    config = Audio.Config(seconds=0.5, augment=AugmentConfig(**(augment or {})), **options)
    source = Audio(config).source("train")
    found = (source.example(index, np.random.default_rng([7, index])) for index in range(COUNT))
    return [(one.x[:, 0], one.y[:, 0]) for one in found]


def test_without_noise_the_input_is_the_target() -> None:
    assert all(torch.equal(x, y) for x, y in examples(clean=1.0))


def test_without_speech_the_target_is_silence() -> None:
    assert all(x.any() and not y.any() for x, y in examples(alone=1.0))


@pytest.mark.parametrize("lowest", [-6.0, -45.0])
def test_levels_fill_their_range_and_leave_no_sample_beyond_full_scale(lowest: float) -> None:
    plain, scaled = examples(level_min=0.0), examples(level_min=lowest)
    gains = [
        20 * float(torch.log10(x.std() / one.std())) for (one, _), (x, _) in zip(plain, scaled, strict=True)
    ]
    assert lowest <= min(gains) < 0.8 * lowest
    assert 0.2 * lowest < max(gains) <= 1e-4
    assert max(float(x.abs().max()) for x, _ in scaled) <= 1


def test_a_room_is_heard_and_its_target_keeps_the_early_echoes() -> None:
    wave = torch.zeros(RATE)
    wave[100] = 1
    response = Augment(AugmentConfig(rooms=1.0), RATE).room(np.random.default_rng(0))
    assert response is not None
    (heard,), (target,) = echoed(wave[None], response[None], RATE)
    end = 100 + round(EARLY * RATE)
    assert torch.allclose(heard[:end], target[:end], atol=1e-5)
    assert heard[end:].square().sum() > 1e-3
    assert target[end + 1 :].abs().max() < 1e-5
    assert not heard[:100].abs().max() > 1e-5


def test_a_room_falls_by_sixty_decibels_in_its_time() -> None:
    for seed in range(8):
        response = room(RATE, np.random.default_rng(seed))[1:].square()
        tenth = len(response) // 10
        loud, quiet = response[tenth : 2 * tenth].mean(), response[-tenth:].mean()
        assert 36 < 10 * torch.log10(loud / quiet) < 60  # over 8 tenths, 48


def test_convolved_is_a_causal_convolution() -> None:
    wave, taps = torch.randn(50), torch.randn(3, 7)
    expected = torch.nn.functional.conv1d(torch.nn.functional.pad(wave, (6, 0))[None], taps.flip(-1)[:, None])
    assert torch.allclose(convolved(wave, taps), expected.squeeze(), atol=1e-5)


def test_a_filter_of_gain_two_doubles() -> None:
    waves = torch.randn(2, 1000)
    assert torch.allclose(filtered(waves, RATE, lambda bins: 2 + 0 * bins), 2 * waves, atol=1e-5)


@pytest.mark.parametrize(("hertz", "passes"), [(100, False), (1000, True), (6000, False)])
def test_a_telephone_passes_speech_alone(hertz: float, passes: bool) -> None:
    wave = torch.sin(2 * torch.pi * hertz * torch.arange(RATE) / RATE)
    kept = telephone(wave, RATE)[1000:-1000].std() / wave.std()
    assert kept > 0.99 if passes else kept < 0.02


def test_colour_changes_low_and_high_by_no_more_than_it_may() -> None:
    augment = Augment(AugmentConfig(colour=6.0), RATE)
    wave, changes = torch.randn(RATE), []
    for seed in range(8):
        (heard,) = shelved(wave[None], torch.tensor([augment.shelf(np.random.default_rng(seed))]), RATE)
        gain = torch.fft.rfft(heard).abs().square().view(-1)[1:].unflatten(0, (10, -1)).sum(1)
        changes.append(
            10 * torch.log10(gain / torch.fft.rfft(wave).abs().square()[1:].unflatten(0, (10, -1)).sum(1))
        )
    found = torch.stack(changes)
    assert 1 < found.abs().max() < 6.5
    assert (found[:, 0] - found[:, -1]).abs().max() > 1


def test_clipping_cuts_the_input_and_not_the_target() -> None:
    pairs = zip(examples(), examples({"clip": 1.0}), strict=True)
    crests = [
        (float(one.abs().max() / one.std()), float(x.abs().max() / x.std())) for (one, _), (x, _) in pairs
    ]
    assert sum(after < before for before, after in crests) > 0.8 * COUNT


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"clean": 0.7, "alone": 0.7}, "clean and alone"),
        ({"alone": -0.1}, "clean and alone"),
        ({"clean": float("nan")}, "clean and alone"),
        ({"snr_min": float("nan")}, "snr_min"),
        ({"snr_max": float("inf")}, "snr_min"),
        ({"level_min": 3.0}, "level_min"),
        ({"level_min": -float("inf")}, "level_min"),
        ({"level_min": float("nan")}, "level_min"),
    ],
)
def test_refuses(options: dict[str, Any], word: str) -> None:
    with pytest.raises(RecipeError, match=word):
        Audio.Config(**options)


def test_bursts_start_at_once_and_die_away() -> None:
    augment, wave = Augment(AugmentConfig(bursts=1.0), RATE), torch.ones(RATE)
    for seed in range(COUNT):
        loud = augment.sudden(wave, np.random.default_rng(seed))
        starts = (loud.diff() > 0.05).sum() + (loud[0] > 0)
        assert loud.min() >= 0
        assert 1 <= starts <= 5
        assert (loud.diff() < 1e-6).sum() >= RATE - 6


def test_a_share_of_the_noises_comes_in_bursts() -> None:
    augment, wave = Augment(AugmentConfig(bursts=0.25), RATE), torch.ones(400)
    changed = [augment.sudden(wave, np.random.default_rng(seed)) is not wave for seed in range(400)]
    assert 70 <= sum(changed) <= 130


def test_noises_change_their_speed_too() -> None:
    plain, faster = examples(alone=1.0), examples({"speed": 0.3}, alone=1.0)
    for (x, _), (y, _) in zip(plain, faster, strict=True):
        assert len(x) == len(y)
        assert not torch.equal(x, y)


@pytest.mark.parametrize("option", ["rooms", "clip", "telephone", "colour", "bursts", "gain", "noise"])
@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_refuses_an_augmentation(option: str, value: float) -> None:
    with pytest.raises(RecipeError, match=option):
        AugmentConfig(**{option: value})


EVERYTHING = {
    **{"rooms": 0.5, "colour": 6.0, "clip": 0.3, "telephone": 0.3, "mask_time": 0.3, "mask_band": 0.3},
    "speed": 0.1,
    "bursts": 0.3,
}


def test_a_batch_holds_its_examples() -> None:
    """What is computed for rows together is what each would be alone."""
    augment = AugmentConfig(**EVERYTHING)
    source = Audio(Audio.Config(seconds=0.5, clean=0.1, alone=0.1, augment=augment)).source("train")
    batch = source.batch(range(COUNT), [np.random.default_rng([7, row]) for row in range(COUNT)]).finished()
    alone = examples(EVERYTHING, clean=0.1, alone=0.1)
    assert torch.allclose(batch.x[..., 0], torch.stack([x for x, _ in alone]), atol=1e-6)
    assert torch.allclose(batch.y[..., 0], torch.stack([y for _, y in alone]), atol=1e-6)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_mixtures_for_a_gpu_are_finished_there(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts go through torch's and Lightning's hands unchanged."""
    data = Audio(
        Audio.Config(batch_size=4, seconds=0.5, examples_per_epoch=8, augment=AugmentConfig(**EVERYTHING))
    )
    loaders = Loaders(data)
    loaders.trainer = cast(Any, SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device))))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *_: self)
    for given, expected in zip(loaders.train_dataloader(), data.loader("train"), strict=True):
        assert isinstance(given, Batch) == (device == "cpu")
        moved = move_data_to_device(pin_memory(given), torch.device("cpu"))
        found = loaders.on_after_batch_transfer(moved, 0)
        assert torch.equal(found.x, expected.x)
        assert torch.equal(found.y, expected.y)
        assert found.names == expected.names
