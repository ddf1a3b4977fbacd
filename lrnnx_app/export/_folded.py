"""Breaks long lines of written Python at a pair of brackets."""

from itertools import pairwise

LONGEST = 100
CLOSING = {"(": ")", "[": "]", "{": "}"}


def folded(text: str) -> str:
    """A long statement, with its indent, over several lines: one for each item of its widest brackets."""
    if len(text) <= LONGEST:
        return text
    pairs = _pairs(text)
    if not pairs:
        return text
    start, stop = max(pairs, key=lambda pair: pair[1] - pair[0])
    items = _items(text[start + 1 : stop])
    if len(items) == 1 and stop - start < len(text) / 2:
        return text
    indent = text[: len(text) - len(text.lstrip())]
    lines = [folded(f"{indent}    {item}") for item in items]
    comma = "," if len(items) > 1 or text[stop - 1] == "," else ""
    inner = ",\n".join(lines) + comma
    return f"{text[: start + 1]}\n{inner}\n{indent}{text[stop:]}"


def _pairs(text: str) -> list[tuple[int, int]]:
    """The outermost brackets: where they open and close."""
    found, depth, start, quoted = [], 0, 0, False
    for at, letter in enumerate(text):
        if letter == '"':
            quoted = not quoted
        elif quoted:
            continue
        elif letter in CLOSING:
            start = at if depth == 0 else start
            depth += 1
        elif letter in CLOSING.values():
            depth -= 1
            if depth == 0:
                found.append((start, at))
    return found


def _items(text: str) -> list[str]:
    """What commas outside brackets part."""
    inside = [range(start, stop) for start, stop in _pairs(text)]
    cuts = [at for at, letter in enumerate(text) if letter == "," and not any(at in span for span in inside)]
    edges = [-1, *cuts, len(text)]
    parts = [text[a + 1 : b].strip() for a, b in pairwise(edges)]
    return [part for part in parts if part]
