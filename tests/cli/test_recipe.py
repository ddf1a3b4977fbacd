"""Recipes: what is written resolves to typed settings; every mistake is one line with file, key and hint."""

import math
from dataclasses import fields
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lrnnx_app import recipe as recipes
from lrnnx_app.errors import RecipeError
from lrnnx_app.layers._build import build_layer
from lrnnx_app.registry import LAYERS, MODELS, TASKS
from lrnnx_app.runs.run import build_data, build_task
from tests.helpers import refused


def test_saved_recipe_resolves_to_itself(tmp_path: Path) -> None:
    config = recipes.load("denoise_lru", ["model.layer.d_state=7", "seed=3"])
    path = tmp_path / "denoise_lru.yaml"
    path.write_text(OmegaConf.to_yaml(config))
    assert recipes.load(str(path)) == config
    assert recipes.typed(config).model.layer.d_state == 7


def test_another_layer_keeps_the_keys_it_knows(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    content = recipes.read_yaml(recipes.find("denoise_lru"))
    content["model"]["layer"] |= {"d_state": 10, "r_min": 0.5}
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(content)))
    config = recipes.load(str(path), ["model.layer.name=s5"])
    assert config.model.layer.d_state == 10
    assert "r_min" not in config.model.layer
    assert recipes.load(str(path), ["model.layer=s5"]) == config


def test_a_list_of_layers_resolves_and_is_overridden_entry_by_entry(tmp_path: Path) -> None:
    config = recipes.load("digits_hybrid", ["model.layer[0].name=lru", "model.layer[0].d_state=7"])
    path = tmp_path / "digits_hybrid.yaml"
    path.write_text(OmegaConf.to_yaml(config))
    assert recipes.load(str(path)) == config
    layers = recipes.typed(config).model.layer
    assert [layer.name for layer in layers] == ["lru", "rglru", "local_attention"]
    assert layers[0].d_state == 7
    assert isinstance(layers[2], LAYERS["local_attention"].Config)


def test_one_layer_and_a_list_replace_each_other() -> None:
    assert recipes.load("digits_hybrid", ["model.layer.name=lru"]).model.layer.name == "lru"
    config = recipes.load("digits_lru", ["model.layer=[{name: s5, d_state: 8}, {name: gru}]"])
    assert [layer.d_state for layer in config.model.layer] == [8, LAYERS["gru"].Config().d_state]


