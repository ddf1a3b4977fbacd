"""The files of published data sets, for the message when some are missing."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lrnnx_app.errors import DataError


class File(NamedTuple):
    """A file or folder of a data set: bytes (0 if unstated) and MD5 of its content, or a remark."""

    name: str
    size: int = 0
    md5: str = ""
    remark: str = ""

    def __str__(self) -> str:
        facts = [f"{self.size:,} bytes"] * bool(self.size) + [f"md5 {self.md5}"] * bool(self.md5)
        facts += [self.remark] * bool(self.remark)
        return self.name + (f" ({', '.join(facts)})" if facts else "")


class Published(NamedTuple):
    """A data set's title, where it is published, and its files."""

    title: str
    origin: str
    files: Sequence[File]

    def missing(self, root: Path, what: str) -> DataError:
        """The error that names the missing files below `root`, and all files that are expected there."""
        files = "; ".join(map(str, self.files))
        where = f"{root / what}" if str(root) not in ("", ".") else f"data.root: not given, so no {what}"
        return DataError(
            f"{where}: no such file or folder; {self.title} ({self.origin}) consists of: {files}"
        )
