"""What arrives in practice: silence, glitches, headers in pipes, odd encodings, folders with leftovers."""

import io
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from lrnnx_app.data.audio_io import length_of, read_mono
from lrnnx_app.errors import DataError
from lrnnx_app.models.backbone import Backbone
from lrnnx_app.streaming import sinks
from lrnnx_app.streaming.health import STATES_EVERY
from lrnnx_app.streaming.numbers import LOUDEST, Flushing
from lrnnx_app.streaming.session import StreamingSession
from lrnnx_app.streaming.sinks import AudioFile
from lrnnx_app.streaming.sources import Pipe
from tests.helpers import relative, small
from tests.streaming.conftest import RATE, SPECS
from tests.streaming.test_streaming import small_unet, wave


def test_subnormal_numbers_are_zero_in_a_scope_and_only_there() -> None:
    tiny = torch.full((1,), 1e-39)
    with Flushing():
        assert (tiny * 1.0).count_nonzero() == 0
        with Flushing():
            pass
        assert (tiny * 1.0).count_nonzero() == 0, "an inner scope does not end the outer one"
    assert (tiny * 1.0).count_nonzero() == 1


def test_a_hop_of_a_session_flushes_and_leaves_its_caller_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    session, seen = StreamingSession(small_unet()), []
    tiny = torch.full((1,), 1e-39)
    model = session._model.forward
    monkeypatch.setattr(
        session._model,
        "forward",
        lambda *a, **k: (seen.append(int((tiny * 1.0).count_nonzero())), model(*a, **k))[1],
    )
    session.push(torch.zeros(1, session.chunk, 1))
    assert seen == [0]
    assert (tiny * 1.0).count_nonzero() == 1


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30])
@pytest.mark.parametrize("size", [512, 300])
def test_one_bad_sample_costs_its_own_stream_a_restart_at_most(bad: float, size: int) -> None:
    """The stream ends where one that began after the glitch would; its neighbour does not notice."""
    model = small_unet()
    session, alone, later = (StreamingSession(model, n) for n in (2, 1, 1))
    x = 0.1 * torch.randn(2, 12 * size, 1)
    x[0, size + 5] = bad
    ys = torch.cat([session.push(part) for part in x.split(size, 1)], 1)
    expected = torch.cat([alone.push(part) for part in x[1:].split(size, 1)], 1)
    assert ys.isfinite().all()
    assert relative(ys[1:], expected) < 1e-6
    assert session.restarts == [int(np.isnan(bad)), 0]
    if np.isnan(bad):  # of this the clamped sample takes away, and the state forgets
        begin = -(-(size + 6) // 512) * 512
        tail = later.push(x[:1, begin:])
        assert relative(ys[:1, -512:], tail[:, ys.shape[1] - begin - 512 : ys.shape[1] - begin]) < 1e-5


def test_a_loud_sample_is_taken_for_the_loudest() -> None:
    model = small_unet()
    x = 0.1 * torch.randn(1, 512, 1)
    bounded = x.clone()
    x[0, 7], bounded[0, 7] = 1e30, LOUDEST
    assert torch.equal(StreamingSession(model).push(x), StreamingSession(model).push(bounded))


def test_a_state_that_hides_from_the_output_is_found() -> None:
    session = StreamingSession(small_unet(), 2, graph=False)
    session._health.report([torch.tensor([[0.0], [torch.inf]])] * 1)
    assert session._health.told() is None
    for _ in range(STATES_EVERY):
        session._health.report([torch.tensor([[0.0], [torch.inf]])])
    found = session._health.told()
    assert found is not None
    assert found.tolist() == [False, True]
    assert session._health.told() is None
    assert session.restarts == [0, 1]


def test_what_is_beyond_the_end_of_a_short_row_is_not_looked_at() -> None:
    config = Backbone.Config(d_model=4, depth=1, pool="none", layer=small("lru"))
    session = StreamingSession(Backbone(SPECS["classifier"], config), 2, 8)
    y = torch.zeros(2, 8, 3)
    y[0, 5:] = torch.nan
    session._health.seen(y, torch.ones(2, dtype=torch.bool), torch.tensor([5, 8]))
    assert not session._health._bad.any()
    session._health.seen(y, torch.ones(2, dtype=torch.bool), torch.tensor([6, 8]))
    assert session._health._bad.tolist() == [True, False]
    session._health._bad.zero_()
    session._health.seen(y, torch.tensor([False, True]), None)
    assert not session._health._bad.any(), "a stream that pauses is not judged"


def piped(content: bytes, **options) -> tuple[int, np.ndarray]:
    read, write = os.pipe()
    try:
        os.write(write, content)
        os.close(write)
        pipe = Pipe(read, **{"rate": RATE, "channels": 1, "form": "s16le"} | options)
        return pipe.rate, torch.cat([torch.zeros(0), *pipe]).numpy()
    finally:
        os.close(read)


@pytest.mark.parametrize("form", ["WAV", "WAVEX", "RF64"])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_a_wav_in_a_pipe_is_what_the_file_is(form: str, subtype: str) -> None:
    if not soundfile.check_format(form, subtype):
        return
    file = io.BytesIO()
    soundfile.write(file, np.stack((wave(0.05, 8000), wave(0.05, 8000, 1)), 1), 8000, subtype, format=form)
    expected = soundfile.read(io.BytesIO(file.getvalue()), dtype="float32")[0].mean(1)
    rate, found = piped(file.getvalue())
    assert (rate, len(found)) == (8000, 400)
    np.testing.assert_allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_wav_of_unknown_length_goes_on_to_the_end_of_the_pipe(size: int) -> None:
    header = b"RIFF\xff\xff\xff\xffWAVE" + struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    header += struct.pack("<4sI3sx", b"LIST", 3, b"abc") + struct.pack("<4sI", b"data", size)
    samples = np.arange(1000, dtype="<i2")
    assert np.array_equal(piped(header + samples.tobytes())[1] * 32768, samples)


def test_what_follows_the_samples_of_a_wav_is_not_heard() -> None:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(100), RATE, format="WAV")
    assert len(piped(file.getvalue() + b"LIST\4\0\0\0abcd")[1]) == 100


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"fLaC" + bytes(99), "begins as flac"),
        (b"OggS" + bytes(99), "begins as ogg"),
        (b"ID3\4" + bytes(99), "begins as mp3"),
        (b"RIFF\0\0\0\0AVI " + bytes(99), "no header of a wav"),
        (b"RIFF\0\0\0\0WAVEfmt \x10\0", "ends within its header"),
        (b"RIFF\0\0\0\0WAVE" + struct.pack("<4sIHHIIHH", b"fmt ", 16, 17, 1, 8000, 1, 256, 4), "encoding 17"),
    ],
)
def test_what_else_a_pipe_brings_is_said(content: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        piped(content)


@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_a_pipe_shorter_than_a_header_is_raw(count: int) -> None:
    assert len(piped(bytes(count))[1]) == count // 2


def test_a_sample_that_is_no_number_is_placed_from_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrnnx_app.streaming.sources.READ_BYTES", 400)
    x = np.zeros(2000, "<f4")
    x[1500] = np.nan
    with pytest.raises(DataError, match="sample 1500 "):
        piped(x.tobytes(), form="f32le")


def test_a_flac_of_unknown_length_is_read_whole(tmp_path: Path) -> None:
    path, x = tmp_path / "a.flac", wave(0.3)
    soundfile.write(path, x, RATE)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the header's count of samples: 36 bits, 0 where it is unknown
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert length_of(path) == len(x)
    assert relative(read_mono(path, RATE), torch.from_numpy(x)) < 1e-4


@pytest.mark.parametrize(
    ("name", "subtype", "expected"),
    [
        ("y.wav", "FLOAT", "FLOAT"),
        ("y.wav", "PCM_24", "PCM_24"),
        ("y.wav", "IMA_ADPCM", "PCM_16"),
        ("y.wav", "GSM610", "PCM_16"),
        ("y.wav", "MPEG_LAYER_III", "PCM_16"),
        ("y.flac", "FLOAT", "PCM_24"),
        ("y.flac", "PCM_32", "PCM_24"),
        ("y.ogg", "PCM_16", "VORBIS"),
        ("y.WAV", None, "PCM_16"),
    ],
)
def test_an_output_has_the_length_and_a_sensible_encoding(
    name: str, subtype: str | None, expected: str, tmp_path: Path
) -> None:
    sink = AudioFile(tmp_path / name, RATE, subtype)
    x = torch.from_numpy(1.9 * wave(0.1)).clone()
    x[3] = 1.5
    sink.write(x)
    sink.close()
    found = soundfile.info(tmp_path / name)
    assert (found.subtype, found.frames) == (expected, len(x))
    if name.endswith(".wav"):
        y = torch.from_numpy(soundfile.read(tmp_path / name, dtype="float32")[0])
        assert (y - (x if expected == "FLOAT" else x.clamp(-1, 1))).abs().max() < 1e-4


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "DOUBLE"])
def test_a_wav_beyond_its_header_becomes_an_rf64(
    subtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "WAV_BYTES", 2500)
    x = torch.from_numpy(wave(0.2))
    for limit in (False, True):
        sink = AudioFile(tmp_path / f"{limit}.wav", RATE, subtype)
        for part in x.split(500 if limit else len(x)):
            sink.write(part)
        sink.close()
        monkeypatch.setattr(sinks, "WAV_BYTES", 2500)
    found = soundfile.info(tmp_path / "True.wav")
    assert (found.format, found.subtype, found.frames) == ("RF64", subtype, len(x))
    expected, y = (soundfile.read(tmp_path / f"{limit}.wav")[0] for limit in (False, True))
    assert np.array_equal(y, expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["False.wav", "True.wav"]


def test_one_bad_file_of_a_folder_stops_no_other(lrnnx, runs: dict[str, Path], tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    out.mkdir()
    (folder / "__MACOSX").mkdir(parents=True)
    for i in range(3):
        soundfile.write(folder / f"{i}.wav", wave(0.1, seed=i), RATE)
    (folder / "1.wav").write_bytes(b"RIFF and no more")
    soundfile.write(folder / "3.wav", np.full(1000, np.nan), RATE, "FLOAT")
    (folder / "._0.wav").write_bytes(b"\0\5\26\7" + bytes(100))
    (folder / "__MACOSX" / "0.wav").write_bytes(bytes(100))
    for more in ((), ("--offline",)):
        code, _, error = lrnnx("infer", runs["denoiser"], folder, "-o", out, "--device", "cpu", *more)
        assert code == 2
        assert "2 of 4 inputs failed" in error
        assert "1.wav: not readable as audio" in error
        assert "3.wav: sample 0 is not a finite number" in error
        assert sorted(path.name for path in out.iterdir()) == ["0.wav", "2.wav"]


def test_the_delay_of_a_conversion_is_reported(lrnnx, runs, tmp_path: Path, monkeypatch) -> None:
    import json

    for rate, most in ((RATE, 0), (11025, 2.5), (22050, 2.5)):
        (tmp_path / "x.raw").write_bytes((wave(0.2, rate) * 32768).astype("<i2").tobytes())
        with (tmp_path / "x.raw").open() as pipe:
            monkeypatch.setattr(sys, "stdin", pipe)
            words = ("--rate", rate, "--json", "-o", tmp_path / "y.wav", "--device", "cpu")
            out = lrnnx("infer", runs["denoiser"], "-", *words).done().out
        found = json.loads(out.splitlines()[-1])
        assert found.get("resampling_ms", 0) <= most
        assert found["algorithmic_ms"] <= 16 + most
        assert soundfile.info(tmp_path / "y.wav").frames == round(0.2 * rate)
