"""Entries of installed packages and of files named by --plugin: found, used, named, and never run unasked."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from lrnnx_app import plugins
from lrnnx_app.registry import REGISTRIES, RULES, shipped
from lrnnx_app.runs.run import Run
from tests.helpers import DOCS, ROOT, blocks, example

WORDS = ["digits_lru", "trainer.max_steps=1", "trainer.accelerator=cpu", "data.batch_size=324"]
WORDS += ["model.d_model=4", "model.depth=1", "model.bidirectional=false"]
RULED = [*WORDS, "model.layer=s6", "model.layer.d_state=4", "model.layer.rule=implicit"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages with that of the docs installed: its wheel, built and unpacked as an installer does."""
    folder = tmp_path_factory.mktemp("example")
    source = folder / "source"
    package = source / "lrnnx_example"
    (package / "recipes").mkdir(parents=True)
    for place in (package, package / "recipes"):
        (place / "__init__.py").touch()
    for _, name, content in blocks(DOCS / "extend.md"):
        if name:
            places = {".toml": source, ".yaml": package / "recipes"}
            (places.get(Path(name).suffix, package) / name).write_text(content)
    build = "import hatchling.build, sys; hatchling.build.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=source, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "packages")
    return folder / "packages"


@pytest.fixture
def present(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, where Python looks for packages."""
    monkeypatch.syspath_prepend(str(installed))
    plugins.forget()
    return installed


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch):
    yield
    monkeypatch.undo()
    plugins.forget()


@pytest.fixture(scope="module")
def run(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained by the real command from the package's own recipe."""
    path = tmp_path_factory.mktemp("runs") / "levels"
    found = {"PYTHONPATH": f"{installed}:{ROOT}", "LRNNX_BUILD": "off"}
    command = [sys.executable, "-m", "lrnnx_app.cli", "train", "levels_leaky", "-o", str(path)]
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PYTEST"))}
    done = subprocess.run(command, env=kept | found, capture_output=True, text=True, cwd=path.parent)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The example's layer as a file of its own, which marks that it was run."""
    path = tmp_path / "leaky2.py"
    mark = f"open({str(tmp_path / 'was_run')!r}, 'w').close()\n"
    path.write_text(example("leaky.py") + mark)
    return path


def test_an_installed_package_adds_an_entry_of_every_kind(present: Path, lrnnx) -> None:
    for group in plugins.GROUPS:
        assert plugins.installed(group), group
    for registry in REGISTRIES:
        (name,) = plugins.installed(registry.group)
        assert registry.origins()[name] == "lrnnx-example"
        assert registry.find(name).Config
        assert set(registry.own()) == set(registry) - {name}
    assert RULES.origins()["implicit"] == "lrnnx-example"
    assert RULES["implicit"].name == "implicit"
    assert set(RULES.own()) == set(RULES) - {"implicit"}


def test_lists_say_where_an_entry_comes_from(present: Path, file: Path, lrnnx) -> None:
    rows = json.loads(lrnnx("layers", "--json", "--plugin", file).out)
    origins = {row["layer"]: row["from"] for row in rows}
    assert origins["leaky"] == "lrnnx-example"
    assert origins["leaky2"] == "leaky2.py"
    assert origins["lru"] == "lrnnx"
    rules = {row["layer"]: row["rules"].split(", ") for row in rows}
    assert "implicit from lrnnx-example" in rules["s5"]
    assert rules["stream"] == ["dirac"]
    assert "implicit" not in lrnnx("layers", "--markdown").out
    rows = json.loads(lrnnx("recipes", "--json").out)
    assert {row["name"] for row in rows if row["from"] == "lrnnx-example"} == {"levels_leaky"}
    assert {row["name"] for row in rows if row["from"] == "lrnnx"} == set(shipped())
    assert "Levels from lrnnx-example: 1 channels" in lrnnx("data", "levels").out


def test_a_run_of_a_package_trains_streams_and_exports(
    run: Path, present: Path, lrnnx, tmp_path: Path
) -> None:
    assert Run(run).recipe.plugins == ["lrnnx-example"]
    assert json.loads((run / "summary.json").read_text())["plugins"] == {"lrnnx-example": "0.3"}
    (tmp_path / "wave.txt").write_text("\n".join(["1"] * 5 + ["-1"] * 5))
    result = lrnnx("infer", run, tmp_path / "wave.txt", "--running", "--steps", "2", "--json").done()
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert [set(line["values"]) for line in lines if "values" in line] == [{"mean", "spread"}] * 5
    result = lrnnx("export", run, "-o", tmp_path / "shapes.txt", "--format", "shapes").done()
    assert "log_tau (8,)" in (tmp_path / "shapes.txt").read_text()
    lrnnx("export", run, "-o", tmp_path / "model.safetensors").done()
    lrnnx("evaluate", run).done()


@pytest.mark.parametrize(
    "words", [["infer", "RUN", "x.txt"], ["evaluate", "RUN"], ["train", "--resume", "RUN"]]
)
def test_a_run_whose_package_is_absent_says_so_in_one_line(run: Path, lrnnx, words: list[str]) -> None:
    result = lrnnx(*(run if word == "RUN" else word for word in words))
    hint = "it needs lrnnx-example, which lrnnx has not: pip install lrnnx-example\n"
    result.refuses("unknown task 'regress'", hint)


def test_a_file_trains_and_is_asked_for_again(file: Path, lrnnx, tmp_path: Path) -> None:
    run = tmp_path / "run"
    lrnnx("train", *WORDS, "model.layer=leaky2", "--plugin", file, "-o", run).done()
    assert json.loads((run / "summary.json").read_text())["plugins"]["leaky2.py"].startswith("sha256:")
    shutil.copy(file, run / "leaky2.py")  # beside the recipe, as a stranger could put it
    (tmp_path / "was_run").unlink()
    lrnnx("evaluate", run).refuses("it needs leaky2.py, which lrnnx has not: --plugin PATH/leaky2.py\n")
    assert not (tmp_path / "was_run").exists(), "a file was run that nobody named"
    lrnnx("evaluate", run, "--plugin", file).done()
    assert (tmp_path / "was_run").exists()


def test_a_run_by_the_rule_of_a_file_streams_exports_and_asks_for_it(lrnnx, tmp_path: Path) -> None:
    (file := tmp_path / "implicit.py").write_text(example("implicit.py"))
    run, image = tmp_path / "run", tmp_path / "image.png"
    lrnnx("train", *RULED, "--plugin", file, "-o", run).done()
    assert Run(run).recipe.plugins == ["implicit.py"]
    Image.new("L", (8, 8)).save(image)
    words = {
        "infer": ("infer", run, image, "--running", "--steps", "16"),
        "export": ("export", run, "-o", tmp_path / "model.pt2"),
        "evaluate": ("evaluate", run),
    }
    for each in words.values():
        lrnnx(*each).refuses(
            "model.layer.rule: unknown 'implicit'",
            "it needs implicit.py, which lrnnx has not: --plugin PATH/implicit.py",
        )
        lrnnx(*each, "--plugin", file).done()
    assert (tmp_path / "model.pt2").exists()


def test_every_run_of_a_grid_has_the_plugin(file: Path, lrnnx, tmp_path: Path) -> None:
    words = [*WORDS, "model.layer=lru,leaky2", "--plugin", file, "-o", tmp_path / "grid"]
    lrnnx("train", *words).done()
    assert Run(tmp_path / "grid" / "lru").recipe.plugins == []


def test_a_recipe_that_names_a_plugin_does_not_run_it(file: Path, lrnnx, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    text = shipped()["digits_lru"].read_text().replace("name: lru", "name: leaky2")
    for named in (str(file), file.name, "leaky2", "os", "../leaky2.py"):
        recipe.write_text(f"{text}plugins: ['{named}']\n")
        lrnnx("train", recipe, "--dry-run").refuses("unknown layer 'leaky2'")
        assert not (tmp_path / "was_run").exists()
    result = lrnnx("train", *WORDS, "plugins=[leaky2.py]", "--dry-run")
    assert (result.code, "is found out, not set" in result.error) == (2, True)


MISTAKES = {
    "absent": ("mine.py", None, "expected an existing .py file"),
    "other": ("mine.txt", "", "expected an existing .py file"),
    "hidden": ("_mine.py", "", "expected a plain name"),
    "spaced": ("my layer.py", "", "expected a plain name"),
    "broken": ("mine.py", "1 / 0", "cannot be run (ZeroDivisionError: division by zero)"),
    "syntax": ("mine.py", "def", "cannot be run (SyntaxError"),
    "empty": ("mine.py", "x = 1", "holds no layer, model, task, data module"),
    "renamed": ("mine.py", example("implicit.py"), "'mine' is no rule; expected a Rule of that name"),
    "numbered": (
        "implicit.py",
        example("implicit.py").replace("order=1", "order=1, code=1"),
        "without a code",
    ),
    "twice": ("implicit.py", example("implicit.py") + "OTHER = IMPLICIT\n", "holds 2 rules; expected one"),
    "rule": ("zoh.py", example("implicit.py"), "lrnnx has a rule 'zoh'; rename the file"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_file_that_is_no_plugin_is_one_line(lrnnx, tmp_path: Path, name: str) -> None:
    file, content, words = MISTAKES[name]
    if content is not None:
        (tmp_path / file).write_text(content)
    lrnnx("layers", "--plugin", tmp_path / file).refuses(words)


def test_a_file_takes_no_name_that_lrnnx_has(lrnnx, tmp_path: Path) -> None:
    file = tmp_path / "lru.py"
    file.write_text(example("leaky.py"))
    result = lrnnx("layers", "--plugin", file)
    assert (result.code, "lrnnx has a layer 'lru'; rename the file" in result.error) == (2, True)


def test_the_doctor_tries_the_layer_of_a_file(file: Path, lrnnx, tmp_path: Path) -> None:
    from lrnnx_app.layers._properties import PROPERTIES

    report = json.loads(lrnnx("doctor", "--plugin", file, "--json").out)
    assert {row["property"].replace(" ", "_") for row in report["layers"]} == PROPERTIES.keys()
    assert [row for row in report["layers"] if not row["ok"]] == []
    wrong = tmp_path / "wrong.py"
    wrong.write_text(file.read_text().replace("return self.gain * h", "return 1.2 * self.gain * h"))
    result = lrnnx("doctor", "--plugin", wrong, "--json")
    failed = {row["property"]: row["first"] for row in json.loads(result.out)["layers"] if not row["ok"]}
    assert failed.keys() == {"equals its definition"}
    assert "'y': '0.2'" in failed["equals its definition"]
    assert result.code == 1


def test_the_doctor_tries_the_rule_of_a_file(lrnnx, tmp_path: Path) -> None:
    from lrnnx_app.layers import _properties, _rule_properties

    file = tmp_path / "implicit.py"
    file.write_text(example("implicit.py"))
    report = json.loads(lrnnx("doctor", "--plugin", file, "--json").out)
    wanted = [*_rule_properties.PROPERTIES, *(f"a layer: {name}" for name in _properties.PROPERTIES)]
    assert {row["property"] for row in report["rules"]} == {name.replace("_", " ") for name in wanted}
    assert [row for row in report["rules"] if not row["ok"]] == []
    file.write_text(file.read_text().replace("order=1", "order=2"))
    result = lrnnx("doctor", "--plugin", file, "--json")
    (failed,) = (row for row in json.loads(result.out)["rules"] if not row["ok"])
    assert failed["first"] == "implicit: it is of order 0.99, declared is 2"
    assert result.code == 1
