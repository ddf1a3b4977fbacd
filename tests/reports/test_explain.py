"""What `lrnnx recipes NAME --explain` says of keys: all of them, in the words beside their fields."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from omegaconf import OmegaConf

from lrnnx_app import recipe
from lrnnx_app.registry import DATA, LAYERS, MODELS, TASKS, shipped
from lrnnx_app.reports import explain


def keys(content: Any, above: str) -> Iterator[str]:
    yield above
    if isinstance(content, dict):
        for key, value in content.items():
            yield from keys(value, f"{above}.{key}".lstrip("."))
    elif isinstance(content, list) and content and isinstance(content[0], dict):
        for index, value in enumerate(content):
            yield from list(keys(value, f"{above}[{index}]"))[1:]


@pytest.mark.parametrize("name", shipped())
def test_every_key_of_a_recipe_is_explained(name: str) -> None:
    config = recipe.load(name)
    rows = list(explain.rows(config))
    assert [row[0] for row in rows] == list(keys(OmegaConf.to_container(config), ""))[1:]
    assert not [row for row in rows if not row[3].strip()]


@pytest.mark.parametrize("registry", [TASKS, MODELS, LAYERS, DATA], ids=lambda registry: registry.kind)
def test_every_setting_has_a_comment(registry: Any) -> None:
    said = {name: explain.comments(registry[name].Config) for name in registry}
    assert not [f"{name}.{key}" for name, found in said.items() for key, text in found.items() if not text]


def test_settings_of_a_layer_inside_another_are_explained_too() -> None:
    rows = explain.rows(recipe.load("digits_lru", ["model.layer=glu", "model.layer.options.d_state=8"]))
    found = {key: (value, kind, said) for key, value, kind, said in rows}
    assert found["model.layer.options.d_state"] == (
        8,
        "int",
        explain.comments(LAYERS["s4d"].Config)["d_state"],
    )
    assert found["model.layer.options"][:2] == ("", "mapping")


@dataclass
class Base:
    a: int = 1  # of the base
    b: str = "# no comment"  # a comment with a # in it
    text = "  # no field"


@dataclass
class Derived(Base):
    """b: str = ''  # not this"""

    a: int = 2  # of the derived
    c: list[int] = field(default_factory=lambda: [1])  # of several lines
    d: float | None = None


def test_comments_are_those_beside_the_fields_of_a_class_and_its_bases() -> None:
    said = {"a": "of the derived", "b": "a comment with a # in it", "c": "of several lines", "d": ""}
    assert explain.comments(Derived) == said
    made = dataclasses.make_dataclass("Made", [("e", int, 0)], bases=(Derived,))  # which has no source
    assert explain.comments(made) == said | {"e": ""}


def test_command_prints_a_line_for_each_key_or_json(lrnnx) -> None:
    code, out, error = lrnnx("recipes", "denoise_lru", "--explain")
    assert (code, error) == (0, "")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert "64, 96, 128" in lines["model.channels"]
    assert "share of mixtures" in lines["data.babble"]
    found = {
        row["key"]: row for row in json.loads(lrnnx("recipes", "denoise_lru", "--explain", "--json").out)
    }
    assert set(lines) == {"key", *found}
    assert found["model.strides"]["value"] == [16, 4, 4]
    assert found["trainer.graph"] == {
        "key": "trainer.graph",
        "value": True,
        "type": "bool",
        "what it means": explain.comments(recipe.TrainerConfig)["graph"],
    }


def test_a_recipe_must_be_named(lrnnx) -> None:
    lrnnx("recipes", "--explain").refuses("expected the NAME of a recipe")
