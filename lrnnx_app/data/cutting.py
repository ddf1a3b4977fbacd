"""Cuts recordings into clips of speech, noise or music. Samples are (T,) at `RATE`, levels in dB."""

import importlib
import random
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import soundfile

from lrnnx_app.data.audio_io import read_mono
from lrnnx_app.errors import DataError

RATE = 16000
FRAME = RATE // 50
LEVEL = -26.0  # of clips while something sounds, dB of full scale
BELOW = 36.0  # from speech to the noise between its words, at least
SILENT = -60.0
NARROW = {"speech": 11000, "noise": 11000, "music": 16000}  # lowest rate of a source
SPEECH = 12.0  # longest clip of speech, in seconds
OTHER = 30.0


def read(path: Path, role: str) -> np.ndarray:
    """A recording without its mean; G.722 by the package G722 or by ffmpeg.

    Raises:
        DataError: it is unreadable, was sampled too slowly for its role, or a decoder is missing.
    """
    if path.suffix.lower() == ".g722":
        path = _from_g722(path)
    try:
        if soundfile.info(str(path)).samplerate < NARROW[role]:
            raise DataError(f"{path.name}: sampled too slowly")
    except soundfile.LibsndfileError as error:
        raise DataError(f"{path.name}: not readable as audio") from error
    samples = read_mono(path, RATE).numpy()
    return samples - samples.mean()


def _from_g722(path: Path) -> Path:
    wav = path.with_suffix(".wav")
    try:
        codec = importlib.import_module("G722").G722(RATE, 64000)
    except ImportError:
        if shutil.which("ffmpeg") is None:
            raise DataError("G.722 needs a decoder: pip install G722, or ffmpeg") from None
        command = ["ffmpeg", "-loglevel", "error", "-y", "-f", "g722", "-i", path, wav]
        if subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True).returncode:
            raise DataError(f"{path.name}: ffmpeg cannot read it") from None
    else:
        soundfile.write(wav, np.asarray(codec.decode(path.read_bytes()), np.int16), RATE)
    return wav


def levels(x: np.ndarray) -> np.ndarray:
    """Of frames of 20 ms."""
    whole = len(x) // FRAME
    return 10 * np.log10(np.square(x[: whole * FRAME].reshape(whole, FRAME)).mean(1) + 1e-12)


def active(x: np.ndarray) -> float:
    """The mean level while something sounds: of frames within 25 dB of the loud ones."""
    found = levels(x)
    loud = found[found > np.percentile(found, 95) - 25]
    return float(10 * np.log10(np.mean(10 ** (loud / 10))))


def clean(x: np.ndarray) -> bool:
    """Whether speech is neither clipped, nor noisy between its words."""
    peak = np.abs(x).max()
    clipped = peak > 0.9 and np.mean(np.abs(x) > 0.985 * peak) > 0.002
    return not clipped and active(x) - np.sort(levels(x))[2] >= BELOW


def trimmed(x: np.ndarray, margin: float = 0.1) -> np.ndarray:
    """From the first sound to the last, with `margin` seconds around, faded; empty if it is silent."""
    found = levels(x)
    if not len(found) or found.max() < SILENT:
        return x[:0]
    sounds = np.flatnonzero(found > max(found.max() - 45, SILENT - 10))
    spare = round(margin * RATE)
    x = x[max(0, sounds[0] * FRAME - spare) : (sounds[-1] + 1) * FRAME + spare].copy()
    ramp = np.linspace(0, 1, min(RATE // 100, len(x) // 2), dtype=x.dtype)
    x[: len(ramp)] *= ramp
    x[len(x) - len(ramp) :] *= ramp[::-1]
    return x


def levelled(x: np.ndarray) -> np.ndarray:
    """At `LEVEL`, or as near as a peak of .95 allows."""
    gain = 10 ** ((LEVEL - active(x)) / 20)
    return (x * min(gain, 0.95 / np.abs(x).max())).astype(np.float32)


def clips(paths: Iterable[Path], role: str, seconds: float, shortest: float, rng: random.Random) -> Iterator:
    """Clips of one speaker or package until there are `seconds` of them; short recordings are joined.

    Speech lasts up to 12 s with pauses of .1 to .3 s, the rest up to 30 s; a clip lasts at least `shortest`
    seconds. Raises what is unreadable as one DataError after the last clip, if there was no clip.
    """
    longest, given, troubles = (SPEECH if role == "speech" else OTHER), 0.0, []
    pieces = _readable(paths, role, longest, troubles)
    for clip in _joined(pieces, max(shortest, longest / 2), longest, rng):
        if len(clip) >= shortest * RATE:
            given += len(clip) / RATE
            yield clip
        if given >= seconds:
            return
    if troubles and not given:
        raise troubles[-1]


def _readable(paths: Iterable[Path], role: str, longest: float, troubles: list[DataError]) -> Iterator:
    """Pieces of the recordings that are of use; what is wrong with the others is added to `troubles`."""
    for path in paths:
        try:
            x = read(path, role)
        except DataError as error:
            troubles.append(error)
            continue
        if len(x) >= 0.3 * RATE and (role != "speech" or clean(x)) and len(x := trimmed(x)):
            yield from _pieces(levelled(x), longest, role)


def _joined(pieces: Iterable[np.ndarray], enough: float, longest: float, rng: random.Random) -> Iterator:
    """Pieces with pauses between them, until there are `enough` seconds; never more than `longest`."""
    held: list[np.ndarray] = []
    for piece in pieces:
        if held and sum(map(len, held)) + len(piece) > longest * RATE:
            yield np.concatenate(held)
            held = []
        held += [np.zeros(round(rng.uniform(0.1, 0.3) * RATE), np.float32)] * bool(held) + [piece]
        if sum(map(len, held)) >= enough * RATE:
            yield np.concatenate(held)
            held = []
    if held:
        yield np.concatenate(held)


def _pieces(x: np.ndarray, longest: float, role: str) -> Iterator[np.ndarray]:
    """Speech is cut where it is quietest; of the rest, one part from the middle stands for all."""
    most = round(longest * RATE)
    if role != "speech":
        start = max(0, (len(x) - most) // 2)
        yield x[start : start + most]
        return
    while len(x) > most:
        quiet = np.convolve(levels(x[most // 2 : most]), np.ones(10) / 10, "same")
        end = most // 2 + int(quiet.argmin()) * FRAME
        yield x[:end]
        x = x[end:]
    yield x
