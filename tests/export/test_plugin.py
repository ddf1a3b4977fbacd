"""A plug-in gives in every host what `infer` gives for a file, as late as it says, in blocks of any size."""

import ctypes
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import soundfile
import torch
from torch import Tensor, nn

from lrnnx_app import export, recipe
from lrnnx_app.export._plugin import FILES, Instance
from lrnnx_app.runs import weights_file
from lrnnx_app.runs.run import build
from tests.export.test_c import COMPILERS, STRICT
from tests.helpers import TINY, compiles, relative, trained

pytestmark = pytest.mark.skipif(not compiles(), reason="this machine has no compiler, or none that works")
RATE, LATE = 48000, 1000  # of a host; more samples than any latency here
FORMATS = ("ladspa", "lv2")
EDGE = 500  # samples at the end of a file, where `infer` has silence and a host goes on
ROUNDING = 1e-5  # -100 dB
Begin = Callable[..., Instance]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose output is late by a hop."""
    path = tmp_path_factory.mktemp("plugin") / "small.safetensors"
    config = recipe.load(
        "denoise_small", ["model.d_model=8", "model.depth=1", "model.hop=64", "model.bands=4"]
    )
    torch.manual_seed(0)
    model = build(recipe.typed(config))[1].model
    nn.init.normal_(model.mask.weight)
    weights_file.write(path, model.state_dict(), model.spec, config)
    return path


@pytest.fixture(scope="module", params=FORMATS)
def built(request: pytest.FixtureRequest, run: Path) -> Path:
    path = run.parent / request.param
    lines = export.export_run(run, path, request.param)
    assert "µs for 768 samples" in lines[1]
    return path


@pytest.fixture
def begin(built: Path) -> Begin:
    """Begin a channel in a host of a rate."""
    return partial(Instance, built, export.module(built.name).INTERFACE)


def sound(count: int = 9000) -> Tensor:
    return 0.2 * torch.randn(count)


@pytest.mark.parametrize("rate", [RATE, 44100, 16000, 8000])
def test_it_gives_what_infer_gives_as_late_as_it_says(
    begin: Begin, run: Path, rate: int, lrnnx, tmp_path
) -> None:
    x, plugin = sound(), begin(rate)
    soundfile.write(tmp_path / "x.wav", x.numpy(), rate, "FLOAT")
    lrnnx("infer", run, tmp_path / "x.wav", "-o", tmp_path / "y.wav").done()
    expected = torch.from_numpy(soundfile.read(tmp_path / "y.wav", dtype="float32")[0])
    found = plugin.push(torch.cat((x, torch.zeros(LATE))))
    spectra = (torch.fft.rfft(z, 2 * len(found)) for z in (found, expected))
    late = int(torch.fft.irfft(next(spectra) * next(spectra).conj()).argmax())
    assert plugin.latency == late < LATE
    inside = len(x) - EDGE
    assert relative(found[late:][:inside], expected[:inside]) <= ROUNDING


def test_blocks_of_any_size_give_the_same_bits_also_after_a_reset(begin: Begin) -> None:
    x, plugin = sound(), begin(RATE)
    whole = plugin.push(x)
    for sizes in ([1] * len(x), [7, 1, 191, 193, 4096] * 2, [64] * 140):
        plugin.reset()
        found = torch.cat([plugin.push(part) for part in x[: sum(sizes)].split(sizes)])
        assert torch.equal(found, whole[: len(found)])


def test_a_bypass_is_the_input_as_late_and_a_switch_fades(begin: Begin) -> None:
    x = sound()
    wet, (dry, half, changing) = begin(RATE).push(x), (begin(RATE) for _ in range(3))
    off = 1 - dry.switch.value
    dry.switch.value, half.mix.value = off, 0.5
    late = torch.cat((torch.zeros(dry.latency), x))[: len(x)]
    assert torch.equal(dry.push(x), late)
    assert relative(half.push(x), (late + wet) / 2) <= ROUNDING
    before = changing.push(x[:5000])
    changing.switch.value = off
    share = (1 - torch.arange(1, 4001) / (0.01 * RATE)).clamp(min=0)
    assert torch.equal(before, wet[:5000])
    torch.testing.assert_close(
        changing.push(x[5000:]), late[5000:] + share * (wet - late)[5000:], rtol=0, atol=1e-4
    )


def test_what_is_no_sound_is_silence_and_what_is_too_loud_is_clipped(begin: Begin) -> None:
    wild = sound()
    mild, places = wild.clone(), slice(2000, 2500, 100)
    wild[places] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e-40, 99])
    mild[places] = torch.tensor([0.0, 0.0, 0.0, 0.0, 16])
    assert torch.equal(begin(RATE).push(wild), begin(RATE).push(mild))


def test_the_library_shows_its_host_one_name_and_leaves_its_arithmetic(built: Path, begin: Begin) -> None:
    begin(RATE)
    assert sys.float_info.min / 2 > 0
    library = ctypes.CDLL(str(built / f"{built.name}.so"))
    named = [*re.findall(r"\b(\w+)\(", (FILES / "plugin.h").read_text()), "model_push", "model_init"]
    shown = [name for name in (*named, f"{built.name}_descriptor") if hasattr(library, name)]
    assert shown == [f"{built.name}_descriptor"]
    assert "plugin_run" in named


def test_make_installs_what_it_builds(built: Path, begin: Begin, tmp_path: Path) -> None:
    if not shutil.which("make"):
        pytest.skip("this machine has no make")
    copy = shutil.copytree(built, tmp_path / "copy")
    (copy / f"{built.name}.so").unlink()
    subprocess.run(["make", "-C", copy, "install", f"HOME={tmp_path}"], check=True, capture_output=True)
    place = tmp_path / {"ladspa": ".ladspa", "lv2": ".lv2/lv2.lv2"}[built.name]
    x = sound(3000)
    installed = Instance(place, export.module(built.name).INTERFACE, RATE)
    assert relative(installed.push(x), begin(RATE).push(x)) <= ROUNDING
    assert (place / "manifest.ttl").exists() == (built.name == "lv2")


@pytest.mark.parametrize("by", COMPILERS)
def test_compilers_and_sanitizers_find_nothing(by: str, run: Path, tmp_path: Path) -> None:
    """In a library with both interfaces, which a host of our own loads."""
    for name in FORMATS:
        if not (run.parent / name).exists():
            export.export_run(run, run.parent / name, name)
        shutil.copytree(run.parent / name, tmp_path, dirs_exist_ok=True)
    library = [tmp_path / f"{name}.c" for name in ("model", "plugin", *FORMATS)]
    host = [Path(__file__).with_name("host.c"), *(f"-I{FILES / name}" for name in FORMATS), "-ldl"]
    for target, words in (("both.so", ["-shared", "-fPIC", *library]), ("host", host)):
        command = [by, *STRICT, *words, "-lm", "-o", tmp_path / target]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    x = sound().numpy().tobytes()
    for name in FORMATS:
        found = []
        for seed in ("0", "1"):
            command = [tmp_path / "host", tmp_path / "both.so", name, "44100", seed]
            done = subprocess.run(command, input=x, capture_output=True)
            assert (done.returncode, done.stderr) == (0, b"386")  # the latency
            found.append(done.stdout)
        assert found[0] == found[1] != x


def test_what_filters_no_sound_is_refused(lrnnx, folder: Path, run: Path, tmp_path: Path) -> None:
    pixels = trained(
        folder, "pixels", ["digits_lru", *TINY, "trainer.max_steps=1", "model.bidirectional=false"]
    )
    for source, more, said in (
        (pixels, (), "is for a model that filters sound"),
        (run, ("--timed",), "is for a model that filters sound"),
        (run, ("--chunk", 63), "multiple of the model's hop of 64"),
    ):
        for name in FORMATS:
            lrnnx("export", source, "-o", tmp_path / "p", "--format", name, *more).refuses(said)
            assert not list(tmp_path.iterdir())
