"""metrics.csv of a run, which its logger writes; keeps the rows from before a resume."""

import csv
import io
import re
from pathlib import Path

from lrnnx_app.errors import RunError
from lrnnx_app.runs.folder import EARLIER, METRICS, write_whole


def read(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv so far, after those from before a resume."""
    rows: list[dict[str, str]] = []
    for path in (folder / EARLIER, folder / METRICS):
        if path.is_file():
            try:
                with path.open(newline="", encoding="utf-8") as file:
                    part = [row for row in csv.DictReader(file) if _whole(row)]
            except (UnicodeDecodeError, csv.Error) as error:
                raise RunError(f"{path}: not readable as csv ({error}); restore or remove it") from error
            start = min((int(row["step"]) for row in part), default=0)
            rows = [row for row in rows if int(row["step"]) < start or not part] + part
    return rows


def carry(folder: Path, steps: int) -> None:
    """Save the rows of the first `steps` steps elsewhere: the logger of a resumed run empties the file."""
    rows = [row for row in read(folder) if int(row["step"]) < steps]
    write_whole(folder / EARLIER, _table(rows))
    (folder / METRICS).unlink(missing_ok=True)


def keep(folder: Path) -> None:
    """Put the saved rows back into metrics.csv."""
    rows = read(folder)
    if rows:
        write_whole(folder / METRICS, _table(rows))
    (folder / EARLIER).unlink(missing_ok=True)


def _whole(row: dict[str, str]) -> bool:
    """Whether a row is complete and holds numbers; a kill may have cut it."""
    if None in row or None in row.values() or not re.fullmatch(r"[0-9]{1,18}", row.get("step", "")):
        return False
    try:
        return all(not value or isinstance(float(value), float) for value in row.values())
    except ValueError:
        return False


def _table(rows: list[dict[str, str]]) -> str:
    fields = sorted({key for row in rows for key in row}, key=lambda key: (key not in ("epoch", "step"), key))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
