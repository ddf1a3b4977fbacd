"""Words of any kind: a command does its work or says in one line what is wrong, with code 0 or 2.

The work itself is left out: what is tried are options, overrides, recipes and all that is checked before.
`LRNNX_FUZZ=5000 pytest tests/cli/test_fuzz_commands.py` tries so many command lines and recipes.
"""

import contextlib
import io
import os
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from lrnnx_app import cli, export, plots, recipe
from lrnnx_app.bench import _peers, denoisers, layers, ops, scaling, sequences, serving, soak, streaming
from lrnnx_app.console import terminal
from lrnnx_app.infer import prompts, start
from lrnnx_app.infer import text as sample
from lrnnx_app.registry import DATA, LAYERS, MODELS, TASKS
from lrnnx_app.reports import catalog, doctor, inspection, show
from lrnnx_app.runs import run
from lrnnx_app.runs.run import build_data, build_task
from lrnnx_app.serve import start as serve
from lrnnx_app.spec import DataSpec
from lrnnx_app.train import fit, grid

TRIES = int(os.environ.get("LRNNX_FUZZ", "80"))
fuzzing = settings(
    max_examples=TRIES,
    deadline=None,
    derandomize="LRNNX_FUZZ" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)
SUMMARY = {"metrics": {"test/loss": 1.0}, "parameters": 1, "seconds": 1.0, "samples_per_second": 1.0}
SPEC = DataSpec(d_input=3, d_output=2)
GROUPS = ([], ["bench"], ["data"], ["data", "prepare"])  # which show their help
SMALL = 10**5  # a size up to which a model is built


