"""Every format of the folder: found by its ending, runs as the run does, never writes over what is there."""

from pathlib import Path

import pytest
import torch

from lrnnx_app import export
from lrnnx_app.export._chunk import TOLERANCE
from lrnnx_app.runs.run import Run
from tests.helpers import compiles, relative, untrained

LANGUAGE = (
    "text_s6_mini",
    "model.name=language",
    "model.d_model=8",
    "model.depth=1",
    "trainer.accelerator=cpu",
)
each_format = pytest.mark.parametrize("name", export.own())


@each_format
def test_a_format_is_known_by_its_ending_alone(name: str) -> None:
    entry = export.module(name)
    same = [other for other in export.own() if entry.ENDING and export.module(other).ENDING == entry.ENDING]
    assert same == ([name] if entry.ENDING else [])
    if entry.ENDING:
        assert export.find(None, Path(f"model{entry.ENDING}")) is entry.export


@each_format
def test_what_is_written_runs_as_the_run(name: str, denoiser: Path, lrnnx, tmp_path: Path) -> None:
    if name in ("c", "ladspa", "lv2") and not compiles():
        pytest.skip("this machine has no compiler")
    entry, path = export.module(name), tmp_path / f"model{export.module(name).ENDING or ''}"
    run = untrained(tmp_path / "run", *LANGUAGE) if name == "transformers" else denoiser
    words = ("export", run, "-o", path, "--format", name)
    result = lrnnx(*words).done()
    assert str(path) in result.out.replace("\n", "")
    model = Run(run).task().model.eval()
    tokens = torch.arange(40)[None] if model.spec.tokens else None
    x = torch.randn(1, 4 * model.hop, model.spec.d_input) if tokens is None else tokens
    with torch.no_grad():
        assert relative(entry.outputs(path, x), model(x)[0]) <= TOLERANCE
    lrnnx(*words).refuses("is there already")


def test_the_command_names_every_format(lrnnx) -> None:
    told = lrnnx("export", "--help").out
    assert all(name in told for name in export.own())
