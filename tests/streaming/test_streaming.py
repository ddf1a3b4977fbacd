"""Streams of audio and classes: resampling in blocks, slots, pipes, interrupts, flat memory."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torchaudio.functional import resample

from lrnnx_app.data.resample import Resampler
from lrnnx_app.models.unet import UNet
from lrnnx_app.runs.run import Run
from lrnnx_app.spec import DataSpec
from lrnnx_app.streaming.session import StreamingSession
from lrnnx_app.streaming.sinks import AudioFile
from lrnnx_app.streaming.slots import Pace, stream
from lrnnx_app.streaming.sources import Resampled, Steps, file_blocks
from lrnnx_app.streaming.tracks import AudioTrack, OutputTrack, in_parts
from tests.helpers import relative, small
from tests.streaming.conftest import RATE, SPECS


def wave(seconds: float, rate: int = RATE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * rate)).astype(np.float32)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        *((16000, 16000), (44100, 16000), (16000, 44100), (48000, 16000), (8000, 16000)),
        *((11025, 16000), (16000, 11025), (22050, 16000)),
    ],
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
    whole = x if source == target else resample(x.double(), source, target).float()
    assert sum(map(len, parts)) == len(whole)
    assert relative(torch.cat(parts), whole) < 1e-5


@pytest.mark.parametrize("source", [11025, 22050, 44100, 44101, 8000, 16001])
@pytest.mark.parametrize("back", [False, True])
def test_an_output_waits_a_millisecond_at_most_for_its_inputs(source: int, back: bool) -> None:
    source, target = (16000, source) if back else (source, 16000)
    converter, given = Resampler(source, target), 0
    assert converter.delay <= 1.1e-3
    for taken in range(1, 400):
        given += len(converter.push(torch.zeros(1)))
        assert given / target >= taken / source - converter.delay


def small_unet() -> UNet:
    return UNet(SPECS["denoiser"], UNet.Config(channels=[4], strides=[512], layer=small("lru")))


def track(path: Path, target: Path) -> AudioTrack:
    reader = soundfile.SoundFile(path)
    source = Resampled(file_blocks(reader, path), reader.samplerate, RATE)
    return AudioTrack(target.name, source, AudioFile(target, reader.samplerate), reader.samplerate, RATE)


def test_a_long_file_streams_with_flat_memory(tmp_path: Path) -> None:
    session = StreamingSession(small_unet(), chunk=16 * 512)
    rng = np.random.default_rng(0)
    peaks = []
    for minutes in (1, 10):
        path = tmp_path / f"{minutes}.wav"
        with soundfile.SoundFile(path, "w", RATE, 1) as file:
            for _ in range(minutes * 60):
                file.write(rng.uniform(-0.5, 0.5, RATE))
        timing = stream(session, [track(path, tmp_path / "out.wav")], lambda _: None)
        assert soundfile.info(tmp_path / "out.wav").frames == timing.steps == minutes * 60 * RATE
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    assert peaks[1] - peaks[0] < 20, "MiB that nine more minutes (35 MiB of samples) added"


def test_files_in_slots_equal_files_alone(lrnnx, runs: dict[str, Path], tmp_path: Path) -> None:
    """Of several rates and lengths, more of them than slots, one that ends with a chunk."""
    folder, together = tmp_path / "in", tmp_path / "together"
    folder.mkdir()
    together.mkdir()
    for i, (seconds, rate) in enumerate(
        [(0.3, RATE), (0.128, RATE), (0.2, 8000), (0.41, 44100), (1e-4, RATE)]
    ):
        soundfile.write(folder / f"{i}.wav", wave(seconds, rate, i), rate, "FLOAT")
    code, out, error = lrnnx(
        "infer", runs["denoiser"], folder, "-o", together, "--slots", 2, "--json", "--device", "cpu"
    )
    assert code == 0, error
    lines = [json.loads(line) for line in out.splitlines()]
    assert sorted(Path(line["file"]).name for line in lines[:-1]) == [f"{i}.wav" for i in range(5)]
    assert lines[-1]["slots"] == 2
    assert lines[-1]["latency_ms"] > lines[-1]["algorithmic_ms"] > 16
    for i in range(5):
        alone = tmp_path / f"{i}.wav"
        assert lrnnx("infer", runs["denoiser"], folder / f"{i}.wav", "-o", alone, "--offline")[0] == 0
        (expected, rate), (found, same) = soundfile.read(alone), soundfile.read(together / f"{i}.wav")
        assert rate == same
        assert found.shape == expected.shape
        assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)


def test_real_time_pace_and_its_misses(lrnnx, runs: dict[str, Path], tmp_path: Path, monkeypatch) -> None:
    soundfile.write(tmp_path / "x.wav", wave(0.32), RATE)
    words = ("infer", runs["denoiser"], tmp_path / "x.wav", "-o", tmp_path / "y.wav", "--realtime", "--json")
    start = time.perf_counter()
    lrnnx(*words).done()
    assert time.perf_counter() - start > 0.32
    monkeypatch.setattr(Pace, "late", lambda pace: 0.5)
    assert json.loads(lrnnx(*words)[1].splitlines()[-1])["misses"] == 20 + 1
    assert "misses" not in json.loads(
        lrnnx(*(word for word in words if word != "--realtime"))[1].splitlines()[-1]
    )


def test_an_empty_pipe_has_no_real_time_factor(lrnnx, runs, monkeypatch) -> None:
    with Path(os.devnull).open() as pipe:
        monkeypatch.setattr(sys, "stdin", pipe)
        code, out, error = lrnnx("infer", runs["denoiser"], "-", "--json")
    report = json.loads(error)
    assert (code, out, report["steps"], "real_time_factor" in report) == (0, "", 0, False)


def test_running_classes_end_at_the_offline_ones(lrnnx, runs, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "x.raw").write_bytes((wave(0.1) * 32768).astype("<i2").tobytes())
    with (tmp_path / "x.raw").open() as pipe:
        monkeypatch.setattr(sys, "stdin", pipe)
        code, out, error = lrnnx(
            "infer", runs["classifier"], "-", "--json", "--device", "cpu", "--plot", tmp_path / "p.png"
        )
    assert code == 0, error
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["seconds"] for line in lines] == [0.016, 0.032, 0.048, 0.064, 0.08, 0.096, 0.1]
    x = torch.from_numpy((wave(0.1) * 32768).astype("<i2").astype(np.float32) / 32768)
    with torch.inference_mode():
        logits, _ = Run(runs["classifier"]).task().model(x[None, :, None])
    shares = torch.tensor([lines[-1]["classes"][name] for name in SPECS["classifier"].classes])
    assert relative(shares, logits[0].softmax(-1)) < 1e-5
    assert "real_time_factor" in json.loads(error)
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_files_of_events_in_slots_equal_each_in_one_go(lrnnx, runs: dict[str, Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folder, found = tmp_path / "in", tmp_path / "classes.jsonl"
    folder.mkdir()
    for i, count in enumerate((40, 17, 32)):
        columns = {"t": np.sort(rng.integers(0, 9000, count)), "x": rng.integers(0, 2, count)}
        columns |= {"y": rng.integers(0, 16, count), "p": rng.integers(0, 2, count)}
        if i:
            np.savez(folder / f"{i}.npz", allow_pickle=False, **columns)
        else:
            rows = [",".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
            (folder / f"{i}.csv").write_text("\n".join(["t,x,y,p", *rows]))
    words = ("infer", runs["events"], folder, "--json", "-o", found, "--device", "cpu")
    lines = {}
    for more in (("--offline",), ("--slots", 2, "--steps", 10, "--running", "--plot", tmp_path / "p.png")):
        out = lrnnx(*words, *more).done().out
        assert "peak_mib" in json.loads(out)
        lines[more[0]] = [json.loads(line) for line in found.read_text().splitlines()]
    last = {line["file"]: line for line in lines["--slots"]}
    assert len(lines["--slots"]) > len(last) == len(lines["--offline"]) == 3
    for line in lines["--offline"]:
        assert line["classes"] == pytest.approx(last[line["file"]]["classes"], abs=1e-5)
        assert 0 < last[line["file"]]["time"] < 9
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_tracks_with_gaps_in_time_share_a_session() -> None:
    """Two slots, three tracks of event data; each ends where it would alone."""
    from lrnnx_app.models.backbone import Backbone

    model = Backbone(DataSpec(2, 3), Backbone.Config(d_model=4, depth=2, layer=small("event_ssm")))
    data = [Steps(torch.randn(n, 2), torch.rand(n)) for n in (20, 7, 16)]
    found: dict[str, torch.Tensor] = {}
    times: dict[str, float] = {}

    def tracks() -> Iterator[OutputTrack]:
        for i, steps in enumerate(data):

            def done(at: float, y: torch.Tensor, name: str = str(i)) -> None:
                found[name], times[name] = y, at

            yield OutputTrack(str(i), in_parts(steps), done)

    stream(StreamingSession(model, 2, 8), tracks(), lambda _: None)
    for i, steps in enumerate(data):
        assert steps.dt is not None
        with torch.inference_mode():
            alone, _ = model(steps.x[None], dt=steps.dt[None])
        assert relative(found[str(i)], alone[0]) < 1e-5
        assert abs(times[str(i)] - float(steps.dt.sum())) < 1e-4


def filter_process(run: Path, *words: object, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "lrnnx_app.cli", "infer", run, "-", "--device", "cpu", *words]
    return subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def test_a_filter_gives_each_hop_as_soon_as_it_can(runs: dict[str, Path]) -> None:
    """Raw PCM through a pipe: what went in comes back before more goes in; report on stderr."""
    x = wave(0.1).astype("<f4")
    process = filter_process(runs["denoiser"], "--format", "f32le", stdout=subprocess.PIPE)
    heard = b""
    for start in range(0, 1536, 256):
        process.stdin.write(x[start : start + 256].tobytes())
        process.stdin.flush()
        while len(heard) < 4 * (start + 256):
            heard += os.read(process.stdout.fileno(), 4 * (start + 256) - len(heard))
    process.stdin.write(x[1536:].tobytes() + b"?")  # and a part of a sample
    process.stdin.close()
    heard += process.stdout.read()
    report = process.stderr.read().decode()
    assert process.wait() == 0, report
    process.stdout.close()
    process.stderr.close()
    assert "look-ahead 15.94 ms" in report
    y = torch.from_numpy(np.frombuffer(heard, "<f4").copy())
    with torch.inference_mode():
        expected, _ = Run(runs["denoiser"]).task().model(torch.from_numpy(x)[None, :, None])
    assert y.shape == (1600,)
    assert relative(y, expected[0, :, 0]) < 1e-5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_a_valid_file(
    number: signal.Signals, runs: dict[str, Path], tmp_path: Path
) -> None:
    target = tmp_path / "out.wav"
    process = filter_process(runs["denoiser"], "-o", target, stdout=subprocess.DEVNULL)
    process.stdin.write((wave(0.4) * 32768).astype("<i2").tobytes())
    process.stdin.flush()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (tmp_path / ".out.part.wav").exists():
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(number)
    assert process.wait(30) == 130, process.stderr.read()
    found = soundfile.info(target)
    assert found.samplerate == RATE
    assert 256 <= found.frames <= 0.4 * RATE
    assert [path.name for path in tmp_path.iterdir()] == ["out.wav"]
    process.stdin.close()
    process.stderr.close()


def test_a_reader_that_leaves_ends_the_filter_quietly(runs: dict[str, Path]) -> None:
    process = filter_process(runs["denoiser"], stdout=subprocess.PIPE)
    process.stdin.write(bytes(4 * 512))
    process.stdin.flush()
    process.stdout.read(1024)
    process.stdout.close()
    process.stdin.write(bytes(4 * 512))
    process.stdin.close()
    assert process.wait(30) == 0
    assert "Traceback" not in process.stderr.read().decode()
    process.stderr.close()


def test_mistakes_of_streams_are_said(lrnnx, runs: dict[str, Path], tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", wave(0.1), RATE)
    run, x, y = runs["denoiser"], tmp_path / "x.wav", tmp_path / "y.wav"
    for words, hint in [
        ((run, "-", x), "no other input"),
        ((run, "-", "--offline"), "--offline"),
        ((run, "-", "--format", "s16"), "s16le"),
        ((run, "-", "--rate", "0"), "--rate"),
        ((run, x, "-o", y, "--chunk-ms", "16", "--steps", "256"), "one of them"),
        ((run, x, "-o", y, "--steps", "100"), "256 steps (16 ms)"),
        ((run, x, "-o", y, "--plot", tmp_path / "gone" / "p.png"), "gone"),
        ((run, x, x, "-o", "-"), "one input"),
        ((run, x, x, "-o", tmp_path), "is the input"),
        ((runs["classifier"], x, "-o", x), "is the input"),
        ((run, x, "-o", y, "--threads", "0"), "--threads"),
        ((runs["events"], x, "--realtime"), "have no rate"),
        ((runs["events"], "-"), "expected files"),
    ]:
        lrnnx("infer", *words).refuses(hint)
    assert not y.exists()
