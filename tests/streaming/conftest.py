"""Runs of untrained models, which streams of every kind go through."""

from pathlib import Path

import pytest
import torch

from lrnnx_app.runs import sealed
from lrnnx_app.runs.run import Run, build_task
from lrnnx_app.spec import DataSpec

RATE = 16000
RECIPES = {
    "denoiser": "{name: denoise}, model: {name: unet, channels: [8], strides: [256], layer: {name: s5}}",
    "classifier": "{name: classify}, model: {name: backbone, d_model: 8, depth: 1, layer: {name: lru}}",
    "events": "{name: classify}, model: {name: staged, d_model: 8, pools: [2], layer: {name: event_ssm}}",
}
DATA = {"events": "event_stream"}
SPECS = {
    "denoiser": DataSpec(1, 1, sample_rate=RATE),
    "classifier": DataSpec(1, 3, classes=("no", "yes", "else"), sample_rate=RATE),
    "events": DataSpec(64, 10, tokens=True, classes=tuple("0123456789")),
}


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders of untrained models."""
    torch.manual_seed(0)
    made = {}
    for name, recipe in RECIPES.items():
        made[name] = tmp_path_factory.mktemp(name)
        (made[name] / "recipe.yaml").write_text(
            f"{{task: {recipe}, data: {{name: {DATA.get(name, 'audio')}}}}}"
        )
        task = build_task(Run(made[name]).recipe, SPECS[name])
        checkpoint = {"state_dict": task.state_dict()}
        task.on_save_checkpoint(checkpoint)
        (made[name] / "checkpoints").mkdir()
        sealed.write(checkpoint, made[name] / "checkpoints" / "best.ckpt")
    return made
