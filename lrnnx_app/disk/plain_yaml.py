"""YAML of strangers: plain values only, of a bounded size, whatever the text makes a parser do."""

import unicodedata
from typing import Any, ClassVar

import yaml

MOST_BYTES = 1 << 18  # of a file
MOST_NODES = 20_000  # values and keys, each counted as often as aliases repeat it
MOST_LETTERS = 20_000  # of one value
MISSING = "???"  # how OmegaConf marks a value that is yet to come
LAYOUT = "\n\t"  # control characters that a text may hold
JOINERS = "\u00ad\u200c\u200d"  # of the invisible characters, those that words and pictures need
UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")  # Unicode's categories that move, hide or reorder what is shown


class NotPlainError(ValueError):
    """What in a text is more than plain values, and what to write instead; one line."""


class Texts(yaml.SafeLoader):
    """YAML whose scalars are text, which the type of a field converts: a folder `007`, `no` or `12:30` keeps
    its name."""

    yaml_implicit_resolvers: ClassVar = {
        first: [pair for pair in pairs if pair[0].endswith((":null", ":merge"))]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read(text: str) -> Any:
    """The values of a text in YAML.

    Raises:
        NotPlainError: too large or too deep, a key twice, an interpolation, or not YAML at all.
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
        raise NotPlainError(_first_line(error)) from error  # of numbers and dates that are none, too
    check(content)
    return content


def check(content: Any) -> None:
    """Refuse interpolations: they could read the environment, or unfold without end.

    Raises:
        NotPlainError: a text in `content` holds one, or stands for a value that is missing.
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
    """Whether a text holds letters that steer a terminal, or that hide or reorder others."""
    return any(unicodedata.category(c) in UNSAFE and c not in LAYOUT + JOINERS for c in text)


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """The nodes below and with this one, as many as there will be when aliases are unfolded."""
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
    """Line and fault of a text that is no YAML."""
    mark, problem = error.problem_mark, error.problem or _first_line(error)
    if mark is None:
        return problem
    ahead = (mark.get_snippet(0, 1000) or "").splitlines()[0]
    words = "a tab in its indentation; expected spaces" if ahead.startswith("\t") else problem
    return f"line {mark.line + 1}: {words}"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
