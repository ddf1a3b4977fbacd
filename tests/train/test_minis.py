"""Every mini recipe states what it reaches, and reaches it."""

import json
import math
import re

import pytest

from lrnnx_app import recipe as recipes
from lrnnx_app.registry import shipped
from tests.helpers import trained

MINIS = sorted(name for name in shipped() if name.endswith("_mini"))
METRICS = {"%": "test/accuracy", "bits per byte": "test/bits_per_byte", "squared error": "test/mse"}
FIGURE = re.compile(r"# Own figure, on the test set: ([\d.e-]+) ± ([\d.e-]+) (%|bits per byte|squared error)")


def stated(name: str) -> tuple[str, float, float]:
    """The metric, the figure and its standard error that a recipe's head states."""
    found = FIGURE.search(recipes.find(name).read_text())
    assert found, f"{name} states no figure"
    scale = 100 if found[3] == "%" else 1
    return METRICS[found[3]], float(found[1]) / scale, float(found[2]) / scale


@pytest.mark.parametrize("name", MINIS)
def test_a_mini_recipe_states_its_figure(name):
    _, value, error = stated(name)
    assert 0 < error < value


@pytest.mark.release
@pytest.mark.parametrize("name", MINIS)
def test_a_mini_recipe_reaches_its_figure(name, folder):
    metric, value, error = stated(name)
    run = trained(folder, name, [name, "trainer.accelerator=cpu"], seconds=1800)
    metrics = json.loads((run / "summary.json").read_text())["metrics"]
    own = metrics.get(f"{metric}_stderr", metrics.get("test/loss_stderr"))
    assert abs(metrics[metric] - value) < 3 * math.hypot(error, own), (metrics[metric], own)
