"""The exception tree. Whatever a user can cause is a `UserError`: one line, exit code 2.

LrnnxError
├── Interrupted          a signal ended a training, its checkpoint is written: exit code 75
│   └── GridInterrupted  the same for several trainings of one command
└── UserError            names the input, what was expected and what to do
    ├── RecipeError      a recipe, a key or an override
    ├── DataError        a file or folder that was read
    ├── RunError         a run folder or its checkpoint
    ├── CacheError       a folder of the cache to which other users can write
    ├── TrainingError    a training whose numbers were not finite
    └── StreamError      a model or input that cannot be streamed
"""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

MOST_WORDS = 400  # most letters of a library's message
STOPPED = 75  # exit code of `Interrupted`: EX_TEMPFAIL, try again


class LrnnxError(Exception):
    """Base of every exception raised on purpose."""


class Interrupted(LrnnxError):  # noqa: N818  (no error)
    """Training stopped because a signal asked it to; its checkpoint is written."""

    def __init__(self, run: Path, step: int) -> None:
        super().__init__(
            f"stopped after step {step} as asked, nothing is lost; go on with: lrnnx train --resume {run}"
        )


class GridInterrupted(Interrupted):
    """As `Interrupted`, between or in the trainings of a grid."""

    def __init__(self, parent: Path) -> None:
        LrnnxError.__init__(
            self, f"stopped as asked, nothing is lost; go on with the same command and --resume {parent}"
        )


class UserError(LrnnxError):
    """A mistake in what the user gave; its text is one line."""


class RecipeError(UserError):
    """A recipe or an override that does not fit the schema."""


class DataError(UserError):
    """A file or folder that is missing, unreadable or of the wrong kind."""


class RunError(UserError):
    """A run folder without what is needed, or with a checkpoint that does not fit."""


class CacheError(UserError):
    """A folder or file of the cache that another user owns or may write to."""


class TrainingError(UserError):
    """A training whose losses, gradients or outputs are not finite."""


class StreamError(UserError):
    """A model or an input that cannot be streamed."""


def nearest(name: str, options: Iterable[str]) -> str:
    """A hint for an unknown `name`: its nearest valid spelling, else all valid ones."""
    options = sorted(options)
    close = get_close_matches(name, options, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"expected one of: {', '.join(options)}"


def one_of(key: str, value: str, options: Iterable[str]) -> str:
    """`value` itself.

    Raises:
        RecipeError: it is not one of the options; names the key and the nearest option.
    """
    if value not in options:
        raise RecipeError(f"{key}: unknown '{value}'; {nearest(value, options)}")
    return value


def one_line(error: BaseException) -> str:
    """The important part of a library's message, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    return line if len(line) < MOST_WORDS else f"{line[: MOST_WORDS // 2]}…{line[-MOST_WORDS // 2 :]}"


def needs(extra: str, error: ImportError) -> UserError:
    """The error for a missing optional package."""
    return UserError(f"{error.name} is not installed: pip install 'lrnnx-app[{extra}]'")
