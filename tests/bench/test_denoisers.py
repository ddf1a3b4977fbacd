"""Denoisers whose scores are known: what is measured is what they do."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lrnnx_app.bench import _peers, denoisers
from lrnnx_app.bench._peers import Denoiser
from lrnnx_app.errors import UserError
from lrnnx_app.spec import DataSpec

FRAME, LATE = 160, 100  # samples


def late(change):
    """A denoiser that changes frames, which come LATE samples later."""

    def start():
        waiting = np.zeros(LATE, np.float32)

        def step(frame):
            nonlocal waiting
            heard = np.concatenate((waiting, frame))
            waiting = heard[len(frame) :]
            return change(heard[: len(frame)]).astype(np.float32)

        return step

    return Denoiser("known", 16000, FRAME, start)


@pytest.fixture
def few(monkeypatch):
    """Clips of one kind of noise at one ratio."""
    monkeypatch.setattr(denoisers, "SNRS", (5, 10))
    return [clip for clip in denoisers.mixtures(None, 2) if clip.kind == "coloured"]


def test_mixtures_have_the_ratio_that_they_say(few):
    assert len(few) == 4
    for clip in few:
        powers = clip.clean.square().mean() / (clip.noisy - clip.clean).square().mean()
        assert 10 * float(powers.log10()) == pytest.approx(clip.snr, abs=0.01)
    again = denoisers.mixtures(None, 2)
    assert all(torch.equal(a.noisy, b.noisy) for a, b in zip(few, again[-4:], strict=True))


def test_what_changes_nothing_is_late_and_harmless(few):
    (row, scores), *_ = denoisers.rows([late(lambda heard: heard)], few)
    assert row["latency ms"] == pytest.approx(1000 * (FRAME + LATE) / 16000)
    assert row["SI-SNR"] == pytest.approx(0, abs=1e-3)
    assert row["clean SI-SNR"] > 60
    assert row["clean level dB"] == pytest.approx(0, abs=1e-3)
    assert row["levels ± dB"] == pytest.approx(0, abs=1e-3)
    assert row["silence dB"] == denoisers.QUIETEST
    assert row["% of a core"] > 0
    first, *_ = denoisers.by("snr", "known", few, scores)
    assert first == {"denoiser": "known", "mean": "SI-SNR"} | {
        f"{snr} dB": np.mean([s["SI-SNR"] for s, clip in zip(scores, few, strict=True) if clip.snr == snr])
        for snr in (5, 10)
    }


def test_harm_is_seen(few):
    """A hum in silence, and clipping, which does more harm to what is louder."""
    hum = 1e-3 * np.sin(np.arange(FRAME) * 2 * np.pi / FRAME)
    (row, _), *_ = denoisers.rows([late(lambda heard: heard.clip(-0.22, 0.22) + hum)], few)
    assert row["silence dB"] == pytest.approx(-60 - 20 * np.log10(2) / 2, abs=0.01)
    assert row["levels ± dB"] > 1
    assert row["clean SI-SNR"] < 30
    assert row["offset dB"] < -0.5


def test_the_command(lrnnx, tmp_path, monkeypatch, few):
    monkeypatch.setattr(denoisers, "mixtures", lambda folder, count: few[:1])
    monkeypatch.setattr(denoisers, "LEVELS", (-10,))
    monkeypatch.setattr(denoisers, "SNRS", (5, 5))
    options = ["--models", "denoise_small", "--alone", "--json", str(tmp_path / "rows.json")]
    done = lrnnx("bench", "denoisers", *options, "--plot", tmp_path / "plot.png")
    assert done.code == 0, done
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    by_torch, by_onnx = rows[:2]
    assert by_torch["SI-SNR"] == pytest.approx(by_onnx["SI-SNR"], abs=0.01)
    assert by_torch["latency ms"] == by_onnx["latency ms"] == 32
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_peers_that_are_not_installed_are_named(monkeypatch):
    monkeypatch.setattr(_peers, "find_spec", lambda name: None)
    found, absent = _peers.peers()
    assert not found
    assert {"GTCRN", "DTLN", "DeepFilterNet3", "RNNoise", "WebRTC", "Speex"} == set(absent)


def test_blocks_are_summed_where_they_overlap():
    step = _peers._overlapping(8, 4, lambda block: block * 0.5)
    x = np.arange(1, 21, dtype=np.float32).reshape(5, 4)
    heard = np.concatenate([step(frame) for frame in x])
    assert np.array_equal(heard[4:], x.ravel()[:-4])


def test_integers_are_rounded_and_clipped(monkeypatch):
    seen = []

    class Processor:
        def __init__(self, gain, suppression):
            assert gain == 0

        def Process10ms(self, data):  # noqa: N802  (the package's name)
            seen.append(np.frombuffer(data, "<i2"))
            return SimpleNamespace(audio=data)

    monkeypatch.setitem(sys.modules, "webrtc_noise_gain", SimpleNamespace(AudioProcessor=Processor))
    packages, (rate, frame, start) = _peers.PEERS["WebRTC"]
    assert (packages, rate, frame) == (("webrtc_noise_gain",), 16000, 160)
    assert np.allclose(start()(np.array([0.5, -2, 2], np.float32)), [0.5, -1, 1], atol=1e-4)
    assert seen[0].tolist() == [16384, -32767, 32767]


def test_what_is_no_denoiser_is_refused(monkeypatch):
    words = SimpleNamespace(spec=DataSpec(1, 3, sample_rate=16000, target="class"))
    monkeypatch.setattr(_peers, "audio_model", lambda path: words)
    with pytest.raises(UserError, match="runs/words: expected a run that gives"):
        next(_peers.ours("runs/words"))
