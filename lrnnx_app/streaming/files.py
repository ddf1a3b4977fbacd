"""Audio files through a denoiser: in chunks with carried state, or in one go."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor
from torchaudio.functional import resample

from lrnnx_app.audio_io import mono, open_audio
from lrnnx_app.errors import DataError
from lrnnx_app.models._base import Model
from lrnnx_app.streaming.resample import Resampler
from lrnnx_app.streaming.session import StreamingSession

READ_SECONDS = 1.0
FORMATS = (".wav", ".flac", ".ogg")


@dataclass
class Timing:
    """What a file cost: seconds of audio, of all computation, and of each chunk."""

    audio: float = 0.0
    compute: float = 0.0
    chunks: list[float] = field(default_factory=list)

    @property
    def real_time_factor(self) -> float:
        return self.compute / self.audio

    def percentile(self, share: float) -> float:
        """Milliseconds that this share (0 to 100) of the chunks stayed within."""
        return 1000 * float(np.percentile(self.chunks, share))


def denoise_file(
    model: Model, rate: int, source: Path, target: Path, chunk: int | None = None, offline: bool = False
) -> Timing:
    """Denoise a file into a mono file of the same rate and length.

    Args:
        model: maps (B, T, 1) to (B, T, 1) at `rate` Hz.
        chunk: samples at `rate` per push; the model's hop if None.
        offline: run the whole signal at once instead.

    Raises:
        DataError: the source is not readable audio, or the target's name or folder does not serve.
    """
    if target.suffix.lower() not in FORMATS:
        raise DataError(f"{target}: expected an output ending in {', '.join(FORMATS)}")
    if not target.parent.is_dir():
        raise DataError(f"{target}: no such folder; make {target.parent} first")
    if target.exists() and target.samefile(source):
        raise DataError(f"{target}: is the input; name another output")
    timing = Timing()
    part = target.with_name(f".{target.stem}.part{target.suffix}")
    try:
        with open_audio(source) as reader:
            subtype = (
                reader.subtype if soundfile.check_format(target.suffix[1:].upper(), reader.subtype) else None
            )
            timing.audio = reader.frames / reader.samplerate
            run = (
                _offline(model, rate, reader, source, timing)
                if offline
                else _streamed(model, rate, reader, source, chunk, timing)
            )
            with soundfile.SoundFile(part, "w", reader.samplerate, 1, subtype) as writer:
                for samples in run:
                    writer.write(samples.clamp(-1, 1).numpy()[: reader.frames - writer.tell()])
        os.replace(part, target)
    except soundfile.LibsndfileError as error:
        raise DataError(f"{target}: cannot be written ({error})") from error
    finally:
        part.unlink(missing_ok=True)
    return timing


def _blocks(reader: soundfile.SoundFile, source: Path) -> Iterator[Tensor]:
    for block in reader.blocks(int(reader.samplerate * READ_SECONDS), dtype="float32", always_2d=True):
        yield torch.from_numpy(mono(block, source))


def _streamed(
    model: Model, rate: int, reader: soundfile.SoundFile, source: Path, chunk: int | None, timing: Timing
) -> Iterator[Tensor]:
    session = StreamingSession(model, chunk=chunk)
    session.warm_up(torch.zeros(1, session.chunk, 1))
    there, back = Resampler(reader.samplerate, rate), Resampler(rate, reader.samplerate)

    def timed(x: Tensor) -> Tensor:
        start = time.perf_counter()
        y = session.push(x[None, :, None])[0, :, 0]
        timing.chunks.append(time.perf_counter() - start)
        return y

    start = time.perf_counter()
    pending = torch.zeros(0)
    for block in _blocks(reader, source):
        pending = torch.cat((pending, there.push(block)))
        whole = len(pending) // session.chunk * session.chunk
        if whole:
            yield back.push(torch.cat([timed(x) for x in pending[:whole].split(session.chunk)]))
            pending = pending[whole:].clone()
    pending = torch.cat((pending, there.finish()))
    outputs = [timed(x) for x in pending.split(session.chunk) if len(x)]
    yield back.push(torch.cat(outputs)) if outputs else pending
    yield back.finish()
    timing.compute = time.perf_counter() - start


def _offline(
    model: Model, rate: int, reader: soundfile.SoundFile, source: Path, timing: Timing
) -> Iterator[Tensor]:
    start = time.perf_counter()
    x = torch.cat(list(_blocks(reader, source)))
    own = reader.samplerate
    with torch.inference_mode():
        x = x if own == rate else resample(x, own, rate)
        y = model(x[None, :, None])[0][0, :, 0]
        yield y if own == rate else resample(y, rate, own)
    timing.compute = time.perf_counter() - start
    timing.chunks.append(timing.compute)
