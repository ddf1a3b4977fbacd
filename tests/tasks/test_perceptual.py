"""PESQ and STOI: computed where their packages are installed, and said to be absent where they are not."""

import importlib.util

import pytest
import torch

from data_modules._mixtures import prompts
from lrnnx_app.data.audio_io import read_mono
from lrnnx_app.tasks import _perceptual
from lrnnx_app.tasks._perceptual import Perceptual

INSTALLED = {
    name for name, package in (("pesq", "pesq"), ("stoi", "pystoi")) if importlib.util.find_spec(package)
}


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_perceptual, "find_spec", lambda name: None)
    scores = Perceptual(16000)
    scores.update(*torch.randn(3, 16000))
    assert scores.compute() == {}
    assert set(scores.absent) == {"pesq", "stoi"}
    for reason in scores.absent.values():
        assert "pip install 'lrnnx-app[audio-metrics]'" in reason


def test_pesq_has_two_rates() -> None:
    assert "pesq" in Perceptual(44100).absent
    assert ("pesq" in Perceptual(8000).absent) == ("pesq" not in INSTALLED)


def test_scores_rank_noisy_and_clean_speech() -> None:
    scores = Perceptual(16000)
    clean = read_mono(prompts("test")[0][0], 16000)
    noisy = clean + 0.1 * clean.std() * 10 * torch.randn(
        len(clean), generator=torch.Generator().manual_seed(0)
    )
    scores.update(noisy, clean, clean)
    scores.update(*torch.zeros(3, 1000))  # no speech: neither measure judges it
    scores.update(clean * torch.nan, clean * torch.nan, clean)
    found = scores.compute()
    assert set(found) == {key for name in INSTALLED for key in (name, f"{name}_noisy")}
    assert set(scores.absent) == {"pesq", "stoi"} - INSTALLED
    if "stoi" in INSTALLED:
        assert found["stoi"] > 0.99 > 0.95 > found["stoi_noisy"]
    if "pesq" in INSTALLED:
        assert found["pesq"] > 4.5 > 3 > found["pesq_noisy"]
    scores.reset()
    assert scores.compute() == {}