@pytest.fixture(autouse=True)
def idle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with a run in it, where commands check and do no work."""

    def train(
        config: Any, out: Path | None = None, resume: Path | None = None
    ) -> tuple[Path, dict[str, Any]]:
        opened = recipe.typed(config)
        build_data(opened)
        sizes = [n for n in numbers(OmegaConf.to_container(config.model)) if isinstance(n, int)]
        if all(abs(size) <= 64 for size in sizes):
            build_task(opened, SPEC)
        return Path("run"), SUMMARY

    def written(name: str | None, output: Path) -> Any:
        found(name, output)
        return lambda *_: ["written"]

    found = export.find
    row = {"op": "a", "ms": 1.0}
    for module, function, does in (
        (fit, "train", train),
        (fit, "dry_run", lambda config: (0.5, [("a", "b", 1, 1)])),
        (fit, "evaluate", lambda run, split: {"loss": float("nan")}),
        (grid, "run", lambda *_: (Path("grid"), [])),
        (show, "outcome", lambda *_: None),
        (show, "compared", lambda *_: []),
        (show, "comparison", lambda *_: None),
        (inspection, "splits", lambda _: ()),
        (inspection, "prepared", lambda name, overrides: inspection.open_data(name, overrides) and ()),
        (inspection, "picture", lambda _: None),
        (plots, "save", lambda *_: None),
        (start, "infer", lambda run, inputs, options: options.check(inputs) or 0),
        (prompts, "continued", lambda *_, **__: None),
        (sample, "score_files", lambda *_: None),
        (export, "find", written),
        (catalog, "rows", lambda: [("a",) * (len(catalog.COLUMNS) + 1)]),
        (doctor, "run", lambda *_: doctor.Report({}, {}, {}, {})),
        (doctor, "text", lambda report: "all well"),
        (ops, "rows", lambda *_: [row]),
        (layers, "rows", lambda device, names, d_state: [row for name in names or () if LAYERS.find(name)]),
        (scaling, "rows", lambda *_: [row]),
        (sequences, "rows", lambda *_: [row]),
        (run, "audio_model", lambda run: None),
        (streaming, "rows", lambda *_: [row]),
        (streaming, "largest", lambda *_: 1),
        (streaming, "step_rows", lambda *_: [row]),
        (streaming, "write_plot", lambda *_: None),
        (denoisers, "mixtures", lambda *_: []),
        (denoisers, "rows", lambda *_: []),
        (denoisers, "write_plot", lambda *_: None),
        (_peers, "ours", lambda name: run.Run(name) and []),
        (serving, "row", lambda *_: row),
        (serving, "search", lambda *_: [row]),
        (serving, "most", lambda rows: 1),
        (serving, "alone", lambda *_: 1),
        (serve, "serve", lambda runs, options: None),
        (soak, "rows", lambda *_: [row]),
        (soak, "verdict", lambda rows: (True, "well")),
        (soak, "write_plot", lambda *_: None),
    ):
        monkeypatch.setattr(module, function, does)
    monkeypatch.setattr("lrnnx_app.streaming.threads.threads", lambda number: contextlib.nullcontext())
    monkeypatch.setattr("lrnnx_app.bench.report.write_plot", lambda *_: None)
    monkeypatch.setattr("lrnnx_app.bench.report.write_json", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    for name, source in (("run", "digits_lru"), ("text", "text_s6_mini")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text(OmegaConf.to_yaml(recipe.load(source)))
    return tmp_path


def numbers(content: Any) -> Iterator[int | float]:
    values = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    for value in values:
        if isinstance(value, int | float):
            yield value
        yield from numbers(value)


def ends_well(words: list[str]) -> None:
    """Run a command in this process: code 0 or 2, and what is wrong in one line that is safe to show."""
    said, result = io.StringIO(), io.StringIO()
    before = sys.argv
    sys.argv = ["lrnnx", *words]
    try:
        streams = contextlib.redirect_stderr(said), contextlib.redirect_stdout(result)
        with streams[0], streams[1], pytest.raises(SystemExit) as stop:
            cli.main()
    finally:
        sys.argv = before
    errors = [line for line in said.getvalue().split("\n") if line.startswith("error:")]
    line = f"lrnnx {shlex.join(words)}: {said.getvalue()}"
    assert stop.value.code in (0, 2), line
    assert (stop.value.code == 2) == bool(errors) or words in GROUPS, line
    assert len(errors) <= 1, line
    assert all(len(error) < 2000 and terminal.shown(error) == error for error in errors), line


@cache
def commands() -> dict[tuple[str, ...], tuple[str, ...]]:
    """The words that name each command, and its options."""
    found: dict[tuple[str, ...], tuple[str, ...]] = {}

    def walk(command: Any, words: tuple[str, ...]) -> None:
        names = [name for param in command.params for name in param.opts if name.startswith("-")]
        found[words] = tuple(name for name in names if "completion" not in name)  # of a shell
        for name, inner in getattr(command, "commands", {}).items():
            walk(inner, (*words, name))

    walk(typer.main.get_command(cli.app), ())
    return found


ODD_NUMBERS = ("0", "-1", "-5", "nan", "inf", "-inf", "1e999", "1e-320", "1_000", "0x10", "007", "2", "1.5")
HUGE = ("9" * 25, "-" + "9" * 25, "4294967296", "9223372036854775808", "9" * 5000)
ODD_TEXTS = (
    "",
    " ",
    "-",
    "--",
    "a,b",
    "a,",
    "\x1b[31m",
    "\udcff",
    "x" * 300,
    "a\nb",
    "~",
    "null",
    "[",
    "cpu",
)
PLACES = ("run", "text", "nowhere", "/dev/null", "digits_lru", "lru", "audio", "a.onnx", "a.png", ".", "test")
TEXT = st.text(max_size=8).filter(lambda text: "\0" not in text)  # which no shell hands on
SCALARS = st.one_of(st.sampled_from((*ODD_NUMBERS, *HUGE, *ODD_TEXTS, *PLACES)), TEXT)


@cache
def keys() -> tuple[str, ...]:
    """Every key of every recipe's schema, and some that none has."""
    found: dict[str, None] = {}

    def walk(content: Any, key: str) -> None:
        found[key] = None
        if isinstance(content, dict):
            for name, value in content.items():
                walk(value, f"{key}.{name}" if key else name)

    for part, registry in (("task", TASKS), ("model", MODELS), ("model.layer", LAYERS), ("data", DATA)):
        for name in registry:
            walk(OmegaConf.to_container(OmegaConf.structured(registry[name].Config)), part)
            found[f"{part}.name"] = None
    walk(OmegaConf.to_container(OmegaConf.structured(recipe.TrainerConfig)), "trainer")
    odd = (
        "seed",
        "name",
        "about",
        "x",
        "",
        "..",
        "model.layer[0]",
        "model.layer[9].d_state",
        "model.",
        "[",
        "a.b",
    )
    return (*found, *odd)