def test_options_of_a_layer_inside_another(tmp_path: Path) -> None:
    config = recipes.load("digits_lru", ["model.layer=glu", "model.layer.options.d_state=8"])
    held = recipes.typed(config).model.layer
    assert held.options == LAYERS["s4d"].Config(d_state=8)
    words = ["model.layer=glu", "model.layer.layer=glu", "model.layer.options.layer=s5"]
    deep = recipes.load("digits_lru", [*words, "model.layer.options.options.d_state=6"])
    assert recipes.typed(deep).model.layer.options.options == LAYERS["s5"].Config(d_state=6)
    content = recipes.read_yaml(recipes.find("digits_lru"))
    content["model"]["layer"] = {"name": "glu", "options": {"d_state": 12, "init": "inv"}}
    path = tmp_path / "mine.yaml"
    OmegaConf.save(OmegaConf.create(content), path)
    assert recipes.load(str(path)).model.layer.options.init == "inv"
    other = recipes.load(str(path), ["model.layer.layer=s4"]).model.layer
    assert (other.options.d_state, other.options.l_max) == (12, 0)
    assert recipes.load("digits_lru", ["model.layer=[{name: glu, options: {d_state: 4}}]"])
    GLU = LAYERS["glu"]
    assert GLU(8, GLU.Config("s4d", {"d_state": 4})).layer.state_size == 2 * 2 * 8
    with pytest.raises(RecipeError, match=r"options.rule: unknown 'zho'; did you mean 'zoh'"):
        GLU(8, GLU.Config("s4d", {"rule": "zho"}))
    with pytest.raises(RecipeError, match=r"did you mean 'd_state'"):
        GLU.Config("s4d", {"d_stat": 4})


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["options.d_stat=3"], ["model.layer.options.d_stat'", "'d_state'"]),
        (["options.d_state=wide"], ["model.layer.options.d_state", "Integer"]),
        (["layer=s4dd"], ["model.layer.layer", "'s4d'"]),
        (["layer=s6", "options.rule=eulr"], ["model.layer.options.rule", "'euler'"]),
    ],
)
def test_mistake_in_a_layer_inside_another(words: list[str], told: list[str]) -> None:
    with refused(RecipeError, *told):
        recipes.load("digits_lru", ["model.layer=glu", *(f"model.layer.{word}" for word in words)])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.layer[0].name=s5", "model.layer[0].d_stat=3"], ["model.layer[0].d_stat'", "'d_state'"]),
        (["model.layer[1].name=rglu"], ["model.layer[1].name", "'rglru'"]),
        (["model.layer[2].window=wide"], ["model.layer[2].window", "wide", "Integer"]),
        (["model.layer[2].window=0"], ["model.layer[2].window", "at least 1"]),
        (["model.layer[7].window=3"], ["model.layer[7]", "0, 1, 2"]),
        (["model.layer=[lru]"], ["model.layer[0].name", ", ".join(LAYERS)]),
        (["model.layer=[]"], ["model.layer", ", ".join(LAYERS)]),
    ],
)
def test_mistake_in_a_list_of_layers(overrides: list[str], words: list[str]) -> None:
    with refused(RecipeError, *words):
        recipes.load("digits_hybrid", overrides)


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_has_default_settings_that_build(name: str) -> None:
    config = recipes.load("digits_lru", [f"model.layer.name={name}"])
    recipe = recipes.typed(config)
    task = build_task(recipe, build_data(recipe).spec)
    assert type(recipe.model.layer).__name__ == "Config"
    assert sum(p.numel() for p in task.parameters()) > 1000


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.layer.d_stat=3"], ["command line", "model.layer.d_stat", "'d_state'"]),
        (["modle.depth=3"], ["modle", "'model'"]),
        (["trainer.max_steps=abc"], ["trainer.max_steps", "abc", "Integer"]),
        (["model.layer.name=lruu"], ["model.layer.name", "lruu", "'lru'"]),
        (["task.name=../x"], ["task.name", "../x", ", ".join(TASKS)]),
        (["model.name=unett"], ["model.name", "'unet'"]),
        (["data.name=audoi"], ["data.name", "'audio'"]),
        (["trainer.max_steps=0"], ["trainer.max_steps", "positive"]),
        (["data.snr_min=50"], ["data.snr_min", "snr_max"]),
        (["data.music=2"], ["data.music", "sum to 1"]),
        (["model.channels=[1]"], ["model.channels", "strides"]),
        (["seed=${seed}"], ["nterpolation"]),
        (["nothing"], ["'nothing'", "key.sub=value"]),
        (["model.layer=s55"], ["model.layer.name", "'s5'"]),
        (["task.warmup=2"], ["task.warmup", "[0, 1)"]),
    ],
)
def test_mistake_in_an_override(overrides: list[str], words: list[str]) -> None:
    with refused(RecipeError, *words):
        recipes.load("denoise_lru", overrides)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("- a\n- b\n", ["mapping"]),
        ("task: {name: denoise\n", ["YAML"]),
        ("", ["mapping"]),
        ("task: {name: denoise}\n", ["model.name", ", ".join(MODELS)]),
        ("\x00", ["YAML"]),
        ("task:\n\tname: classify\n", ["line 2", "a tab"]),
        ("task:\n  name: [a\nmodel: 1\n", ["line 3"]),
        ("task: 1\n x: 2: 3\n", ["line 2"]),
    ],
)
def test_mistake_in_a_file(tmp_path: Path, content: str, words: list[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with refused(RecipeError, str(path), *words):
        recipes.load(str(path))


def test_no_code_from_yaml(tmp_path: Path) -> None:
    path, mark = tmp_path / "evil.yaml", tmp_path / "mark"
    path.write_text(f"about: !!python/object/apply:os.system ['touch {mark}']\n")
    with pytest.raises(RecipeError, match="YAML"):
        recipes.load(str(path))
    assert not mark.exists()


AS_GIVEN = (
    "007",
    "no",
    "0x10",
    "take #1",
    "12:30:45",
    "1e5",
    "1_000",
    "2024-01-01",
    "[a] b",
    "a: b",
    " x",
    "",
)


@pytest.mark.parametrize("text", AS_GIVEN)
def test_a_text_is_taken_as_it_is_given(tmp_path: Path, text: str) -> None:
    assert recipes.load("denoise_lru", [f"data.root={text}"]).data.root == text
    path = tmp_path / "mine.yaml"
    plain = text if text[:1] not in ("[", " ", "") and ": " not in text and "#" not in text else f"'{text}'"
    content = recipes.find("denoise_lru").read_text().replace("\ndata:\n", f"\ndata:\n  root: {plain}\n")
    path.write_text(content)
    assert recipes.load(str(path)).data.root == text


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data.root='a, b'", "a, b"),
        ('data.root="007"', "007"),
        ("task.lr=1e-3", 1e-3),
        ("seed=1_000", 1000),
        ("trainer.graph=yes", True),
        ("trainer.graph=false", False),
        ("model.channels=[8, 16, 24]", [8, 16, 24]),
        ("model.layer={name: s6, dt_rank: 4}", {"dt_rank": 4}),
        ("model.layer={name: s6, dt_rank: null}", {"dt_rank": None}),
    ],
)
def test_a_value_has_the_type_of_its_field(override: str, value: object) -> None:
    key = override.partition("=")[0]
    found = OmegaConf.select(recipes.load("denoise_lru", [override]), key)
    if isinstance(value, dict):
        found = {name: found[name] for name in value}
    assert found == value
    assert type(found) is type(value) or isinstance(value, list)


