"""Data modules: addressed randomness, splits that do not leak, the user's own files, and bad files."""

from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from data_modules._mixtures import coloured
from data_modules.audio import Audio
from data_modules.image_sequence import ImageSequence
from data_modules.state_tracking import StateTracking
from lrnnx_app.data.module import AddressSampler, DataModule
from lrnnx_app.errors import DataError
from lrnnx_app.registry import DATA
from lrnnx_app.spec import SPLITS
from tests.data.standins import image_sequence as standin


@pytest.fixture
def made(name: str, tmp_path: Path) -> DataModule:
    """The module's own example, in small batches."""
    return DATA[name](DATA[name].Config(**{"batch_size": 4, **DATA[name].small(tmp_path)}))


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("split", SPLITS)
def test_batches_fit_the_description_and_repeat(made: DataModule, split: str) -> None:
    module = made
    first, second = (next(iter(module.loader(split))) for _ in range(2))
    assert (
        first.x.max() < module.spec.d_input
        if module.spec.tokens
        else first.x.shape[-1] == module.spec.d_input
    )
    assert len(first.names) == len(first.x) == module.config.batch_size
    if module.spec.classes:
        assert first.y.max() < module.spec.d_output
    elif module.spec.tokens:
        assert first.y.shape == first.x.shape
    else:
        assert first.y.shape == (*first.x.shape[:2], module.spec.d_output)
    assert torch.equal(first.x, second.x)
    assert torch.isfinite(first.x).all()


@pytest.mark.parametrize("name", DATA)
def test_training_depends_on_epoch_and_seed_and_evaluation_does_not(made: DataModule) -> None:
    one, other = made, type(made)(made.config, seed=1)
    assert not torch.equal(next(iter(one.loader("train"))).x, next(iter(other.loader("train"))).x)
    assert torch.equal(next(iter(one.loader("test"))).x, next(iter(other.loader("test"))).x)
    loader = one.loader("train")
    before = next(iter(loader)).x
    loader.sampler.set_epoch(1)
    assert not torch.equal(before, next(iter(loader)).x)


def test_workers_change_nothing() -> None:
    config = Audio.Config(batch_size=4, seconds=0.2, examples_per_epoch=8, workers=2)
    alone = Audio(Audio.Config(batch_size=4, seconds=0.2, examples_per_epoch=8))
    for ours, theirs in zip(Audio(config).loader("train"), alone.loader("train"), strict=True):
        assert torch.equal(ours.x, theirs.x)


def test_sampler_visits_every_row_once() -> None:
    sampler = AddressSampler(10, seed=0, shuffle=True)
    sampler.set_epoch(3)
    addresses = list(sampler)
    assert sorted(a.row for a in addresses) == list(range(10))
    assert {a.epoch for a in addresses} == {3}
    assert [a.row for a in addresses] != list(range(10))


def test_embedded_splits_share_no_clip_and_no_music() -> None:
    audio = Audio(Audio.Config())
    sources = {split: audio.source(split) for split in SPLITS}
    clips = {split: set(source.speech.paths) for split, source in sources.items()}
    assert all(clips.values())
    for one, other in combinations(clips.values(), 2):
        assert not one & other
    music = {split: [source.noise[i] for i in range(len(source.noise))] for split, source in sources.items()}
    for training_track in music["train"]:
        for track in music["valid"] + music["test"]:
            assert not torch.equal(training_track[: len(track)], track)


def test_mixture_has_the_stated_noise_level() -> None:
    config = Audio.Config(seconds=1.0, snr_min=3.0, snr_max=3.0, mixtures=1)
    source = Audio(config).source("test")
    for index in range(5):
        noisy, clean, _, _ = source.example(index, np.random.default_rng(index))
        level = 10 * torch.log10(clean.square().mean() / (noisy - clean).square().mean())
        assert abs(float(level) - 3) < 1e-3


def test_coloured_noise_has_its_slope() -> None:
    rng = np.random.default_rng(0)
    for beta in (0.0, 1.0, 2.0):
        power = np.abs(np.fft.rfft(coloured(torch.from_numpy(rng.standard_normal(2**16)), beta).numpy())) ** 2
        low, high = power[100:200].mean(), power[10000:20000].mean()
        assert abs(np.log10(low / high) / 2 - beta) < 0.1


def test_series_of_permutations_come_to_what_they_come_to() -> None:
    bits = next(iter(StateTracking(StateTracking.Config()).loader("test")))
    assert torch.equal(bits.y, bits.x.cumsum(1) % 2)
    every = list(permutations(range(5)))
    for swaps in (False, True):
        data = StateTracking(StateTracking.Config(group="s5", swaps=swaps, test_length=30))
        assert (data.spec.d_input, data.spec.d_output) == (11 if swaps else 120, 120)
        batch = next(iter(data.loader("valid")))
        order = list(range(5))
        for token, state in zip(batch.x[0], batch.y[0], strict=True):
            order = [order[place] for place in every[data.tokens[token]]]
            assert tuple(order) == every[state]


def write(path: Path, seconds: float, rate: int, channels: int = 1, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.random.default_rng(seed).uniform(-0.5, 0.5, (int(seconds * rate), channels))
    soundfile.write(path, wave, rate)
    return path


def test_a_users_folders_of_any_rate_and_channels(tmp_path: Path) -> None:
    for index in range(40):
        suffix = (".wav", ".flac", ".ogg")[index % 3]
        write(
            tmp_path / "clean" / f"{index}{suffix}",
            0.3,
            (8000, 16000, 44100)[index % 3],
            1 + index % 2,
            index,
        )
        write(tmp_path / "noise" / "deep" / f"{index}.wav", 0.2, 22050, 2, index)
    config = Audio.Config(
        root=str(tmp_path / "clean"), noise_root=str(tmp_path / "noise"), seconds=0.5, batch_size=3
    )
    for split in SPLITS:
        batch = next(iter(Audio(config).loader(split)))
        assert torch.isfinite(batch.x).all()
        assert batch.x.abs().max() > 0


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"root": "nowhere", "noise_root": "nowhere"}, "nowhere"),
        ({"root": "nowhere"}, "data.noise_root"),
        ({"noise_root": "nowhere"}, "data.root"),
    ],
)
def test_missing_folders_are_named(options: dict[str, str], word: str) -> None:
    with pytest.raises(DataError, match=word):
        Audio(Audio.Config(**options)).source("train")


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    standin.mnist(tmp_path)
    return tmp_path


def test_mnist_plain_and_gzipped(mnist: Path) -> None:
    module = ImageSequence(ImageSequence.Config(images="mnist", root=str(mnist), batch_size=2))
    sizes = {split: len(module.source(split)) for split in SPLITS}
    assert sizes == {"train": 4, "valid": 5000, "test": 3}
    batch = next(iter(module.loader("test")))
    raw = (mnist / "t10k-images-idx3-ubyte").read_bytes()
    assert batch.x.shape == (2, 784, 1)
    assert torch.equal(batch.x[0, :, 0], torch.tensor(list(raw[16 : 16 + 784])) / 255)


@pytest.mark.parametrize("damage", [b"", b"\x00\x00\x08", b"not an idx file at all, but long enough"])
def test_damaged_mnist_is_named(mnist: Path, damage: bytes) -> None:
    (mnist / "t10k-images-idx3-ubyte").write_bytes(damage)
    module = ImageSequence(ImageSequence.Config(images="mnist", root=str(mnist)))
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte"):
        module.source("test")
    (mnist / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(DataError, match="no such file"):
        module.source("test")
