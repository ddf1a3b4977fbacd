"""Run folders from elsewhere: what does not fit in one of their files is one line, whoever reads it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from lrnnx_app.errors import RunError
from lrnnx_app.export.huggingface import escaped
from lrnnx_app.runs import folder as run_folder
from lrnnx_app.runs import metrics, sealed
from lrnnx_app.runs.checkpoint_file import read_checkpoint
from lrnnx_app.runs.run import Run
from lrnnx_app.spec import DataSpec
from tests.helpers import refused

DEEP = "[" * 100_000
SUMMARY = {"metrics": {"test/si_snr": 1.0}, "parameters": 1, "samples_per_second": 2.0, "device": "cpu"}


@pytest.fixture
def run(denoiser: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(denoiser, tmp_path / "run"))


def commands(run: Path) -> dict[str, tuple[object, ...]]:
    soundfile.write(run.parent / "in.wav", np.zeros(400), 16000)
    return {
        "evaluate": ("evaluate", run),
        "infer": ("infer", run, run.parent / "in.wav", "-o", run.parent / "out.wav"),
        "export": ("export", run, "-o", run.parent / "out.safetensors"),
        "compare": ("compare", run),
        "resume": ("train", "--resume", run),
    }


@pytest.mark.parametrize("name", ["evaluate", "infer", "export", "compare", "resume"])
@pytest.mark.parametrize(
    "text",
    [
        "x: '${'\n",
        "about: ${oc.env:HOME}\n",
        "name: '${nowhere}'\n",
        "name: ../up\n",
        "name: ???\n",
        "x: 1\n",
    ],
)
def test_a_recipe_that_does_not_fit(lrnnx, run: Path, name: str, text: str) -> None:
    key = text.partition(":")[0]
    lines = (run / "recipe.yaml").read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith(f"{key}:")]
    (run / "recipe.yaml").write_text("".join(kept) + text)
    lrnnx(*commands(run)[name]).refuses("recipe.yaml")


@pytest.mark.parametrize(
    "content",
    [
        *("", "{}", "[]", "null", DEEP, '{"metrics": []}', "\udcff"),
        *(json.dumps(SUMMARY | {key: None}) for key in SUMMARY),
        *(json.dumps(SUMMARY | {"metrics": {"test/si_snr": value}}) for value in ("1", [1], {}, True)),
        json.dumps(SUMMARY | {"metrics": {"test/\x1b[31m": 1}}),
    ],
)
def test_a_summary_that_does_not_fit(lrnnx, run: Path, content: str) -> None:
    (run / "summary.json").write_bytes(content.encode(errors="surrogateescape"))
    with refused(RunError, "summary.json: not a summary that lrnnx wrote"):
        Run(run).summary()
    lrnnx("compare", run).refuses()


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["spec"].update(d_input=-1),
        lambda content: content["spec"].update(d_output="x"),
        lambda content: content["spec"].update(classes=[1]),
        lambda content: content["spec"].update(more=1),
        lambda content: content["state_dict"].update(more="no tensor"),
        lambda content: content.update(position=("a", "b")),
        lambda content: content.update(position=(0, -1)),
        lambda content: content.update(global_step="one"),
        lambda content: content.pop("state_dict"),
    ],
)
def test_a_checkpoint_that_does_not_fit(run: Path, change: Callable[[dict], object]) -> None:
    path = run / "checkpoints" / "best.ckpt"
    content = torch.load(path, weights_only=True)
    change(content)
    sealed.write(content, path)
    with pytest.raises(RunError, match="not a checkpoint that lrnnx wrote"):
        read_checkpoint(path)


def test_rows_of_metrics_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / run_folder.METRICS
    path.write_text("step,train/loss\n1,0.5\n²,0.5\n2,many\n3,\n4,0.1,7\n" + "9" * 5000 + ",1\n")
    assert [row["step"] for row in metrics.read(tmp_path)] == ["1", "3"]
    for content in (b"step\n\xff\n", b"step\n" + b"1" * 200_000 + b"\n"):
        path.write_bytes(content)
        with pytest.raises(RunError, match="not readable as csv"):
            metrics.read(tmp_path)


def test_a_spec_survives_json() -> None:
    spec = DataSpec(3, 2, classes=("a", "b"), sample_rate=8000)
    assert DataSpec.read(json.loads(json.dumps(spec.__dict__))) == spec


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("digits_lru: 8 × 8, in minutes (fast)", "digits_lru: 8 × 8, in minutes (fast)"),
        ("<script>x</script> & more", "&lt;script&gt;x&lt;/script&gt; &amp; more"),
        ("[a](http://b) ![c](d)", r"\[a\](http://b) !\[c\](d)"),
        ("a\n\n# b\n---\n", r"a \# b ---"),
        ("a | b `c` *d* __e__", r"a \| b \`c\` \*d\* \_\_e\_\_"),
    ],
)
def test_a_card_shows_text_as_text(text: str, shown: str) -> None:
    assert escaped(text) == shown
