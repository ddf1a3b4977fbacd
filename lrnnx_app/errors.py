"""The exception tree. Whatever a user can cause is a `UserError`: one line, exit code 2.

LrnnxError
└── UserError            names the input, what was expected and what to do
    ├── RecipeError      a recipe, a key or an override
    ├── DataError        a file or folder that was read
    ├── RunError         a run folder or its checkpoint
    └── StreamError      a model or input that cannot be streamed
"""

from collections.abc import Iterable
from difflib import get_close_matches


class LrnnxError(Exception):
    """Base of every exception raised on purpose."""


class UserError(LrnnxError):
    """A mistake in what the user gave; its text is one line."""


class RecipeError(UserError):
    """A recipe or an override that does not fit the schema."""


class DataError(UserError):
    """A file or folder that is missing, unreadable or of the wrong kind."""


class RunError(UserError):
    """A run folder without what is needed, or with a checkpoint that does not fit."""


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
