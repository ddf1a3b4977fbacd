"""Exported programs stream as the model does, for every causal layer; files, scripts and mistakes."""

import io
import re
import subprocess
import sys
from contextlib import redirect_stdout
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from lrnnx_app import export
from lrnnx_app.disk.atomic import fresh
from lrnnx_app.errors import LrnnxError, RunError, StreamError
from lrnnx_app.export import _chunk, _example, huggingface, onnx
from lrnnx_app.export import torch as pt2
from lrnnx_app.export._chunk import TOLERANCE, Chunk, difference, traced
from lrnnx_app.export._output import Options
from lrnnx_app.export.huggingface import HubModel
from lrnnx_app.models._base import Model
from lrnnx_app.models.unet import UNet
from lrnnx_app.registry import LAYERS
from lrnnx_app.spec import DataSpec
from tests.helpers import each_form, small, small_model
from tests.models.test_staged import staged
from tests.streaming.test_session import backbone, each_rule


def both(chunk: Chunk, tmp_path: Path) -> tuple[float, float]:
    """Differences of the program and of its ONNX form from the model."""
    program = traced(chunk)
    assert not [node for node in program.graph.nodes if "lrnnx" in str(node.target)]
    module = program.module()
    with torch.no_grad():
        own = difference(chunk, lambda inputs: module(*inputs))
    model = onnx.to_onnx(chunk, program)
    assert {opset.domain for opset in model.opset_import} <= {"", "ai.onnx"}
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return own, difference(chunk, onnx.session(path))


@each_rule
def test_programs_stream_as_the_model(name: str, rule: str, tmp_path: Path) -> None:
    chunk = Chunk(backbone(name, depth=1, pool="none", rule=rule).eval(), 3, timed=LAYERS[name].uses_dt)
    assert max(both(chunk, tmp_path)) <= TOLERANCE


@each_form
def test_every_model(name: str, form: dict, tmp_path: Path) -> None:
    model = small_model(name, **form)
    assert max(both(Chunk(model, 2 * model.hop), tmp_path)) <= TOLERANCE


def test_tokens_of_a_chunk_are_integers(tmp_path: Path) -> None:
    chunk = Chunk(backbone("s5", depth=1, tokens=True).eval(), 2)
    x, *_ = chunk.example(3)
    assert (x.dtype, x.shape) == (torch.int64, (3, 2))
    assert max(both(chunk, tmp_path)) <= TOLERANCE


@pytest.mark.parametrize("ending", [".pt2", ".onnx"])
def test_events_that_wait_for_their_group_are_state(ending: str, tmp_path: Path) -> None:
    run, path = FakeRun(staged(pools=[4]).float()), tmp_path / f"events{ending}"
    export.find(None, path)(run, path, Options(chunk=6, timed=True))
    assert len(script(path).stdout.strip("[ ]\n").split()) == 5, "one output for each class"


def test_a_program_that_ignores_its_events_is_found_out() -> None:
    chunk = Chunk(staged(pools=[4, 3]).float(), 1, timed=True)
    first, *_ = chunk(*chunk.example(3))
    assert difference(chunk, lambda inputs: [first, *inputs[2:]]) > TOLERANCE


def test_what_cannot_be_a_program_says_why() -> None:
    model = small_model("unet")
    with pytest.raises(StreamError, match="multiple of the model's hop of 32"):
        Chunk(model, 33)
    with pytest.raises(StreamError, match="evenly spaced"):
        Chunk(model, 32, timed=True)
    both_ways = backbone("lru", bidirectional=True)
    with pytest.raises(StreamError, match="bidirectional: false to stream"):
        Chunk(both_ways)


class FakeRun:
    """What the formats ask of a run."""

    timed, inference = False, ""

    def __init__(self, model: Model) -> None:
        self.model = model

    def task(self) -> "FakeRun":
        return self


def script(path: Path, *words: Path) -> subprocess.CompletedProcess[str]:
    """Run what was written beside a program, without lrnnx."""
    file = _example.beside(path)
    hidden = f"import sys; sys.modules['lrnnx_app'] = None; sys.argv = {['x', *map(str, words)]}"
    code = f"{hidden}; __file__ = {str(file)!r}; exec(open(__file__).read())"
    done = subprocess.run([sys.executable, "-c", code], cwd=path.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("ending", [".pt2", ".onnx"])
def test_the_script_runs_where_lrnnx_is_not(ending: str, tmp_path: Path) -> None:
    run, path = FakeRun(backbone("s5", depth=1, pool="none").eval()), tmp_path / f"model{ending}"
    lines = export.find(None, path)(run, path, Options(chunk=4))
    assert "differs from the model by" in lines[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, f"model_{ending[1:]}.py"])
    assert script(path).stdout.count("[") == 5  # four steps of three outputs


