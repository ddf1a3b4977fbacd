"""Streams of audio: resampling in blocks, and memory that stays flat over a long file."""

import resource
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import relative
from torchaudio.functional import resample

from lrnnx_app.data import DataSpec
from lrnnx_app.models.unet import UNet
from lrnnx_app.recipe import _named
from lrnnx_app.registry import LAYERS
from lrnnx_app.streaming.files import denoise_file
from lrnnx_app.streaming.resample import Resampler

RATE = 16000


@pytest.mark.parametrize(
    ("source", "target"),
    [(16000, 16000), (44100, 16000), (16000, 44100), (48000, 16000), (8000, 16000), (11025, 16000)],
)
@pytest.mark.parametrize("length", [1, 500, 9999])
def test_resampling_in_blocks_equals_one_go(source: int, target: int, length: int) -> None:
    x = torch.randn(length)
    converter = Resampler(source, target)
    sizes = [1, 3, 700, 4000, length]
    parts = [
        converter.push(piece)
        for piece in x.split([min(s, max(0, length - sum(sizes[:i]))) for i, s in enumerate(sizes)])
    ]
    parts.append(converter.finish())
    whole = x if source == target else resample(x, source, target)
    assert sum(map(len, parts)) == len(whole)
    assert relative(torch.cat(parts), whole) < 1e-5


def test_a_long_file_streams_with_flat_memory(tmp_path: Path) -> None:
    layer = _named(LAYERS["lru"].Config, "lru")(d_state=4)
    model = UNet(DataSpec(1, 1), UNet.Config(channels=[4], strides=[512], layer=layer))
    rng = np.random.default_rng(0)
    peaks = []
    for minutes in (1, 10):
        path = tmp_path / f"{minutes}.wav"
        with soundfile.SoundFile(path, "w", RATE, 1) as file:
            for _ in range(minutes * 60):
                file.write(rng.uniform(-0.5, 0.5, RATE))
        timing = denoise_file(model, RATE, path, tmp_path / "out.wav", chunk=16 * 512)
        assert soundfile.info(tmp_path / "out.wav").frames == minutes * 60 * RATE
        assert timing.audio == minutes * 60
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    assert peaks[1] - peaks[0] < 20, "MiB that nine more minutes (35 MiB of samples) added"
