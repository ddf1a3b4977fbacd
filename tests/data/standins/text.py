"""A file of text, as enwik8 is."""

from pathlib import Path
from typing import Any


def write(folder: Path, config: Any) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "enwik8").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    return [f"data.root={folder / 'enwik8'}"]
