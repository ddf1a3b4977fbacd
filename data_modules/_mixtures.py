"""Noisy speech, mixed on the fly from clean clips and music, babble or coloured noise."""

import csv
import math
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from data_modules._augment import LONGEST, Augment, Recording, echoed, recorded, shelved
from data_modules._splits import own
from lrnnx_app.data.audio_io import Clips, excerpt, find_audio
from lrnnx_app.errors import DataError
from lrnnx_app.spec import Batch, Example

ASSETS = Path(__file__).parent / "assets" / "prompts"
VOICES = 3  # clips summed into babble
CLEAN, ALONE, MIXED = range(3)  # kinds of examples: without noise, without speech, with both


class Collection(Protocol):
    """Waveforms (T,) by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor: ...


def mixtures(config: Any, split: str) -> "Mixtures":
    """The embedded prompts and music, or the files below `root` and `noise_root`.

    Raises:
        DataError: a folder is missing or holds nothing.
    """
    c = config
    if bool(c.root) != bool(c.noise_root):
        missing = "data.noise_root" if c.root else "data.root"
        raise DataError(
            f"{missing}: expected a folder, since data.root (clean) and data.noise_root go together"
        )
    if c.root:
        speech = own(Path(c.root), split, c.split, partial(find_audio, what="clean speech"))
        noises = own(Path(c.noise_root), split, c.split, partial(find_audio, what="noise"))
        noise = Clips(noises, c.sample_rate)
    else:
        speech = [path for path, _ in prompts(split)]
        noise = _embedded_music(split, c.sample_rate)
    return (Drawn if split == "train" else Mixtures)(Clips(speech, c.sample_rate), noise, c)


class Part(NamedTuple):
    """A row of `Parts`."""

    voice: Tensor
    noise: Tensor
    beta: float | None
    snr: float
    kind: int = MIXED
    shelves: list[tuple[float, ...]] | None = None
    room: Tensor | None = None
    recording: Recording = Recording()
    level: float = 0.0


class Parts(NamedTuple):
    """What B mixtures are made of; lists have a value for each.

    voice: (B, T). noise: (B, T), white where `coloured` has an exponent β: its spectrum becomes 1/f^β.
    shelves: (2, B, 4), of voices and noises, see `Augment.shelf`; or None. rooms: (R, L), the responses of
    the rows `in_room`; or None. snr, level: dB.
    """

    voice: Tensor
    noise: Tensor
    coloured: dict[int, float]
    shelves: Tensor | None
    in_room: list[int]
    rooms: Tensor | None
    kinds: list[int]
    snr: list[float]
    recordings: list[Recording]
    level: list[float]
    names: tuple[str, ...]
    rate: int

    def finished(self) -> Batch:
        """The mixtures, on the device of the parts."""
        voice, noise = self.voice, self.noise
        if self.coloured:
            rows = list(self.coloured)
            beta = noise.new_tensor(list(self.coloured.values()))[:, None]
            noise = noise.clone()
            noise[rows] = coloured(noise[rows], beta)
        if self.shelves is not None:
            voice = shelved(voice, self.shelves[0], self.rate)
            noise = shelved(noise, self.shelves[1], self.rate)
        clean = voice
        if self.rooms is not None:
            voice, clean = voice.clone(), clean.clone()
            voice[self.in_room], clean[self.in_room] = echoed(clean[self.in_room], self.rooms, self.rate)
        power, other = (wave.square().mean(1, keepdim=True).clamp_min(1e-10) for wave in (voice, noise))
        spoken, noisy = (
            voice.new_tensor([kind != k for kind in self.kinds])[:, None] for k in (ALONE, CLEAN)
        )
        ratio = noisy * 10 ** (-voice.new_tensor(self.snr)[:, None] / 20)
        mixed, clean = voice * spoken + noise * ratio * (power / other).sqrt(), clean * spoken
        gain = 10 ** (voice.new_tensor(self.level)[:, None] / 20)
        gain = gain / mixed.abs().amax(1, keepdim=True).clamp_min(1)
        mixed, clean = recorded(mixed, clean, self.recordings, self.rate)
        return Batch((mixed * gain)[..., None], (clean * gain)[..., None], names=self.names)


class Mixtures:
    """Whole clips, each mixed several times, alike in every run."""

    def __init__(self, speech: Clips, noise: Collection, config: Any) -> None:
        self.speech, self.noise, self.config = speech, noise, config
        self.lengths = np.tile(speech.lengths, config.mixtures)

    def __len__(self) -> int:
        return len(self.lengths)

    def example(self, index: int, rng: np.random.Generator) -> Example:
        batch = self.parts([index], [rng]).finished()
        return Example(batch.x[0], batch.y[0], name=batch.names[0])

    def parts(self, rows: Sequence[int], rngs: Iterable[np.random.Generator]) -> Parts:
        drawn = [self._drawn(row % len(self.speech), rng) for row, rng in zip(rows, rngs, strict=True)]
        shelves = [one.shelves for one in drawn if one.shelves is not None]
        in_room = [i for i, one in enumerate(drawn) if one.room is not None]
        # of one length, since a GPU prepares transforms for each length that it meets, in milliseconds
        longest = round(LONGEST * self.config.sample_rate)
        rooms = [pad(one.room, (0, longest - len(one.room))) for one in drawn if one.room is not None]
        return Parts(
            voice=torch.stack([one.voice for one in drawn]),
            noise=torch.stack([one.noise for one in drawn]),
            coloured={i: one.beta for i, one in enumerate(drawn) if one.beta is not None},
            shelves=torch.tensor(shelves).transpose(0, 1) if shelves else None,
            in_room=in_room,
            rooms=torch.stack(rooms) if rooms else None,
            kinds=[one.kind for one in drawn],
            snr=[one.snr for one in drawn],
            recordings=[one.recording for one in drawn],
            level=[one.level for one in drawn],
            names=tuple(self.speech.paths[row % len(self.speech)].stem for row in rows),
            rate=self.config.sample_rate,
        )

    def _drawn(self, index: int, rng: np.random.Generator) -> Part:
        c, clean = self.config, self.speech[index]
        snr = rng.uniform(c.snr_min, c.snr_max)
        return Part(clean, *self._noise(index, len(clean), rng), snr)

    def _noise(self, index: int, frames: int, rng: np.random.Generator) -> tuple[Tensor, float | None]:
        """Noise (frames,), and the exponent of its spectrum if it is to get one."""
        c = self.config
        kind = rng.choice(3, p=[c.music, c.babble, c.coloured])
        if kind == 0:
            return excerpt(self.noise[int(rng.integers(len(self.noise)))], frames, rng), None
        if kind == 1 and len(self.speech) > 1:
            others = (index + rng.integers(1, len(self.speech), VOICES)) % len(self.speech)
            return torch.stack([excerpt(self.speech[int(k)], frames, rng) for k in others]).sum(0), None
        beta = rng.uniform(0, 2)
        return torch.from_numpy(rng.standard_normal(frames)).float(), beta


class Drawn(Mixtures):
    """Training examples of `seconds`, drawn anew: of every kind and level, changed as `augment` says."""

    def __init__(self, speech: Clips, noise: Collection, config: Any) -> None:
        super().__init__(speech, noise, config)
        self.augment = Augment(config.augment, config.sample_rate)
        self.lengths = np.full(config.examples_per_epoch, round(config.seconds * config.sample_rate))

    def batch(self, rows: Sequence[int], rngs: Iterable[np.random.Generator]) -> Parts:
        """Examples of one length; whole clips differ, so only training has this."""
        return self.parts(rows, rngs)

    def _drawn(self, index: int, rng: np.random.Generator) -> Part:
        c, clean, frames = self.config, self.speech[index], int(self.lengths[0])
        enough = math.ceil(frames * (1 + c.augment.speed))
        clean = part(clean, enough, rng) if len(clean) > enough else clean
        voice = part(self.augment.voice(clean, rng), frames, rng)
        noise, beta = self._noise(index, enough, rng)
        noise = noise if beta is not None else self.augment.faster(noise, rng)
        noise = self.augment.sudden(part(noise, frames, rng), rng)
        return Part(
            voice,
            noise,
            beta,
            rng.uniform(c.snr_min, c.snr_max),
            int(rng.choice(3, p=(c.clean, c.alone, 1 - c.clean - c.alone))),
            [self.augment.shelf(rng) for _ in range(2)] if c.augment.colour else None,
            self.augment.room(rng),
            self.augment.recording(frames, rng),
            rng.uniform(c.level_min, 0),
        )


def part(clip: Tensor, frames: int, rng: np.random.Generator) -> Tensor:
    """A random part of a clip (T,); a shorter clip is set at a random place in silence."""
    spare = len(clip) - frames
    if spare >= 0:
        start = int(rng.integers(0, spare + 1))
        return clip[start : start + frames]
    before = int(rng.integers(0, -spare + 1))
    return pad(clip, (before, -spare - before))


def coloured(white: Tensor, beta: Tensor | float) -> Tensor:
    """White noise (…, T) with a 1/f^beta power spectrum; 0 is white, 1 pink, 2 brown."""
    spectrum = torch.fft.rfft(white)
    bins = torch.arange(spectrum.shape[-1], device=white.device).clamp_min(1)
    return torch.fft.irfft(spectrum * bins ** (-beta / 2), white.shape[-1])


def prompts(split: str | None = None) -> list[tuple[Path, str]]:
    """The embedded clips and their speakers, of one split or all."""
    with (ASSETS / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [(ASSETS / row["file"], row["speaker"]) for row in rows if split in (None, row["split"])]


def _embedded_music(split: str, rate: int) -> Collection:
    tracks = Clips(find_audio(ASSETS / "music", "music"), rate)
    if split == "train":
        return tracks[0], tracks[1]
    half = len(tracks[2]) // 2
    return (tracks[2][:half],) if split == "valid" else (tracks[2][half:],)
