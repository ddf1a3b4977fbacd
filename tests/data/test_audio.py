"""Audio layouts: published lists and folders, splits, augmentation by address, and files that do not fit."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from data_modules import _resampled
from data_modules._augment import Augment, AugmentConfig
from data_modules._speech_commands import NOISE, TWELVE, WORDS
from data_modules.audio import Audio
from lrnnx_app.disk import cache
from lrnnx_app.errors import DataError, RecipeError
from lrnnx_app.spec import SPLITS
from tests.data.standins import audio as standin
from tests.helpers import refused


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    standin.speech_commands(folder)
    return folder


@pytest.fixture
def voicebank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cache, "root", lambda: tmp_path / "cache")
    standin.voicebank(tmp_path / "voicebank")
    return tmp_path / "voicebank"


def speech(root: Path, **options) -> Audio:
    return Audio(Audio.Config(root=str(root), layout="speech_commands", seconds=1.0, batch_size=4, **options))


def test_the_published_lists_decide_the_split(commands: Path) -> None:
    sources = {split: speech(commands).source(split) for split in SPLITS}
    paths = {split: {clip.path for clip in source.clips} for split, source in sources.items()}
    assert {split: len(found) for split, found in paths.items()} == {"train": 70, "valid": 35, "test": 35}
    for one, other in combinations(paths.values(), 2):
        assert not one & other
    listed = (commands / "testing_list.txt").read_text().split()
    assert {path.relative_to(commands).as_posix() for path in paths["test"]} == set(listed)
    batch = next(iter(speech(commands).loader("test")))
    assert batch.x.shape == (4, 16000, 1)
    assert [WORDS[int(y)] for y in batch.y] == [name.partition("/")[0] for name in listed[:4]]


def test_ten_words_with_unknown_and_silence(commands: Path) -> None:
    module = speech(commands, classes=12)
    assert module.spec.classes == TWELVE
    for split, each in (("train", 2), ("valid", 1), ("test", 1)):
        counts = np.bincount(module.source(split).labels, minlength=12)
        assert counts.tolist() == [each] * 12


def test_another_rate_halves_the_steps(commands: Path) -> None:
    full, half = (speech(commands, sample_rate=rate).source("test") for rate in (16000, 8000))
    one, other = (source.example(0, np.random.default_rng(0)).x[:, 0] for source in (full, half))
    assert len(other) == len(one) // 2
    assert torch.corrcoef(torch.stack((one[::2], other)))[0, 1] > 0.9


def test_what_is_missing_of_speech_commands_is_listed(commands: Path, tmp_path: Path) -> None:
    with refused(DataError, match=r"validation_list.txt.*105,829 wav files"):
        speech(tmp_path).source("train")
    with pytest.raises(DataError, match=r"data\.root: not given"):
        Audio(Audio.Config(layout="speech_commands")).source("train")
    standin.speech_commands(tmp_path)
    with (tmp_path / "testing_list.txt").open("a") as file:
        file.write("yes/gone_nohash_0.wav\n")
    with pytest.raises(DataError, match=r"testing_list.txt: line 36: no such file as yes/gone"):
        speech(tmp_path).source("test")
    (tmp_path / NOISE / "pink_noise.wav").unlink()
    with pytest.raises(DataError, match=NOISE):
        speech(tmp_path, classes=12).source("train")


def test_a_speaker_of_ones_own_folders_stays_in_one_split(tmp_path: Path) -> None:
    for word in ("no", "yes"):
        for speaker in range(25):
            for take in range(2):
                standin.tone(tmp_path / word / f"s{speaker}_nohash_{take}.wav", 0.01, 8000)
    module = Audio(Audio.Config(root=str(tmp_path), layout="folders"))
    assert module.spec.classes == ("no", "yes")
    speakers = []
    for split in SPLITS:
        clips = module.source(split).clips
        assert {clip.label for clip in clips} == {0, 1}
        speakers.append({clip.path.name.partition("_")[0] for clip in clips})
    for one, other in combinations(speakers, 2):
        assert not one & other


def test_voices_share_no_clip_and_have_every_speaker() -> None:
    module = Audio(Audio.Config(layout="voices", sample_rate=2000, seconds=0.5))
    sources = [module.source(split) for split in SPLITS]
    for source in sources:
        assert set(source.labels) == {0, 1, 2}
    for one, other in combinations([{c.path for c in source.clips} for source in sources], 2):
        assert not one & other


def test_continued_is_the_next_sample() -> None:
    x, y, _, _ = (
        Audio(Audio.Config(layout="continued", seconds=0.1))
        .source("valid")
        .example(3, np.random.default_rng(0))
    )
    assert x.shape == (1600, 1)
    assert torch.equal(x[1:], y[:-1])


def test_pairs_hold_two_speakers_out_and_are_resampled_once(voicebank: Path) -> None:
    config = Audio.Config(root=str(voicebank), layout="pairs", seconds=0.1, batch_size=2)
    names = {split: [p.name for p in Audio(config).source(split).paths] for split in SPLITS}
    assert {name[:4] for name in names["train"]} == {"p228", "p230"}
    assert {name[:4] for name in names["valid"]} == {"p226", "p287"}
    assert {name[:4] for name in names["test"]} == {"p232", "p257"}
    source = Audio(config).source("test")
    noisy, clean, _, _ = source.example(1, np.random.default_rng(0))
    assert len(clean) == len(noisy) == 3200
    whole, _ = soundfile.read(voicebank / "clean_testset_wav" / names["test"][1], dtype="float32")
    assert torch.corrcoef(torch.stack((clean[:, 0], torch.from_numpy(whole)[::3])))[0, 1] > 0.95
    made = {p: p.stat().st_mtime_ns for p in (voicebank.parent / "cache").rglob("*.i16")}
    next(iter(Audio(config).loader("train")))
    assert len(made) == 6
    assert {p: p.stat().st_mtime_ns for p in (voicebank.parent / "cache").rglob("*.i16")} == made


def test_an_interrupted_cache_is_not_taken_for_one(voicebank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = Audio(Audio.Config(root=str(voicebank), layout="pairs"))
    read = _resampled.read_mono
    left = iter(range(3))

    def interrupted(path: Path, rate: int) -> torch.Tensor:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return read(path, rate)

    monkeypatch.setattr(_resampled, "read_mono", interrupted)
    with pytest.raises(KeyboardInterrupt):
        module.source("train")
    assert not [p for p in (voicebank.parent / "cache" / "audio").iterdir() if p.is_dir()]
    monkeypatch.setattr(_resampled, "read_mono", read)
    assert len(module.source("train")) == 4


def test_pairs_that_are_none_are_named(voicebank: Path) -> None:
    module = Audio(Audio.Config(root=str(voicebank), layout="pairs", sample_rate=48000))
    standin.tone(voicebank / "noisy_testset_wav" / "p232_001.wav", 0.1, 48000)
    with pytest.raises(DataError, match=r"p232_001.wav: 9600 samples, but its noisy partner has 4800"):
        module.source("test").example(0, np.random.default_rng(0))
    (voicebank / "noisy_testset_wav" / "p232_001.wav").unlink()
    with pytest.raises(DataError, match=r"p232_001.wav is in one of them only"):
        module.source("test")
    with pytest.raises(DataError, match=r"clean_trainset_28spk_wav.*11,572"):
        Audio(Audio.Config(root=str(voicebank / "no"), layout="pairs")).source("train")


WAVE = torch.sin(torch.arange(4000) * 0.3)


@pytest.mark.parametrize("kind", ["gain", "noise", "mask_time", "mask_band"])
def test_what_is_heard_changes_by_address_and_keeps_its_length(kind: str) -> None:
    augment = Augment(AugmentConfig(**{kind: 0.5}), 8000)
    one, again, other = (augment.heard(WAVE, np.random.default_rng([seed])) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert one.shape == WAVE.shape
    assert torch.isfinite(one).all()


def test_gain_is_at_most_what_is_stated() -> None:
    augment = Augment(AugmentConfig(gain=6.0), 8000)
    levels = [augment.heard(WAVE, np.random.default_rng(i)).std() / WAVE.std() for i in range(40)]
    assert 10 ** (-6.01 / 20) <= min(levels) < 0.8
    assert 1.2 < max(levels) <= 10 ** (6.01 / 20)


def test_speed_changes_length_and_pitch_together() -> None:
    augment = Augment(AugmentConfig(speed=0.2), 8000)
    for seed in range(5):
        wave = augment.voice(WAVE, np.random.default_rng(seed))
        assert 0.8 <= len(WAVE) / len(wave) <= 1.2
        crossings = (wave[1:] * wave[:-1] < 0).sum() / (WAVE[1:] * WAVE[:-1] < 0).sum()
        assert abs(float(crossings) - 1) < 0.02


def test_reverberation_is_a_convolution_from_the_direct_sound_on(tmp_path: Path) -> None:
    response = np.zeros(300, np.float32)
    response[[100, 200]] = 0.8, 0.6
    soundfile.write(tmp_path / "room.wav", response, 8000, subtype="FLOAT")
    augment = Augment(AugmentConfig(reverb=str(tmp_path / "room.wav"), reverb_share=1.0), 8000)
    click = torch.zeros(400)
    click[10] = 1
    heard = augment.voice(click, np.random.default_rng(0))
    assert abs(float(heard[10]) - 0.8) < 1e-5
    assert abs(float(heard[110]) - 0.6) < 1e-5
    with pytest.raises(RecipeError, match="speed"):
        AugmentConfig(speed=2.0)


def test_only_training_is_augmented(commands: Path) -> None:
    plain, loud = (speech(commands, augment=AugmentConfig(noise=noise)) for noise in (0.0, 1.0))
    for split in SPLITS:
        one, other = (m.source(split).example(0, np.random.default_rng(0)).x for m in (plain, loud))
        assert torch.equal(one, other) == (split != "train")


def test_buckets_leave_little_padding_in_clips_of_all_lengths(voicebank: Path) -> None:
    for part in ("clean", "noisy"):
        for index in range(40):
            standin.tone(
                voicebank / f"{part}_testset_wav" / f"p232_{index:03}.wav", 0.02 * (index % 9 + 1), 48000
            )
    waste = {}
    for bucket in (False, True):
        config = Audio.Config(root=str(voicebank), layout="pairs", batch_size=4, bucket=bucket)
        batches = list(Audio(config).loader("test"))
        filled = sum(int(b.x[..., 0].numel() if b.lengths is None else b.lengths.sum()) for b in batches)
        waste[bucket] = 1 - filled / sum(b.x[..., 0].numel() for b in batches)
    assert waste[True] < 0.15 < waste[False]