NESTED = st.recursive(
    SCALARS, lambda x: st.lists(x, max_size=3) | st.dictionaries(TEXT, x, max_size=3), max_leaves=6
)
OVERRIDES = st.builds(
    lambda key, value: f"{key}={value}",
    st.deferred(lambda: st.sampled_from(keys())),
    st.one_of(SCALARS, NESTED.map(str), st.lists(SCALARS, max_size=3).map(",".join)),
)


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    name = draw(st.sampled_from(sorted(commands())))
    words: list[str] = []
    for _ in range(draw(st.integers(0, 4))):
        if commands()[name] and draw(st.booleans()):
            words.append(draw(st.sampled_from(commands()[name])))
        words.append(draw(st.one_of(SCALARS, OVERRIDES)))
    return [*name, *words]


@fuzzing
@example(["infer", "run", "-", "--chunk-ms", "inf"])
@example(["infer", "text", "--prompt", "a", "--temperature", "nan"])
@example(["train", "digits_lru", "data.root=\udcff", "seed=" + "9" * 25])
@example(["train", "digits_lru", "--seeds", "9" * 25])
@given(command_lines())
def test_command_lines_of_any_kind(words: list[str]) -> None:
    ends_well(words)


@fuzzing
@example("digits_lru", ["model.dropout=-1"])
@example("digits_lru", ["model.layer=glu", "model.dropout=nan"])
@example("digits_lru", ["task.label_smoothing=2"])
@example("digits_lru", ["data.split=[[],[],[]]"])
@example("denoise_lru", ["model.channels=[[8],[8]]"])
@example("events_event_ssm_mini", ["model.pools=[[]]"])
@example("denoise_lru", ["task=0,\udcff"])
@given(
    st.sampled_from(("digits_lru", "denoise_lru", "text_s6_mini", "events_event_ssm_mini")),
    st.lists(OVERRIDES, min_size=1, max_size=3),
)
def test_overrides_of_any_kind_reach_no_work(name: str, overrides: list[str]) -> None:
    ends_well(["train", name, *overrides])


BASES = ("digits_lru", "digits_hybrid", "voices_s5_mini")
SAYS = (["train"], ["recipes"], ["data"], ["train", "--dry-run"])
TREES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), SCALARS),
    lambda x: st.one_of(
        st.lists(x, max_size=3), st.dictionaries(st.one_of(TEXT, st.integers(), st.none()), x, max_size=3)
    ),
    max_leaves=8,
)


@st.composite
def recipes_changed(draw: st.DrawFn) -> dict[str, Any]:
    """A shipped recipe with some of its parts, at any depth, in place of others."""
    content = recipe.read_yaml(recipe.find(draw(st.sampled_from(BASES))))
    for _ in range(draw(st.integers(1, 3))):
        place: Any = content
        path = draw(st.sampled_from(keys())).split(".")
        for step in path[:-1]:
            place = place.setdefault(step, {}) if isinstance(place, dict) else {}
        if isinstance(place, dict):
            place[path[-1]] = draw(TREES)
    return content


@fuzzing
@given(
    st.one_of(recipes_changed(), TREES),
    st.sampled_from(SAYS),
)
def test_recipes_of_any_kind(content: Any, words: list[str]) -> None:
    Path("mine.yaml").write_text(yaml.safe_dump(content), encoding="utf-8", errors="surrogatepass")
    ends_well([*words, "mine.yaml"])


@fuzzing
@given(st.text(st.sampled_from("ab:\t\n -[]{}&*!|>'\"#%@`,?\x1b\x85\ufeff")))
def test_texts_that_are_hardly_recipes(text: str) -> None:
    Path("mine.yaml").write_text(text, encoding="utf-8")
    ends_well(["recipes", "mine.yaml"])
