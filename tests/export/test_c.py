"""C streams as the model does, for every causal layer; by every compiler without a warning; its programs."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
import torch
from emx_onnx_cgen import compiler, errors

import lrnnx_app
from lrnnx_app.bench.denoisers import mixtures
from lrnnx_app.errors import LrnnxError, RunError, UserError
from lrnnx_app.export import c
from lrnnx_app.export._output import Options
from lrnnx_app.models._base import Model
from lrnnx_app.models.unet import UNet
from lrnnx_app.registry import LAYERS
from lrnnx_app.spec import DataSpec
from lrnnx_app.streaming.session import StreamingSession
from tests.export.test_export import FakeRun
from tests.helpers import compiles, each_form, refused, relative, small, small_model
from tests.streaming.test_session import backbone, each_rule

pytestmark = pytest.mark.skipif(not compiles(), reason="this machine has no compiler, or none that works")
COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)] or ["cc"]
STRICT = ["-std=c99", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined"]
STRICT += ["-fno-sanitize-recover=all"]
HOPS = 1000
ROUNDING = 1e-6


def written(model: Model, path: Path, **options: Any) -> list[str]:
    path.parent.mkdir(exist_ok=True)
    return c.export(FakeRun(model), path, Options(**options))


def pushed(path: Path, *signals: torch.Tensor) -> torch.Tensor:
    """The outputs for signals (1, T, …), one hop after another."""
    library = c.Library(path)
    push, hop = library.streams(1), library.sizes["HOP"]
    cuts = [slice(start, start + hop) for start in range(0, signals[0].shape[1], hop)]
    ys = [push([z[:, cut] for z in signals])[0] for cut in cuts]
    return ys[-1] if library.sizes["POOLED"] else torch.cat(ys, 1)


@each_rule
def test_a_thousand_pushes_of_every_layer(name: str, rule: str, tmp_path: Path) -> None:
    model, timed = backbone(name, depth=1, pool="none", rule=rule).eval(), LAYERS[name].uses_dt
    written(model, tmp_path / "layer.c", timed=timed)
    x, dt = torch.randn(1, HOPS, 5), 2 * torch.rand(1, HOPS)
    given = (x, dt) if timed else (x,)
    with torch.no_grad():
        expected, _ = model(x, dt=dt if timed else None)
    assert relative(pushed(tmp_path / "layer.c", *given), expected) <= ROUNDING


@each_form
def test_every_model(name: str, form: dict, tmp_path: Path) -> None:
    model = small_model(name, **form)
    lines = written(model, tmp_path / "model.c", chunk=2 * model.hop)
    assert re.search(r"differs from the model by [\d.e-]+$", lines[0])
    x = torch.randn(1, 40 * model.hop, model.spec.d_input)
    with torch.no_grad():
        assert relative(pushed(tmp_path / "model.c", x), model(x)[0]) <= 2 * ROUNDING


@pytest.mark.parametrize("name", ["denoise", "denoise_small"])
def test_shipped_denoisers_stream_speech_as_the_session_does(name: str, tmp_path: Path) -> None:
    model = lrnnx_app.load(name)
    written(model, tmp_path / "model.c")
    speech = torch.cat([clip.noisy for clip in mixtures(None, 1)])
    x = speech[: HOPS * model.hop].reshape(1, -1, 1)
    assert x.shape[1] == HOPS * model.hop
    session = StreamingSession(model)
    streamed = torch.cat([session.push(part) for part in x.split(model.hop, 1)], 1)
    assert relative(pushed(tmp_path / "model.c", x), streamed) <= ROUNDING


def test_weights_in_8_bits_are_small(tmp_path: Path) -> None:
    model = backbone("lru", d_model=256, depth=3).eval()
    told = [written(model, tmp_path / name / "model.c", int8=name == "int8")[1] for name in ("full", "int8")]
    full, few = (int(re.findall(r"([\d,]+) of constants", line)[0].replace(",", "")) for line in told)
    assert few < 0.6 * full


def sound(**options: Any) -> Model:
    spec = DataSpec(1, options.pop("outputs", 1), sample_rate=8000, **options)
    return UNet(spec, UNet.Config(channels=[4], strides=[32], layer=small("lru"))).eval()


def built(folder: Path, name: str, by: str) -> Path:
    """The program of main.c, which ends at a mistake with memory or arithmetic."""
    program = folder / f"{name}_{by}"
    command = [by, *STRICT, folder / f"{name}.c", folder / "main.c", "-lm", "-o", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return program


def test_the_program_streams_a_file_as_the_model_does(tmp_path: Path) -> None:
    model = sound()
    written(model, tmp_path / "my-voice.c")
    x = 0.1 * torch.randn(1000, 2)
    soundfile.write(tmp_path / "x.wav", x.numpy(), 8000, "PCM_16", format="WAVEX")
    for by in COMPILERS:
        program = built(tmp_path, "my-voice", by)
        done = subprocess.run([program, "x.wav", "y.wav"], cwd=tmp_path, capture_output=True, text=True)
        assert re.fullmatch(r"[\d.]+ ms a push, real-time factor \d+\.\d+\n", done.stderr)
        heard, found = (soundfile.read(tmp_path / f"{z}.wav", dtype="float32")[0] for z in "xy")
        with torch.no_grad():
            expected, _ = model(torch.from_numpy(heard.mean(1))[None, :, None])
        assert found.shape == (1000,)
        assert abs(found - expected[0, :, 0].numpy()).max() < 2 / 2**15
        for words, said in (
            ((), "usage: ./my_voice in.wav out.wav"),
            (("gone.wav", "y.wav"), "gone.wav: cannot be read"),
            (
                ("my-voice.c", "y.wav"),
                "my-voice.c: expected a wav of 16-bit PCM with any channels at 8000 Hz",
            ),
            (("x.wav", "gone/y.wav"), "gone/y.wav: cannot be written"),
        ):
            done = subprocess.run([program, *words], cwd=tmp_path, capture_output=True, text=True)
            assert (done.returncode, done.stderr) == (2, f"{said}\n")


def test_the_program_names_a_class(tmp_path: Path) -> None:
    model = sound(outputs=2, classes=("no", 'y"é\\?'))
    written(model, tmp_path / "model.c")
    x = 0.1 * torch.randn(96)
    soundfile.write(tmp_path / "x.wav", x.numpy(), 8000, "PCM_16")
    for by in COMPILERS:
        done = subprocess.run([built(tmp_path, "model", by), tmp_path / "x.wav"], capture_output=True)
        assert done.stdout.decode().strip() in model.spec.classes


@pytest.mark.parametrize("tokens", [False, True])
def test_the_program_reads_numbers(tokens: bool, tmp_path: Path) -> None:
    model = backbone("s5", depth=1, pool="none", tokens=tokens).eval()
    written(model, tmp_path / "3.c", timed=not tokens)
    x = torch.randint(5, (1, 7)) if tokens else torch.randn(1, 7, 5)
    dt = None if tokens else torch.rand(1, 7)
    rows = x[0][:, None] if dt is None else torch.cat((dt[0][:, None], x[0]), 1)
    given = "\n".join(" ".join(map(str, row)) for row in rows.tolist())
    wrong = f"{given}\n5" if tokens else f"-{given}"
    where = (
        "step 7: expected steps below 5" if tokens else "step 0: expected steps as numbers, dt before each"
    )
    for by in COMPILERS:
        program = built(tmp_path, "3", by)
        done = subprocess.run([program], input=given, capture_output=True, text=True)
        assert re.fullmatch(r"\d+\.\d\d us a step\n", done.stderr)
        found = torch.from_numpy(np.loadtxt(done.stdout.splitlines(), dtype=np.float32))
        with torch.no_grad():
            assert relative(found, model(x, dt=dt)[0][0]) <= ROUNDING
        done = subprocess.run([program], input=wrong, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (2, f"standard input: {where}\n")


@pytest.mark.parametrize("mine", ["model.c", "model.h", "main.c", "Makefile"])
def test_what_is_there_is_told_before_any_work(mine: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(c, "program", Mock(side_effect=AssertionError))
    (tmp_path / mine).write_text("mine")
    with refused(RunError, f"{mine}: is there already"):
        written(backbone("mingru", depth=1).eval(), tmp_path / "model.c")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(mine, "mine")]


def test_a_stream_heals_alone_when_a_number_is_not_finite(tmp_path: Path) -> None:
    model = backbone("lru", depth=1, pool="none").eval()
    written(model, tmp_path / "model.c")
    push = c.Library(tmp_path / "model.c").streams(2)
    x = torch.randn(2, 4, 5)
    wild = x.clone()
    wild[0, 1, 2] = torch.nan
    ys = torch.cat([push([wild[:, t : t + 1]])[0] for t in range(4)], 1)
    with torch.no_grad():
        whole, later = model(x)[0], model(x[:1, 2:])[0]
    assert not ys[0, 1].any()
    assert relative(ys[0, 2:], later[0]) <= ROUNDING
    assert relative(ys[1], whole[1]) <= ROUNDING


def test_mistakes_and_missing_tools_are_told_and_nothing_is_written(tmp_path: Path, monkeypatch) -> None:
    model = backbone("mingru", depth=1).eval()
    with refused(RunError, "another than main.c"):
        written(model, tmp_path / "main.c")
    with monkeypatch.context() as patch, refused(UserError, "apt install gcc"):
        patch.setenv("CC", "no-such-compiler")
        written(model, tmp_path / "model.c")
    for text in ("int x;", "\nvoid model_hop(const float x[1]) {\n    goto end;\n}\n"):
        with monkeypatch.context() as patch:
            patch.setattr(compiler.Compiler, "compile", lambda *_, text=text: text)
            with pytest.raises(LrnnxError, match="C of another form"):
                written(model, tmp_path / "model.c")
    with monkeypatch.context() as patch, refused(UserError, "no C for this model: Unsupported op Odd"):
        patch.setattr(compiler, "Compiler", Mock(side_effect=errors.UnsupportedOpError("Unsupported op Odd")))
        written(model, tmp_path / "model.c")
    assert not list(tmp_path.iterdir())
