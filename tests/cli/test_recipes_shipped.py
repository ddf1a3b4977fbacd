"""Every shipped recipe opens with its command, resolves and runs a batch, on stand-ins for absent data."""

import importlib
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from lrnnx_app import recipe as recipes
from lrnnx_app.registry import DATA, LAYERS, MODELS, TASKS, shipped
from lrnnx_app.train import fit
from tests.helpers import ROOT


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrnnx_app.disk.cache.root", lambda: tmp_path)


@pytest.fixture(scope="session")
def standins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("standins")


@pytest.mark.parametrize("name", shipped())
def test_recipe_runs_a_batch(name: str, standins: Path) -> None:
    config = recipes.load(name)
    kind = config.data.get("layout") or config.data.get("images") or name
    folder = standins / f"{config.data.name}_{kind}"
    small = dict(MODELS[config.model.name].small)
    if len(recipes.layer_nodes(config.model.layer)) > 1:
        small.pop("depth", None)
    short = [f"model.{key}={value}" for key, value in small.items()]
    short += [f"data.{key}={value}" for key, value in DATA[config.data.name].small(folder).items()]
    short += ["data.batch_size=2", "data.workers=0", "trainer.precision=32-true"]
    if find_spec(f"tests.data.standins.{config.data.name}"):
        short += importlib.import_module(f"tests.data.standins.{config.data.name}").write(folder, config.data)
    loss, rows = fit.dry_run(recipes.load(name, short))
    assert loss == loss
    assert sum(count for *_, count in rows) > 0


@pytest.mark.parametrize("name", shipped())
def test_recipe_opens_with_its_purpose_and_command(name: str) -> None:
    lines = recipes.find(name).read_text().splitlines()
    comment = [line for line in lines[: lines.index("task:")] if line.startswith("#")]
    assert any(line.startswith(f"#   lrnnx train {name}") for line in comment)
    assert len(comment) > 1
    assert recipes.load(name).about


def test_every_task_and_data_module_has_a_recipe() -> None:
    loaded = [recipes.read_yaml(path) for path in shipped().values()]
    assert {content["task"]["name"] for content in loaded} == set(TASKS)
    assert {content["data"]["name"] for content in loaded} == set(DATA)


def layers_of(name: str) -> set[str]:
    return {
        node["name"]
        for _, node in recipes.layer_nodes(recipes.read_yaml(recipes.find(name))["model"]["layer"])
    }


def needs_root(name: str) -> bool:
    """Whether a recipe is for data that do not come with the package."""
    return "data.root=" in recipes.find(name).read_text().partition("\ntask:")[0].rpartition("lrnnx train")[2]


def told_of() -> set[str]:
    """The layers that the README's first sentence names."""
    told = (ROOT / "README.md").read_text().replace("\n", " ")
    (names,) = re.findall(r"networks\*\* — (.*) and more", told)
    known = {name.replace("_", ""): name for name in LAYERS} | LAYERS.also
    return {known[re.sub(r"\W", "", name.lower())] for name in re.split("[,/]", names)}


def test_every_system_has_a_recipe_on_public_and_one_on_embedded_data() -> None:
    single = {name: layers_of(name) for name in shipped()}
    public = {min(found) for name, found in single.items() if needs_root(name) and len(found) == 1}
    embedded = {min(found) for name, found in single.items() if not needs_root(name) and len(found) == 1}
    assert told_of() <= public
    assert {name for name in LAYERS if not hasattr(LAYERS[name].Config, "layer")} <= embedded  # of no other
    hybrid = [name for name, found in single.items() if len(found) > 1]
    assert {needs_root(name) for name in hybrid} == {True, False}