@pytest.mark.parametrize("ending", [".pt2", ".onnx"])
def test_the_script_streams_a_file_as_the_model_does(ending: str, tmp_path: Path) -> None:
    spec = DataSpec(1, 1, sample_rate=8000)
    model = UNet(spec, UNet.Config(channels=[4, 4], strides=[8, 4], layer=small("lru"))).eval()
    run, path = FakeRun(model), tmp_path / f"model{ending}"
    export.find(None, path)(run, path, Options())
    x = 0.1 * torch.randn(1000)
    soundfile.write(tmp_path / "x.wav", x.numpy(), 8000, "PCM_16")
    done = script(path, tmp_path / "x.wav", tmp_path / "y.wav")
    assert re.search(r"real-time factor \d+\.\d", done.stderr)  # of a busy machine any
    heard, found = (torch.from_numpy(soundfile.read(tmp_path / f"{z}.wav", dtype="float32")[0]) for z in "xy")
    with torch.inference_mode():
        expected, _ = model(heard[None, :, None])
    assert found.shape == (1000,)
    assert float((found - expected[0, :, 0]).abs().max()) < 2 / 2**15


@pytest.mark.parametrize("classes", [(), ("no", "yes")])
def test_the_script_reads_any_wav_or_says_why_not(classes: tuple[str, ...], tmp_path: Path) -> None:
    """By its own words, with a program in place of the runtime that hands on its input."""
    spec = DataSpec(1, len(classes) or 1, sample_rate=8000, classes=classes)
    model = UNet(spec, UNet.Config(channels=[4], strides=[8], layer=small("lru")))
    chunk, file = Chunk(model.eval(), 64), tmp_path / "m_pt2.py"
    _example.write(file, tmp_path / "m.pt2", "torch", chunk)
    text = file.read_text(encoding="utf-8")
    begin, end = text.index("torch.set_num_threads"), text.index("about = json")
    text = text.replace(text[begin:end], f"files = {{'lrnnx.json': {chunk.description()!r}}}\n")
    given = "inputs[0][0].repeat(2, 1)" if classes else "inputs[0][0]"
    call = "y, *state = (z.numpy() for z in program(*map(torch.tensor, inputs)))"
    assert call in text
    text = text.replace(call, f"y = np.array([{given}])")

    def run(*words: str) -> tuple[str, str]:
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out:
            patch.setattr(sys, "argv", ["m_pt2.py", *(str(tmp_path / word) for word in words)])
            try:
                exec(compile(text, str(file), "exec"), {"__name__": "m", "__file__": str(file)})
            except SystemExit as stop:
                return out.getvalue(), str(stop.code)
        return out.getvalue(), ""

    x = np.random.default_rng(0).uniform(-0.5, 0.5, (1000, 2)).astype(np.float32)
    names = ["y.wav"] * (not classes)
    encodings = ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")
    for form, subtype in product(("WAV", "WAVEX"), encodings):
        for channels in (1, 2):
            soundfile.write(tmp_path / "x.wav", x[:, :channels], 8000, subtype, format=form)
            out, error = run("x.wav", *names)
            assert not error, (form, subtype)
            if classes:
                assert out.strip() in classes
            else:
                y, rate = soundfile.read(tmp_path / "y.wav")
                assert (len(y), rate) == (1000, 8000)
                assert abs(y - x[:, :channels].mean(1)).max() < (0.01 if subtype == "PCM_U8" else 1e-4)
    assert run()[1].startswith("usage: python m_pt2.py IN.wav")
    assert "No such file" in run("gone.wav", *names)[1]
    for subtype in ("IMA_ADPCM", "ULAW"):
        soundfile.write(tmp_path / "x.wav", x, 8000, subtype)
        assert "a wav of encoding" in run("x.wav", *names)[1]
    (tmp_path / "x.wav").write_bytes(b"ID3")
    assert "no header of a wav" in run("x.wav", *names)[1]
    soundfile.write(tmp_path / "x.wav", x, 16000)
    assert "expected 8000 Hz, not 16000" in run("x.wav", *names)[1]


