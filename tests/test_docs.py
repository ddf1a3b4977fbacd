"""README and guides: each command and code block runs, on small runs, and each fact about the code holds.

Trainings of the shipped recipes and benchmarks are resolved and built, not run; programs of the run `RUN` are
written as test_formats writes them, but for ONNX, whose script a guide runs. All else is really done.
"""

import ast
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import typer

from lrnnx_app import cli, recipe
from lrnnx_app import export as formats
from lrnnx_app.bench import denoisers, layers, ops, scaling, sequences, serving, soak, streaming
from lrnnx_app.data import prepare
from lrnnx_app.export import export_run
from lrnnx_app.ops._table import OPERATORS
from lrnnx_app.registry import shipped
from lrnnx_app.reports import doctor, listing
from lrnnx_app.runs.folder import write_summary
from lrnnx_app.runs.run import build
from lrnnx_app.serve import start
from lrnnx_app.train import fit, grid
from tests.helpers import DENOISE, DOCS, ROOT, blocks, untrained

README = ROOT / "README.md"
GUIDES = [README, ROOT / "csrc" / "README.md", *sorted(DOCS.glob("*.md"))]
each_guide = pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.relative_to(ROOT).as_posix())
TEXT = {guide: guide.read_text("utf-8") for guide in GUIDES}
LAUNCHED = {"lrnnx", ".venv/bin/lrnnx", "lrnnx_app.cli"}  # before the words of a command
OTHERS = {
    "python3",
    "test",
    "arecord",
    "aplay",
    "tensorboard",
    "pip",
    "python",
    "make",
    "./model",
    "env",
}  # programs of others
SUMMARY = {
    "metrics": {"test/loss": 1.0, "test/accuracy": 0.5, "test/si_snr": 1.0},
    "parameters": 1,
    "seconds": 1.0,
    "samples_per_second": 1.0,
    "device": "cpu",
}
SMALL = ["model.d_model=4", "trainer.accelerator=cpu"]
RUNS = {
    "RUN": DENOISE,
    "runs/denoise_lru/now": DENOISE,
    "runs/digits_lru/now": ["digits_lru", *SMALL, "model.depth=1", "model.bidirectional=false"],
    "runs/digits_s6/now": ["digits_s6", *SMALL, "model.depth=1", "model.bidirectional=false"],
    "runs/text_rglru_mini/now": ["text_rglru_mini", *SMALL, "model.depth=1"],
    "runs/voices_s5_mini/now": ["voices_s5_mini", "trainer.accelerator=cpu"],
    "runs/events_event_ssm_mini/now": ["events_event_ssm_mini", "trainer.accelerator=cpu"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files and the run folders of which the guides speak; the runs are not trained."""
    folder = tmp_path_factory.mktemp("guides")
    for name, words in RUNS.items():
        write_summary(untrained(folder / name, *words), SUMMARY)
    rng = np.random.default_rng(0)
    for name in ("clean/a.wav", "clean/b.wav", "clean/c.wav", "noise/a.wav", "noise/b.wav", "noise/c.wav"):
        (folder / name).parent.mkdir(exist_ok=True)
        soundfile.write(folder / name, 0.1 * rng.standard_normal(40000), 16000)
    for name in ("noisy.wav", "in.wav"):
        soundfile.write(folder / name, 0.1 * rng.standard_normal(3000), 16000)
    language = ("model.name=language", "model.d_model=4", "model.depth=1", "trainer.accelerator=cpu")
    export_run(untrained(folder / "own", "text_s6_mini", *language), folder / "mamba-130m", "transformers")
    (folder / "notes").mkdir()
    for name in "abc":
        (folder / "notes" / f"{name}.txt").write_text(name * 200)
    (folder / "series.txt").write_text("1\n2\n3\n" * 4)
    (folder / "sound.pcm").write_bytes(bytes(3200))
    shapes = {"Lambda_re": 4, "Lambda_im": 4, "B": (4, 16, 2), "C": (16, 4, 2), "D": 16, "log_step": (4, 1)}
    places = [(f"layers_{number}/seq/{name}", shape) for number in (0, 1) for name, shape in shapes.items()]
    np.savez(folder / "s5.npz", **{name: -rng.random(shape) for name, shape in places})
    (folder / "events.csv").write_text(
        "t,x,y,p\n" + "".join(f"{9 * i},{i % 2},{i % 16},0\n" for i in range(64))
    )
    for _, name, content in (block for guide in GUIDES for block in blocks(guide)):
        if name:
            (folder / name).write_text(content)
    return folder


@pytest.fixture
def here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, with the work of trainings, benchmarks and downloads left out."""
    folder = Path(shutil.copytree(place, tmp_path / "here"))
    monkeypatch.chdir(folder)
    train = fit.train

    def prepared(config: Any, out: Path | None = None, resume: Path | None = None) -> tuple[Path, Any]:
        opened = recipe.typed(config)
        if opened.name not in shipped() and opened.trainer.max_epochs < 5:  # a guide's own
            return train(config, out, resume)
        if opened.trainer.devices == 1:  # else it is large
            build(opened)
        return resume or Path("runs/none"), SUMMARY

    def gridded(name: str, cells: Any, out: Path | None, resume: Path | None) -> tuple[Path, Any]:
        for cell in cells:
            assert recipe.load(name, cell.overrides)
        return Path("runs/digits_lru"), []

    def fetched(out: Path, *_: Any) -> list[dict[str, str]]:
        shutil.copytree("clean", out / "speech", dirs_exist_ok=True)
        shutil.copytree("noise", out / "noise", dirs_exist_ok=True)
        return []

    def written(name: str) -> Any:
        export = formats.module(name).export
        return lambda run, path, options: [] if run.path == Path("RUN") else export(run, path, options)

    row = {"op": "a", "ms": 1.0}
    for module, name, does in (
        (fit, "train", prepared),
        (grid, "run", gridded),
        (prepare, "denoise", fetched),
        (doctor, "_load", lambda build, present: ()),
        (doctor, "OPERATORS", {"rfft": OPERATORS["rfft"]}),
        (
            denoisers,
            "rows",
            lambda denoisers, clips: [(row | {"denoiser": one.name}, []) for one in denoisers],
        ),
        (denoisers, "by", lambda *_: [row]),
        (denoisers, "write_plot", lambda rows, path: path.touch()),
        (ops, "rows", lambda device: [row]),
        (layers, "rows", lambda device, names, d_state: [row]),
        (scaling, "rows", lambda *_: [row]),
        (sequences, "rows", lambda *_: [row]),
        (streaming, "rows", lambda *_: [row]),
        (streaming, "largest", lambda *_: 1),
        (streaming, "step_rows", lambda *_: [row]),
        (serving, "search", lambda *_: [row]),
        (serving, "most", lambda rows: 1),
        (serving, "alone", lambda *_: 1),
        (start, "serve", lambda runs, options: None),
        (soak, "rows", lambda *_: [row]),
        (soak, "verdict", lambda rows: (True, "well")),
        *((formats.module(name), "export", written(name)) for name in ("c", "torch", "lv2", "ladspa", "web")),
    ):
        monkeypatch.setattr(module, name, does)
    return folder


def commands(guide: Path) -> Iterator[list[str]]:
    """The words of each program that the blocks of a guide start."""
    for language, _, content in blocks(guide):
        if language == "sh":
            for line in content.replace("\\\n", " ").replace("<time>", "now").splitlines():
                lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
                lexer.whitespace_split = True
                words: list[str] = []
                for word in lexer:
                    if set(word) <= set("|&;"):
                        yield words
                        words = []
                    else:
                        words.append(word)
                yield words


def lrnnx_words(words: list[str]) -> list[str] | None:
    """What follows `lrnnx` in a command, whatever launches it; None if it is another program."""
    starts = [i for i, word in enumerate(words) if word in LAUNCHED]
    return words[starts[0] + 1 :] if starts else None


@each_guide
def test_every_command_runs(guide: Path, here: Path, lrnnx, monkeypatch: pytest.MonkeyPatch) -> None:
    told_again = [words for other in GUIDES[1:] for words in commands(other)] if guide == README else []
    for words in commands(guide):
        if words in told_again:  # and run there
            continue
        rest = lrnnx_words(words)
        if rest is None:
            assert words[0].removeprefix(".venv/bin/") in OTHERS, words
            if words[0] == "python":
                subprocess.run([sys.executable, *words[1:]], cwd=here, check=True, capture_output=True)
            continue
        with (here / "sound.pcm").open() as sound:
            monkeypatch.setattr(sys, "stdin", sound)
            result = lrnnx(*rest)
        assert result.code == 0, f"{shlex.join(words)}: {result.error}"


@each_guide
def test_python_blocks_run_in_order(guide: Path, here: Path) -> None:
    scope: dict[str, Any] = {}
    for language, name, content in blocks(guide):
        if language == "python" and not name:
            torch.manual_seed(0)
            exec(compile(content, guide.name, "exec"), scope)


@each_guide
def test_blocks_are_of_a_kind_that_is_tested(guide: Path) -> None:
    named = {word for words in commands(guide) for word in words} | {"pyproject.toml"}
    for language, name, _ in blocks(guide):
        assert language in ("sh", "python") or name, f"a block in {language} that is no file"
        assert not name or name in named, f"no command uses {name}"


@each_guide
def test_commands_in_the_text_exist(guide: Path) -> None:
    for inline in re.findall(r"`lrnnx( [^`]*)?`", TEXT[guide]):
        command: Any = typer.main.get_command(cli.app)
        words = inline.split()
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        assert not getattr(command, "commands", {}) or not words or words[0].startswith("-"), inline
        if command.name == "docs" and words:
            assert words[0] in ("TOPIC", "[TOPIC]", *listing.topics()), inline
        known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
        known |= {"--help", "--install-completion"}
        assert {word for word in words if re.match("--?[a-z]", word)} <= known, inline


@each_guide
def test_links_and_files_that_a_guide_names_are_there(guide: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT[guide]):
        assert "://" in target or (guide.parent / target).exists(), target
    for path in re.findall(r"`((?:lrnnx_app|csrc|tests|data_modules|recipes)/[\w/.]*)`", TEXT[guide]):
        assert (ROOT / path).exists(), path


def test_the_readme_has_a_line_for_each_folder() -> None:
    told = set(re.findall(r"^\| `([\w/]+)/` \|", TEXT[README], re.MULTILINE))
    inside = (path for path in (ROOT / "lrnnx_app").iterdir() if path.name[0] != "_")
    folders = {f"lrnnx_app/{path.name}" for path in inside if any(path.glob("[!_]*.*"))}
    assert told == folders | {"recipes", "data_modules", "csrc", "tests"}


def test_the_guide_to_the_sources_has_each_of_them() -> None:
    told = TEXT[ROOT / "csrc" / "README.md"]
    shared = [path.name for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cuh")]
    assert [name for name in shared if name not in told] == []


def test_extras_that_are_named_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = ",".join(re.findall(r"lrnnx-app\[([\w,-]+)\]", "".join(TEXT.values())))
    assert set(named.split(",")) <= extras.keys()


def test_every_environment_variable_stands_in_one_table() -> None:
    rows = re.findall(r"^\| (`[A-Z].*?`) \|", TEXT[DOCS / "kernels.md"], re.MULTILINE)
    told = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    read, literal = set(), set()
    for folder in ("lrnnx_app", "data_modules", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text("utf-8")
            strings = {n.value for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Constant)}
            literal |= {value for value in strings if isinstance(value, str)}
            if folder != "tests":
                read |= set(re.findall(r"""environ(?:\.get\(|\[)\s*["'](\w+)""", text))
    read |= {name for name in literal if re.fullmatch("LRNNX_[A-Z]+", name)}
    assert read <= told
    assert told <= literal


def test_topics_are_listed_and_an_unknown_one_is_one_line(lrnnx) -> None:
    listed = lrnnx("docs").out
    assert all(f"{path.stem}  " in listed for path in DOCS.glob("*.md"))
    for topic, title in listing.topics().items():
        assert title
        assert lrnnx("docs", topic).out.rstrip("\n") == TEXT[DOCS / f"{topic}.md"].rstrip("\n")
    wrong = lrnnx("docs", "recipse")
    assert (wrong.code, wrong.error) == (2, "error: docs: unknown topic 'recipse'; did you mean 'recipes'?\n")


def test_the_guides_code_is_in_the_project_s_style(tmp_path: Path) -> None:
    for guide in GUIDES:
        texts: dict[str, list[str]] = {}
        for language, name, content in blocks(guide):
            if language == "python":
                texts.setdefault(name or f"{guide.stem}_blocks.py", []).append(content)
        for name, parts in texts.items():
            (tmp_path / name).write_text("\n".join(parts))
    ruff = [sys.executable, "-m", "ruff"]
    config = ["--no-cache", "--config", str(ROOT / "pyproject.toml"), str(tmp_path)]
    for words in (["check", "--ignore", "E402"], ["format", "--diff"]):
        done = subprocess.run([*ruff, *words, *config], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