def test_a_setting_is_set_to_none() -> None:
    config = recipes.load("digits_s6", ["model.layer.dt_rank=3"])
    assert recipes.load("digits_s6", ["model.layer.dt_rank=null"]).model.layer.dt_rank is None
    assert config.model.layer.dt_rank == 3


def test_home_is_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    keys = ("data.root", "data.noise_root")
    config = recipes.load("denoise_lru", [f"{key}=~/speech" for key in keys])
    assert [OmegaConf.select(config, key) for key in keys] == [str(tmp_path / "speech")] * 2
    path = tmp_path / "mine.yaml"
    path.write_text(
        recipes.find("voices_s5_mini").read_text().replace("augment:\n", "augment:\n    reverb: ~/hall.wav\n")
    )
    found = recipes.load(str(path), ["data.root=~"]).data
    assert found.root == str(tmp_path)
    assert found.augment.reverb == str(tmp_path / "hall.wav")


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("mamba", "s6"),
        ("Hawk", "rglru"),
        ("griffin", "rglru"),
        ("aTENNuate", "centaurus"),
        ("s4d-lin", "s4d"),
    ],
)
def test_a_layer_is_found_by_its_other_names(name: str, layer: str) -> None:
    with pytest.raises(RecipeError, match=f"did you mean '{layer}'"):
        recipes.load("digits_lru", [f"model.layer.name={name}"])
    assert set(LAYERS.also.values()) <= set(LAYERS)


@pytest.mark.parametrize("name", LAYERS)
def test_sizes_that_are_none_are_refused(name: str) -> None:
    """Whole numbers below 1, or below 0 where that is the default."""
    for option in fields(LAYERS[name].Config):
        if type(option.default) is int:
            with pytest.raises(RecipeError, match=f"^{option.name}: "):
                build_layer(name, 4, LAYERS[name].Config(**{option.name: int(option.default != 0) - 1}))


@pytest.mark.parametrize("name", LAYERS)
def test_numbers_that_are_not_finite_are_refused(name: str) -> None:
    for option in fields(LAYERS[name].Config):
        if type(option.default) is float:
            with pytest.raises(RecipeError, match=f"^{option.name}: expected a finite number, not nan"):
                build_layer(name, 4, LAYERS[name].Config(**{option.name: math.nan}))


@pytest.mark.parametrize("name", [name for name in LAYERS if hasattr(LAYERS[name].Config, "dt_min")])
@pytest.mark.parametrize("low", [0.0, 2.0])
def test_timescales_want_a_range(name: str, low: float) -> None:
    with pytest.raises(RecipeError, match=r"^dt_min: expected more than 0 and at most dt_max = 1, not "):
        build_layer(name, 4, LAYERS[name].Config(dt_min=low, dt_max=1.0))
