"""Speech Commands v2, VoiceBank+DEMAND, folders by class, and folders of speech and noise."""

from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from data_modules._speech_commands import NOISE, WORDS

SPEAKERS = ("p226", "p287", "p228", "p230")


def write(folder: Path, config: Any) -> list[str]:
    if config.layout == "speech_commands":
        speech_commands(folder)
    elif config.layout == "pairs":
        voicebank(folder)
    elif config.layout == "folders":
        for name in ("a", "b"):
            for index in range(20):
                tone(folder / name / f"{index}.wav", 0.1, 16000, seed=index)
    else:
        return []
    return [f"data.root={folder}"]


def tone(path: Path, seconds: float, rate: int, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.3 * np.sin(np.arange(round(seconds * rate)) * (0.05 + 0.01 * seed))
    noise = np.random.default_rng(seed).normal(0, 0.05, len(wave))
    soundfile.write(path, wave + noise, rate)
    return path


def speech_commands(folder: Path) -> None:
    """Two clips of every word for training, one each for validation and test."""
    lists: dict[str, list[str]] = {"validation_list.txt": [], "testing_list.txt": []}
    for index, word in enumerate(WORDS):
        for speaker in range(4):
            name = f"{word}/{speaker:08x}_nohash_0.wav"
            tone(folder / name, 0.1, 16000, index)
            if speaker < 2:
                lists[("validation_list.txt", "testing_list.txt")[speaker]].append(name)
    for name, lines in lists.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    tone(folder / NOISE / "pink_noise.wav", 3.0, 16000)


def voicebank(folder: Path, rate: int = 48000) -> None:
    """Two sentences of each speaker."""
    for kind in ("clean", "noisy"):
        for part, speakers in (("trainset_28spk_wav", SPEAKERS), ("testset_wav", ("p232", "p257"))):
            for speaker in speakers:
                for number in (1, 2):
                    path = folder / f"{kind}_{part}" / f"{speaker}_{number:03}.wav"
                    tone(path, 0.2, rate, number + 10 * (kind == "noisy"))
