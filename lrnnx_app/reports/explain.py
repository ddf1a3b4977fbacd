"""Every key of a recipe with its value, its type and what it means.

The meaning of a key is written once: in the comment beside its field in a Config.
"""

import ast
import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from lrnnx_app.registry import DATA, LAYERS, MODELS, TASKS

COLUMNS = ("key", "value", "type", "what it means")
NAMED = {"task": TASKS, "model": MODELS, "data": DATA}
Row = tuple[str, Any, str, str]


def rows(config: DictConfig, above: str = "") -> Iterator[Row]:
    """A row for each key of a resolved recipe. A key with others below it has a row without a value."""
    kind = OmegaConf.get_type(config)
    assert isinstance(kind, type)
    types = {field.name: inspect.formatannotation(field.type) for field in fields(kind)}
    for key in map(str, config):
        said = comments(kind)[key]
        if key == "name" and above:
            said = f"one of {', '.join(NAMED.get(above.rstrip('.'), LAYERS))}"
        yield from _row(f"{above}{key}", config[key], types[key], said)


def _row(key: str, value: Any, kind: str, said: str) -> Iterator[Row]:
    if isinstance(value, DictConfig):
        yield key, "", "mapping", said
        yield from rows(value, f"{key}.")
    elif isinstance(value, ListConfig) and any(isinstance(entry, DictConfig) for entry in value):
        yield key, "", "list", said
        for index, entry in enumerate(value):
            yield from rows(entry, f"{key}[{index}].")
    else:
        plain = OmegaConf.to_container(value) if isinstance(value, ListConfig) else value
        yield key, plain, kind, said


@cache
def comments(config: type) -> dict[str, str]:
    """The comment beside each field of a dataclass and of its bases; "" for a field without one."""
    known = {name: text for base in reversed(config.__mro__) for name, text in _own(base).items() if text}
    return {field.name: known.get(field.name, "") for field in fields(config)}


@cache
def _own(config: type) -> dict[str, str]:
    """The comments beside the fields of a class itself; none if its source is not available."""
    try:
        source = textwrap.dedent(inspect.getsource(config))
    except (OSError, TypeError):
        return {}
    found = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    body = [node for node in _class(source).body if isinstance(node, ast.AnnAssign)]
    return {
        ast.unparse(node.target): " ".join(
            found[line] for line in range(node.lineno, (node.end_lineno or node.lineno) + 1) if line in found
        )
        for node in body
    }


def _class(source: str) -> ast.ClassDef:
    node = ast.parse(source).body[0]
    assert isinstance(node, ast.ClassDef)
    return node
