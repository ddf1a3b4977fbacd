"""Reads YAML that may come from strangers: only plain values, and only up to a given size."""

import unicodedata
from typing import Any, ClassVar

import yaml

from lrnnx_app.errors import one_line

MOST_BYTES = 1 << 18  # bytes of a file
MOST_NODES = 20_000  # values and keys; one that aliases repeat counts each time
MOST_LETTERS = 20_000  # letters of one value
MISSING = "???"  # OmegaConf's mark for a value that must still be set
LAYOUT = "\n\t"  # control characters that are allowed in a text
JOINERS = "\u00ad\u200c\u200d"  # invisible characters that are allowed, since words and emoji need them
UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")  # Unicode's categories of letters that move, hide or reorder text


class NotPlainError(ValueError):
    """A text is more than plain values; the message says where, and what to write instead, in one line."""


class Texts(yaml.SafeLoader):
    """A YAML loader that reads every scalar as text; the type of its field converts it later.

    So a folder called `007`, `no` or `12:30` keeps its name.
    """

    yaml_implicit_resolvers: ClassVar = {
        first: [pair for pair in pairs if pair[0].endswith((":null", ":merge"))]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read(text: str) -> Any:
    """The values of a text in YAML.

    Raises:
        NotPlainError: the text is too large or nested too deeply, has a key twice or an interpolation, or is
            no YAML.
    """
    size = len(text.encode(errors="surrogatepass"))
    if size > MOST_BYTES:
        raise NotPlainError(f"{size:,} bytes and more; expected at most {MOST_BYTES:,}")
    try:
        node = yaml.compose(text, Texts)
        if node is not None:
            _count(node, {})
        content = yaml.load(text, Texts)
    except NotPlainError:
        raise
    except RecursionError as error:
        raise NotPlainError("nested too deeply") from error
    except yaml.MarkedYAMLError as error:
        raise NotPlainError(_place(error)) from error
    except (yaml.YAMLError, ValueError, OverflowError, TypeError, AttributeError) as error:
        raise NotPlainError(one_line(error)) from error  # ValueError: a number or date that is none
    check(content)
    return content


def check(content: Any) -> None:
    """Refuse interpolations, which could read the environment or refer to themselves without end.

    Raises:
        NotPlainError: a text in `content` contains one, or is the mark of a missing value.
    """
    if isinstance(content, dict):
        for key, value in content.items():
            check(key)
            check(value)
    elif isinstance(content, list | tuple):
        for value in content:
            check(value)
    elif isinstance(content, str) and "${" in content:
        raise NotPlainError("holds an interpolation, ${…}, which is not read; write the value itself")
    elif content == MISSING:
        raise NotPlainError(f"holds a {MISSING}; expected a value in its place")


def unsafe(text: str) -> bool:
    """Whether a text contains letters that control a terminal, or that hide or reorder other letters."""
    return any(unicodedata.category(c) in UNSAFE and c not in LAYOUT + JOINERS for c in text)


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """The number of nodes from this one downwards, with aliases replaced by what they stand for."""
    size = known.get(id(node))
    if size == 0:
        raise NotPlainError(f"line {node.start_mark.line + 1}: an alias of what holds it")
    if size is not None:
        return size
    known[id(node)] = 0
    size = 1
    if isinstance(node, yaml.ScalarNode):
        if len(node.value) > MOST_LETTERS:
            raise NotPlainError(f"line {node.start_mark.line + 1}: a value of {len(node.value):,} letters")
    elif isinstance(node, yaml.MappingNode):
        _keys_once(node)
        size += sum(_count(child, known) for pair in node.value for child in pair)
    else:
        size += sum(_count(child, known) for child in node.value)
    if size > MOST_NODES:
        raise NotPlainError(f"line {node.start_mark.line + 1}: unfolds to more than {MOST_NODES:,} values")
    known[id(node)] = size
    return size


def _keys_once(node: yaml.MappingNode) -> None:
    keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        line = max(key.start_mark.line for key, _ in node.value if key.value == twice) + 1
        raise NotPlainError(f"line {line}: the key '{twice}' is there twice; expected it once")


def _place(error: yaml.MarkedYAMLError) -> str:
    """The line and the error of a text that is no YAML."""
    mark, problem = error.problem_mark, error.problem or one_line(error)
    if mark is None:
        return problem
    ahead = (mark.get_snippet(0, 1000) or "").splitlines()[0]
    words = "a tab in its indentation; expected spaces" if ahead.startswith("\t") else problem
    return f"line {mark.line + 1}: {words}"
