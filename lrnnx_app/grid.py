"""Several runs from one command: comma lists in overrides, and seeds; each in a folder below one parent."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import NamedTuple

from omegaconf import OmegaConf

from lrnnx_app import recipe as recipes
from lrnnx_app.errors import RecipeError, RunError
from lrnnx_app.run import RECIPE

OPENING, CLOSING, QUOTES = "[{(", "]})", "'\""


class Cell(NamedTuple):
    """One run of a grid: its folder below the parent, and its overrides."""

    folder: str
    overrides: tuple[str, ...]


def alternatives(value: str) -> list[str]:
    """The parts of a value between its commas, save those inside brackets or quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in value:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in QUOTES:
            quote = letter
        else:
            depth += (letter in OPENING) - (letter in CLOSING)
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def cells(overrides: Sequence[str], seeds: Sequence[int] = ()) -> list[Cell]:
    """Every combination of the alternatives in the overrides, and of the seeds; one cell if there are none.

    Raises:
        RecipeError: an alternative is empty or given twice.
    """
    axes, names = [], []
    for override in overrides:
        key, equals, value = override.partition("=")
        parts = alternatives(value)
        if len(parts) > 1 and ("" in parts or len(set(parts)) < len(parts)):
            raise RecipeError(f"override '{override}': expected different values between its commas")
        axes.append([f"{key}{equals}{part}" for part in parts])
        names.append([_label(key, part) if len(parts) > 1 else "" for part in parts])
    found = []
    for chosen, parts in zip(product(*axes), product(*names), strict=True):
        folder = "_".join(filter(None, parts))
        found += [Cell(f"{folder}/seed_{seed}".lstrip("/"), (*chosen, f"seed={seed}")) for seed in seeds] or [
            Cell(folder, chosen)
        ]
    return found


def _label(key: str, value: str) -> str:
    """A value as a part of a folder's name, with its key unless it is a name or shows it."""
    value = re.sub(r"[^\w.+-]+", "-", value).strip("-.")
    last = key.rpartition(".")[2]
    return value if last in ("name", "layer", "model", "data", "task") else f"{last}_{value}"


def seeds_from(recipe: str, overrides: Sequence[str], count: int) -> list[int]:
    """`count` seeds upwards from the recipe's own.

    Raises:
        RecipeError: count is below 1, or the overrides name seeds as well.
    """
    given = [value for key, _, value in (o.partition("=") for o in overrides) if key == "seed"]
    if count < 1 or any(len(alternatives(value)) > 1 for value in given):
        raise RecipeError(f"--seeds {count}: expected at least 1, and no list of seeds among the overrides")
    first = given[-1] if given else recipes.read_yaml(recipes.find(recipe)).get("seed", 0)
    try:
        return list(range(int(first), int(first) + count))
    except (TypeError, ValueError, OverflowError) as error:
        raise RecipeError(f"seed: expected an integer, not '{first}'") from error


def run(
    recipe: str, grid: Sequence[Cell], out: Path | None = None, resume: Path | None = None
) -> tuple[Path, Iterator[tuple[str, str]]]:
    """Train every cell in turn, each in a process of its own, so that whatever ends one leaves the others.

    Args:
        recipe: as of `lrnnx train`.
        grid: from `cells`.
        out: parent folder to make; by default runs/<recipe>/<time>.
        resume: parent folder of an earlier grid, in which what is missing is made or continued.

    Returns:
        The parent folder, and an iterator that trains and yields each cell's folder and what went wrong,
        "" if nothing.

    Raises:
        RecipeError: a cell's recipe does not resolve; nothing has been trained then.
        RunError: `out` holds files already, or a run in `resume` has other settings.
    """
    configs = [recipes.load(recipe, cell.overrides) for cell in grid]
    parent = resume or out or Path("runs") / configs[0].name / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    if resume is None and parent.exists() and (not parent.is_dir() or any(parent.iterdir())):
        raise RunError(f"{parent}: exists and is not an empty folder; name another with -o, or --resume it")
    if resume is not None and not resume.is_dir():
        raise RunError(
            f"{resume}: no such folder to resume; expected the parent folder of a grid or of seeds"
        )
    for cell, config in zip(grid, configs, strict=True):
        found = parent / cell.folder / RECIPE
        if found.is_file() and recipes.read_yaml(found) != OmegaConf.to_container(config):
            raise RunError(f"{found}: a run of other settings; resume with the command that began it")
    return parent, _train(recipe, grid, parent)


def _train(recipe: str, grid: Sequence[Cell], parent: Path) -> Iterator[tuple[str, str]]:
    for number, cell in enumerate(grid, 1):
        folder = parent / cell.folder
        if (folder / "summary.json").is_file():
            continue
        print(f"run {number} of {len(grid)}: {' '.join(cell.overrides)}", file=sys.stderr, flush=True)
        place = ("--resume", folder) if (folder / "checkpoints" / "last.ckpt").is_file() else ("-o", folder)
        if place[0] == "-o" and (folder / RECIPE).is_file():
            shutil.rmtree(folder)  # it was cut short before its first checkpoint
        yield cell.folder, train_one(["train", recipe, *cell.overrides, *map(str, place)])


def train_one(words: Sequence[str]) -> str:
    """Run `lrnnx` with these words, its output shown; the last line of what it said if it failed, else ""."""
    command = [sys.executable, "-m", "lrnnx_app.cli", *words]
    tail = b""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        while piece := process.stderr.read1(4096):  # type: ignore[attr-defined]  (a BufferedReader)
            print(piece.decode(errors="replace"), end="", file=sys.stderr, flush=True)
            tail = (tail + piece)[-4096:]
    if not process.returncode:
        return ""
    lines = [line.strip() for line in re.split(r"[\r\n]", tail.decode(errors="replace")) if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else f"ended with code {process.returncode}"
