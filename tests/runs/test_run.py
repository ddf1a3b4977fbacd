"""From command to run folder: train, resume, evaluate, infer, export; and what users get wrong."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from data_modules._mixtures import prompts
from lrnnx_app import recipe
from lrnnx_app.export.safetensors import load
from lrnnx_app.ops._examples import Sizes
from lrnnx_app.ops._table import TOLERANCE
from lrnnx_app.ops._timed import TIMED
from lrnnx_app.registry import shipped
from lrnnx_app.registry import trained as shipped_models
from lrnnx_app.reports import doctor, show
from lrnnx_app.runs import metrics
from lrnnx_app.runs.run import Run
from lrnnx_app.tasks.denoise import si_snr
from tests.helpers import DENOISE, SMALL, cut, trained

DIGITS = ["digits_lru", *SMALL, "model.d_model=8", "model.depth=1", "data.batch_size=600"]


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Path:
    return trained(folder, "classifier", DIGITS)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.wav"
    wave = np.random.default_rng(0).uniform(-0.3, 0.3, (44100 * 2 + 77, 2))
    soundfile.write(path, wave, 44100, subtype="FLOAT")
    return path


def test_run_folder_holds_everything(denoiser: Path, classifier: Path) -> None:
    for run, plot in ((denoiser, "spectrogram_0_*.png"), (classifier, "confusion_matrix.png")):
        assert list((run / "plots").glob(plot))
        assert (run / "plots" / "learning_curves.png").stat().st_size > 1000
        assert list(run.glob("events.out.tfevents.*"))
        for name in ("best", "last"):
            content = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
            assert content["spec"]["d_input"] == 1
        summary = json.loads((run / "summary.json").read_text())
        assert summary["steps"] == 3
        assert summary["parameters"] > 0
        assert summary["samples_per_second"] > 0
        assert {"torch", "lightning"} < set(summary["versions"])
        rows = (run / "metrics.csv").read_text().splitlines()
        assert len(rows) > 3
    assert "test/si_snr_improvement" in json.loads((denoiser / "summary.json").read_text())["metrics"]


def test_tensorboard_has_sounds_and_pictures(denoiser: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags: dict[str, set[str]] = {"scalars": set(), "images": set(), "audio": set()}
    best = torch.load(denoiser / "checkpoints" / "best.ckpt", weights_only=True)["global_step"]
    steps: set[int] = set()
    for path in denoiser.glob("events.out.tfevents.*"):
        events = EventAccumulator(str(path))
        events.Reload()
        for kind, found in tags.items():
            found |= set(events.Tags()[kind])
        steps |= {image.step for tag in events.Tags()["images"] for image in events.Images(tag)}
        steps |= {sound.step for tag in events.Tags()["audio"] for sound in events.Audio(tag)}
    assert steps == {best}
    assert "train/loss" in tags["scalars"]
    assert len(tags["images"]) == 3
    assert {tag.rpartition("/")[2] for tag in tags["audio"]} == {"noisy", "denoised", "clean"}
    assert len(tags["audio"]) == 9


def test_brackets_are_no_markup(capfd: pytest.CaptureFixture[str]) -> None:
    summary = {"metrics": {}, "not_computed": {"pesq": "install 'x[audio-metrics]'"}, "parameters": 1}
    show.summary("denoise", Path("run[red]"), {**summary, "seconds": 1.0, "samples_per_second": 1.0})
    shown = capfd.readouterr().out
    assert "run[red]" in shown
    assert "x[audio-metrics]" in shown


def test_evaluate_repeats_the_training_s_test(lrnnx, denoiser: Path) -> None:
    result = lrnnx("evaluate", denoiser, "--json").done()
    summary = json.loads((denoiser / "summary.json").read_text())
    for key, value in json.loads(result.out.splitlines()[-1]).items():
        assert abs(value - summary["metrics"][f"test/{key}"]) < 1e-4


def test_resume_continues_where_it_stopped(lrnnx, folder: Path, tmp_path: Path) -> None:
    words = [*DENOISE, "trainer.max_steps=6"]
    whole = trained(folder, "whole", words)
    part = tmp_path / "part"
    cut(recipe.load(words[0], words[1:]), part, 4)
    lrnnx("train", *words, "--resume", part).done()
    steps = [int(row["step"]) for row in metrics.read(part)]
    assert steps == sorted(steps)
    assert steps[0] == 0
    ends = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (whole, part)]
    assert ends[0]["global_step"] == ends[1]["global_step"] == 6
    for name, value in ends[0]["state_dict"].items():
        assert torch.equal(value, ends[1]["state_dict"][name]), name


def test_infer_streamed_equals_offline_and_keeps_rate_and_length(
    lrnnx, denoiser: Path, clip: Path, tmp_path: Path
) -> None:
    streamed, offline = tmp_path / "streamed.wav", tmp_path / "offline.wav"
    result = lrnnx("infer", denoiser, clip, "-o", streamed).done()
    for word in ("look-ahead 15.94 ms", "p50", "p95", "real-time factor"):
        assert word in result.out
    lrnnx("infer", denoiser, clip, "-o", offline, "--offline").done()
    one, two = (soundfile.read(path) for path in (streamed, offline))
    assert one[1] == two[1] == 44100
    assert one[0].shape == two[0].shape == (44100 * 2 + 77,)
    assert np.linalg.norm(one[0] - two[0]) < 1e-5 * np.linalg.norm(two[0])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.wav", "offline.wav", "streamed.wav"]


def test_infer_classifies_pictures(lrnnx, classifier: Path, tmp_path: Path) -> None:
    picture = tmp_path / "digit.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(picture)
    result = lrnnx("infer", classifier, picture, picture, "--json").done()
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert len(lines) == 2
    assert abs(sum(lines[0]["classes"].values()) - 1) < 1e-4
    table = lrnnx("infer", classifier, picture)
    assert "probability" in table.out


def test_compare_prints_writes_and_draws(lrnnx, classifier: Path, tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    result = lrnnx("compare", classifier, "-o", plot).done()
    assert "accuracy ±" in result.out
    assert plot.stat().st_size > 1000
    (row,) = json.loads(lrnnx("compare", classifier, "--json").out)
    summary = json.loads((classifier / "summary.json").read_text())
    assert row["value"] == summary["metrics"]["test/accuracy"]
    assert row["spread"] == summary["metrics"]["test/accuracy_stderr"]
    assert row["parameters"] == summary["parameters"]


def test_data_shows_and_draws(lrnnx, tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    result = lrnnx("data", "digits_lru", "-o", plot).done()
    assert "1,297" in result.out
    assert plot.stat().st_size > 1000
    assert json.loads(lrnnx("data", "digits_lru", "--json").out)["valid"]["examples"] == 200


def test_recipes_as_a_table_of_systems_and_data(lrnnx) -> None:
    result = lrnnx("recipes", "--matrix").done()
    for name in shipped():
        assert name in result.out


def test_export_reads_back(lrnnx, denoiser: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    lrnnx("export", denoiser, "-o", path).done()
    x = torch.randn(1, 1000, 1)
    assert torch.equal(load(path)(x)[0], Run(denoiser).task().model(x)[0])


def noisy_prompt() -> tuple[np.ndarray, np.ndarray, int]:
    """A clean prompt, the same with white noise, and their rate."""
    clean, rate = soundfile.read(prompts("test")[0][0], dtype="float32")
    noise = np.random.default_rng(0).standard_normal(len(clean)).astype(np.float32)
    return clean, clean + noise * clean.std() * 10 ** (-5 / 20), rate


@pytest.mark.parametrize("name", shipped_models())
def test_a_shipped_model_denoises_by_its_name(lrnnx, name: str, tmp_path: Path, monkeypatch) -> None:
    """At every level alike; and silence stays silent."""
    monkeypatch.chdir(tmp_path)
    clean, noisy, rate = noisy_prompt()
    scores = [float(si_snr(torch.tensor(noisy), torch.tensor(clean)))]
    for level in (0.5, 0.005):
        soundfile.write("noisy.wav", noisy * level, rate, subtype="FLOAT")
        lrnnx("infer", name, "noisy.wav", "-o", "out.wav").done()
        heard, _ = soundfile.read("out.wav", dtype="float32")
        scores.append(float(si_snr(torch.tensor(heard), torch.tensor(clean))))
    assert scores[1] > scores[0] + 4
    assert abs(scores[2] - scores[1]) < 0.1
    soundfile.write("silence.wav", np.zeros(rate, np.float32), rate, subtype="FLOAT")
    lrnnx("infer", name, "silence.wav", "-o", "out.wav").done()
    assert not soundfile.read("out.wav")[0].any()


def test_training_begins_with_the_weights_of_a_shipped_model(lrnnx, tmp_path: Path) -> None:
    small = ("trainer.max_steps=1", "task.lr=0", "task.ssm_lr=0", "data.examples_per_epoch=4")
    options = (*small, "data.batch_size=4", "data.seconds=0.2", "data.mixtures=1", "init_from=denoise_small")
    lrnnx("train", "denoise_small", *options, "-o", tmp_path / "run").done()
    trained_on, given = (Run(path).task().model.state_dict() for path in (tmp_path / "run", "denoise_small"))
    for key, weight in given.items():
        assert torch.equal(trained_on[key], weight), key
    lrnnx("train", "denoise_lru", "init_from=denoise_small", "--dry-run").refuses(
        "no weight of denoise_small fits"
    )


def test_shipped_models_are_listed_and_are_no_runs_to_go_on_with(lrnnx) -> None:
    rows = json.loads(lrnnx("models", "--json").out)
    assert [row["name"] for row in rows] == list(shipped_models())
    lrnnx("train", "--resume", "denoise").refuses()
    lrnnx("infer", "denoyse", "x.wav", "-o", "y.wav").refuses("denoise")


def test_dry_run_shows_recipe_and_parameters(lrnnx) -> None:
    result = lrnnx("train", *DENOISE, "--dry-run").done()
    for word in ("channels:", "parameters", "total", "loss"):
        assert word in result.out


def test_recipes_without_torch_are_quick() -> None:
    code = (
        "import sys\nsys.argv = ['lrnnx', 'recipes']\nfrom lrnnx_app.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    assert 'torch' not in sys.modules\n"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "denoise_lru" in done.stdout
    assert time.perf_counter() - start < 5


def test_mistakes_are_one_line_and_code_2(lrnnx, denoiser: Path, classifier: Path, tmp_path: Path) -> None:
    text, empty, nan, good = (tmp_path / name for name in ("text.wav", "empty.wav", "nan.wav", "good.wav"))
    text.write_text("this is no audio")
    soundfile.write(empty, np.zeros(0), 16000)
    soundfile.write(nan, np.array([0.0, 0.1, np.nan]), 16000, subtype="FLOAT")
    soundfile.write(good, np.zeros(1000), 16000)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "recipe.yaml").write_text((denoiser / "recipe.yaml").read_text())
    mixed = tmp_path / "mixed"
    (mixed / "checkpoints").mkdir(parents=True)
    (mixed / "recipe.yaml").write_text((denoiser / "recipe.yaml").read_text())
    (mixed / "checkpoints" / "best.ckpt").write_bytes((classifier / "checkpoints" / "best.ckpt").read_bytes())
    out = tmp_path / "out.wav"
    cases = [
        (("train", "denoise_lur"), "denoise_lru"),
        (("train", "nowhere.yaml"), "nowhere.yaml"),
        (("train", "denoise_lru", "model.layer.d_stat=3"), "model.layer.d_stat"),
        (("train", "denoise_lru", "trainer.max_steps=many"), "trainer.max_steps"),
        (("train", "denoise_lru", "model.layer.name=lruu"), "'lru'"),
        (("train", *DENOISE, "-o", denoiser), "not an empty folder"),
        (("train", *DENOISE, "data.root=nowhere", "data.noise_root=nowhere", "-o", out), "nowhere"),
        (("evaluate", tmp_path / "gone"), "gone"),
        (("evaluate", tmp_path), "recipe.yaml"),
        (("evaluate", denoiser, "--split", "tset"), "'test'"),
        (("infer", denoiser, tmp_path / "gone.wav", "-o", out), "gone.wav"),
        (("infer", denoiser, text, "-o", out), "text.wav"),
        (("infer", denoiser, empty, "-o", out), "no samples"),
        (("infer", denoiser, nan, "-o", out), "sample 2"),
        (("infer", denoiser, good), "-o"),
        (("infer", denoiser, good, "-o", good), "is the input"),
        (("infer", denoiser, good, "-o", tmp_path / "out.mp4"), ".flac"),
        (("infer", denoiser, good, "-o", out, "--chunk-ms", "10"), "multiple"),
        (("infer", denoiser, good, text, "-o", out), "folder"),
        (("infer", bare, good, "-o", out), "best.ckpt"),
        (("infer", mixed, good, "-o", out), "another model"),
        (("infer", classifier, text), "text.wav"),
        (("export", bare, "-o", tmp_path / "x.onnx"), "best.ckpt"),
        (("export", denoiser, "-o", tmp_path / "gone" / "x.safetensors"), "gone"),
        (("trian",), "train"),
        (("train", "digits_lru", "trainer.precision=33-true", "--dry-run"), "33-true"),
        (("train", "digits_lru", "trainer.accelerator=abacus", "--dry-run"), "abacus"),
        (("evaluate", denoiser, "trainer.precision=33-true"), "33-true"),
        (("train", "denoise_lru", "model.layer=lru,s55", "-o", out), "'s5'"),
        (("train", "denoise_lru", "--seeds", "0", "-o", out), "--seeds"),
        (("compare", denoiser, classifier), "different tasks"),
        (("compare", tmp_path / "gone"), "gone"),
        (("compare", bare), "no finished run"),
        (("compare", denoiser, "-o", tmp_path / "plot.xyz"), "plot.xyz"),
        (("data", "denoise_lur"), "denoise_lru"),
        (("data", "audio", "data.root=nowhere", "data.noise_root=nowhere"), "nowhere"),
        (("infer", denoiser), "INPUT"),
    ]
    for words, hint in cases:
        lrnnx(*words).refuses(hint)
        assert not out.exists(), words
    assert not list(tmp_path.glob(".*part*"))


def test_doctor_says_whether_all_is_well(lrnnx, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRNNX_BUILD", "off")
    monkeypatch.setattr(doctor, "SIZES", (Sizes(1, 5, 3),))
    result = lrnnx("doctor", "--json")
    assert result.code == 0, result
    assert json.loads(result.out)["ok"]
    monkeypatch.setitem(TOLERANCE, torch.float32, -1.0)
    result = lrnnx("doctor")
    assert result.code == 1
    assert "something is wrong" in result.out


def test_bench_ops_prints_and_writes(lrnnx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRNNX_BUILD", "off")
    monkeypatch.setitem(TIMED, "cpu", [replace(TIMED["cpu"][0], sizes=Sizes(1, 50, 8))])
    rows, plot = tmp_path / "rows.json", tmp_path / "rows.png"
    result = lrnnx("bench", "ops", "--device", "cpu", "--json", rows, "--plot", plot).done()
    assert "linear_scan real" in result.out
    assert len(json.loads(rows.read_text())["rows"]) == 1
    assert plot.stat().st_size > 1000
    for words in (("--device", "cup"), ("--json", tmp_path / "gone" / "rows.json")):
        lrnnx("bench", "ops", *words).refuses(words[1])


def test_debug_shows_the_traceback() -> None:
    command = [sys.executable, "-m", "lrnnx_app.cli", "--debug", "train", "denoise_lur"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Traceback" in done.stderr
