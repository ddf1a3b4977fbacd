"""Several runs from one command: comma lists in overrides, and seeds; each in a folder below one parent."""

import hashlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

from lrnnx_app import plugins
from lrnnx_app import recipe as recipes
from lrnnx_app.console.interrupts import Interrupts
from lrnnx_app.console.terminal import say
from lrnnx_app.errors import GridInterrupted, RecipeError, RunError
from lrnnx_app.runs import folder as folders
from lrnnx_app.runs.folder import RECIPE, SUMMARY
from lrnnx_app.runs.run import check_packing
from lrnnx_app.train import resume as resumption
from lrnnx_app.train import sequence

OPENING, CLOSING, QUOTES = "[{(", "]})", "'\""
LONGEST = 60  # letters of a value in the name of a folder
_running: list[subprocess.Popen[bytes]] = []  # the training that runs now, if any


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
    keys = Counter(override.partition("=")[0] for override in overrides)
    for override in overrides:
        key, equals, value = override.partition("=")
        parts = [part.strip() for part in alternatives(value)]
        if len(parts) > 1 and ("" in parts or len(set(parts)) < len(parts)):
            raise RecipeError(f"override '{override}': expected different values between its commas")
        if len(parts) > 1 and keys[key] > 1:
            raise RecipeError(f"override '{override}': {key} is given {keys[key]} times; expected it once")
        axes.append([f"{key}{equals}{part}" for part in parts])
        names.append([_label(key, part) if len(parts) > 1 else "" for part in parts])
    found, folders = [], set()
    for chosen, parts in zip(product(*axes), product(*names), strict=True):
        folder = "_".join(filter(None, parts))
        if folder in folders:  # a_b and c, beside a and b_c
            folder += _mark("\0".join(chosen))
        folders.add(folder)
        found += [Cell(f"{folder}/seed_{seed}".lstrip("/"), (*chosen, f"seed={seed}")) for seed in seeds] or [
            Cell(folder, chosen)
        ]
    return found


def _label(key: str, value: str) -> str:
    """A value as a part of a folder's name, after its key, unless the key is that of a name (layer=lru).

    Characters that are not valid in a folder's name are replaced. Then a digest of the value follows, so that
    two such values get different names.
    """
    last = key.rpartition(".")[2]
    prefix = "" if last in ("name", "layer", "model", "data", "task") else f"{last}_"
    safe = re.sub(r"[^\w.+-]+", "-", value)[:LONGEST]
    if not prefix:
        safe = safe.lstrip("-.")
    return f"{prefix}{safe}" if safe == value else f"{prefix}{safe.strip('-.')}{_mark(value)}"


def _mark(value: str) -> str:
    return "~" + hashlib.sha256(value.encode(errors="surrogatepass")).hexdigest()[:6]


def seeds_from(recipe: str, overrides: Sequence[str], count: int) -> list[int]:
    """`count` seeds: the recipe's own seed, and the integers that follow it.

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


def plan(
    recipe: str | None, overrides: Sequence[str], seeds: int | None, resume: Path | None
) -> tuple[str, list[Cell], list[DictConfig]]:
    """What a command asks for: the recipe's name, its runs, and the settings of each run.

    Raises:
        RecipeError: there is no recipe and no run to resume, or it does not resolve.
    """
    if recipe is None and resume is None:
        raise RecipeError("RECIPE: expected a recipe file or a shipped recipe's name, or --resume RUN")
    base = recipe or str((resume or Path()) / RECIPE)
    counted = () if seeds is None else seeds_from(base, overrides, seeds)
    grid = cells(overrides, counted)
    if resume is not None and len(grid) == 1 and not counted:
        return base, grid, [resumption.settings(recipe, resume, overrides)]
    return base, grid, [recipes.load(base, cell.overrides) for cell in grid]


def run(
    recipe: str, grid: Sequence[Cell], out: Path | None = None, resume: Path | None = None
) -> tuple[Path, Iterator[tuple[str, str]]]:
    """Train every cell in turn, each in a process of its own, so that a crash does not stop the others.

    Args:
        recipe: as of `lrnnx train`.
        grid: from `cells`.
        out: parent folder to make; by default runs/<recipe>/<time>.
        resume: parent folder of an earlier grid. Its finished runs are kept, the others are made or
            continued.

    Returns:
        The parent folder, and an iterator. Each step of it trains one cell, and yields the cell's folder and
        an error message, "" if the training succeeded.

    Raises:
        RecipeError: a cell's recipe does not resolve; nothing has been trained then.
        RunError: `out` holds files already, a run in `resume` has other settings, or another process trains
            there. The iterator raises GridInterrupted after a signal.
    """
    configs = [recipes.load(recipe, cell.overrides) for cell in grid]
    for config in configs:
        check_packing(recipes.typed(config))
        sequence.check(recipes.typed(config))
    if resume is not None and not resume.is_dir():
        raise RunError(
            f"{resume}: no such folder to resume; expected the parent folder of a grid or of seeds"
        )
    with ExitStack() as stack:
        if resume is None:
            parent = stack.enter_context(folders.new(configs[0].name, out))
        else:
            parent = resume
            stack.enter_context(folders.locked(parent))
        for cell, config in zip(grid, configs, strict=True):
            found = parent / cell.folder / RECIPE
            wanted = recipes.mapping(OmegaConf.to_yaml(config), "")
            if found.is_file() and recipes.read_yaml(found) != wanted:
                raise RunError(f"{found}: a run of other settings; resume with the command that began it")
        return parent, _train(recipe, grid, parent, stack.pop_all())


def _train(recipe: str, grid: Sequence[Cell], parent: Path, lock: ExitStack) -> Iterator[tuple[str, str]]:
    with lock, Interrupts(_hand_on) as interrupts:
        for number, cell in enumerate(grid, 1):
            folder = parent / cell.folder
            if (folder / SUMMARY).is_file():
                continue
            if interrupts.asked:
                raise GridInterrupted(parent)
            say(f"run {number} of {len(grid)}: {' '.join(cell.overrides)}", aside=True)
            option = "--resume" if (folder / RECIPE).is_file() else "-o"
            reason = train_one(["train", recipe, *cell.overrides, option, str(folder)])
            if interrupts.asked and reason:
                raise GridInterrupted(parent)
            yield cell.folder, reason


def _hand_on(number: int) -> None:
    """Pass a signal on to the running training, which counts two signals at almost the same time as one."""
    for process in _running:
        process.send_signal(number)


def train_one(words: Sequence[str]) -> str:
    """Run `lrnnx` with these arguments and show its output. Returns its last line if it failed, else ""."""
    command = [sys.executable, "-m", "lrnnx_app.cli", *words, *plugins.words()]
    tail = b""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        _running[:] = [process]
        while piece := process.stderr.read1(4096):  # type: ignore[attr-defined]  (a BufferedReader)
            print(piece.decode(errors="replace"), end="", file=sys.stderr, flush=True)
            tail = (tail + piece)[-4096:]
    _running.clear()
    if not process.returncode:
        return ""
    lines = [line.strip() for line in re.split(r"[\r\n]", tail.decode(errors="replace")) if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else f"ended with code {process.returncode}"