def test_weights_in_8_bits_are_small_and_near(tmp_path: Path) -> None:
    run = FakeRun(backbone("lru", d_model=256, depth=6).eval())
    onnx.export(run, tmp_path / "full.onnx", Options(chunk=4))
    lines = onnx.export(run, tmp_path / "int8.onnx", Options(chunk=4, int8=True))
    assert 0 < float(lines[0].rsplit(" ", 1)[1]) <= 0.05
    full, small = ((tmp_path / f"{name}.onnx").stat().st_size for name in ("full", "int8"))
    assert small < 0.6 * full


def test_nothing_is_kept_of_what_differs(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pt2, "difference", lambda *_: float("nan"))
    run = FakeRun(backbone("mingru", depth=1, pool="none").eval())
    with pytest.raises(LrnnxError, match="differs from the model by nan; nothing was kept"):
        pt2.export(run, tmp_path / "model.pt2", Options(chunk=2))
    assert not list(tmp_path.iterdir())


def test_a_folder_replaces_only_an_empty_one(tmp_path: Path, monkeypatch) -> None:
    target = tmp_path / "hub"
    target.mkdir()
    (target / "notes").write_text("mine")

    def replace(path: Path) -> None:
        with fresh(path, folder=True) as part:
            (part / "x").write_text("y")

    with pytest.raises(RunError, match="is there already"):
        replace(target)
    assert [p.name for p in tmp_path.rglob("*")] == ["hub", "notes"]
    (target / "notes").unlink()
    monkeypatch.chdir(target)
    replace(Path("."))
    assert [p.name for p in tmp_path.rglob("*")] == ["hub", "x"]


@pytest.mark.parametrize("mine", ["model.pt2", "model_pt2.py"])
def test_what_is_there_stays(mine: str, tmp_path: Path) -> None:
    (tmp_path / mine).write_text("mine")
    run = FakeRun(backbone("mingru", depth=1, pool="none").eval())
    with pytest.raises(RunError, match=f"{mine}: is there already"):
        pt2.export(run, tmp_path / "model.pt2", Options(chunk=2))
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(mine, "mine")]


def test_states_of_a_program_start_as_the_model_s() -> None:
    model = backbone("rglru", depth=1, pool="none").eval()
    chunk = Chunk(model, 2)
    values = {state.name: state.initial for state in chunk.states}
    assert sorted(set(values.values())) == [0.0, 1.0]  # a fresh stream says so by a one
    assert [tuple(leaf.shape[1:]) for leaf in chunk.start(2)] == [state.shape for state in chunk.states]


def test_hub_folder_loads_offline(denoiser: Path, lrnnx, tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    lrnnx("export", denoiser, "-o", folder, "--format", "huggingface").done()
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    model = HubModel.from_pretrained(str(folder), local_files_only=True).model
    weights = load_file(folder / "model.safetensors")
    assert all(torch.equal(weights[f"model.{k}"], v) for k, v in model.state_dict().items())
    card = (folder / "README.md").read_text()
    assert "state-space-model, streaming]" in card
    example = card.split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(example.replace("path or name of this folder", str(folder)), names)
    assert names["y"].shape == (1, model.hop, 1)


def test_card_of_a_model_in_both_directions_claims_no_stream() -> None:
    made = SimpleNamespace(model=backbone("lru", bidirectional=True), parameters=lambda: [])
    model = SimpleNamespace(name="backbone", layer=small("lru"))
    recipe = SimpleNamespace(name="x", about="", model=model, task=SimpleNamespace(name="classify"))
    run = SimpleNamespace(summary=dict, recipe=recipe, path=Path("x"))
    text = huggingface.card(run, made, "")
    assert "both directions" in text
    assert "StreamingSession" not in text
    assert "streaming" not in text.split("---")[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-o", "model.xyz"), "no format is known by that ending"),
        (("-o", "model", "--format", "onxx"), "did you mean 'onnx'?"),
        (("-o", "model.bin", "--format", "onnx"), "ending in .onnx"),
        (("-o", "gone/model.pt2"), "no such folder"),
        (("-o", "model.pt2", "--chunk", "7"), "multiple of the model's hop"),
    ],
    ids=str,
)
def test_mistakes_in_one_line(words, message, denoiser: Path, lrnnx, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    lrnnx("export", denoiser, *words).refuses(message)
    assert not list(tmp_path.iterdir())


def test_an_extra_that_is_missing_is_named(monkeypatch, denoiser: Path, lrnnx, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    lrnnx("export", denoiser, "-o", tmp_path / "x.onnx").refuses("pip install 'lrnnx-app[onnx]'")
    assert _chunk.CHUNKS > 1
