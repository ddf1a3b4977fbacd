"""The checkpoints of a folder: reads one, and finds the newest good one.

Each is a sealed file; one to resume from may also be a folder, see `lrnnx_app.runs.shards`.
"""

import operator
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from lrnnx_app.disk import atomic
from lrnnx_app.errors import RunError
from lrnnx_app.recipe import FORMS
from lrnnx_app.runs import sealed
from lrnnx_app.runs.folder import LAST
from lrnnx_app.spec import DataSpec

STEP = re.compile(rf"step_(\d+)({'|'.join(map(re.escape, FORMS.values()))})")


def load(path: Path) -> dict[str, Any]:
    """A checkpoint's content as it was written, on the CPU.

    Raises:
        RunError: it is missing, incomplete or changed.
    """
    if path.is_dir():
        from lrnnx_app.runs import shards  # which takes long to import

        return shards.read(path)
    return sealed.read(path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content, with its `spec` as a DataSpec. Reads only tensors and plain containers.

    Raises:
        RunError: the digest is missing or wrong, or the file is no checkpoint.
    """
    try:
        content = load(path)
        content["spec"] = DataSpec.read(content["spec"])
        if not all(isinstance(value, Tensor) for value in content["state_dict"].values()):
            raise TypeError("a weight is no tensor")
        epoch, batch = map(operator.index, content.get("position", (0, 0)))
        if min(epoch, batch, operator.index(content.get("global_step", 0))) < 0:
            raise ValueError("a negative position")
    except RunError:
        raise
    except Exception as error:  # damaged bytes can cause any kind of error in torch.load
        raise RunError(
            f"{path}: not a checkpoint that lrnnx wrote ({type(error).__name__}); "
            "expected one, restore or retrain it"
        ) from error
    return content


def candidates(folder: Path) -> list[Path]:
    """The checkpoints to resume from, newest first, each once."""
    steps = [path for path in folder.glob("step_*") if STEP.fullmatch(path.name)]
    steps.sort(key=step_of, reverse=True)
    last = folder / LAST
    if last.exists() and not any(path.samefile(last) for path in steps):
        newer = (
            steps and steps[0].stat().st_mtime_ns > last.stat().st_mtime_ns
        )  # a kill came before last.ckpt was renamed
        steps.insert(1 if newer else 0, last)
    return steps


def link(path: Path, name: Path) -> None:
    """Make `name` a second name of `path` in the same folder, replacing an older one in one move."""
    with atomic.whole(name) as part:
        atomic.discard(part)
        try:
            if path.is_dir():
                part.symlink_to(path.name)
            else:
                os.link(path, part)
        except OSError:  # a file system without links
            if path.is_dir():
                shutil.copytree(path, part)
            else:
                shutil.copyfile(path, atomic.begin(name))


def step_of(path: Path) -> int:
    """The optimizer step in a file's name."""
    found = STEP.fullmatch(path.name)
    return int(found[1]) if found else 0


def newest(
    folder: Path, read: Callable[[Path], dict[str, Any]], say: Callable[[str], None]
) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that `read` accepts, and its content; None if there are no checkpoints.

    Raises:
        RunError: there are checkpoints, but `read` accepts none.
    """
    problems = []
    for path in candidates(folder):
        try:
            content = read(path)
        except RunError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            say(f"{problem}; going on from {path.name}")
        return path, content
    if problems:
        raise RunError(f"{folder}: no checkpoint in it is good; the newest: {problems[0]}")
    return None
