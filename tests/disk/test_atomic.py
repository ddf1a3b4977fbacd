"""What is written appears whole, and no link that was planted at a part's name leads elsewhere."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from lrnnx_app import plots
from lrnnx_app.disk import atomic
from lrnnx_app.disk.atomic import fresh
from lrnnx_app.errors import RunError
from lrnnx_app.runs import checkpoint_file, sealed
from lrnnx_app.runs import folder as run_folder
from lrnnx_app.streaming.sinks import AudioFile


def _sound(path: Path) -> None:
    sink = AudioFile(path, 16000)
    sink.write(torch.zeros(100))
    sink.close()


def _exported(path: Path) -> None:
    with fresh(path) as part:
        part.write_text("new")


def _folder(path: Path) -> None:
    with fresh(path, folder=True) as part:
        (part / "inside").write_text("new")


def _named_twice(path: Path) -> None:
    other = path.with_name("step_1.ckpt")
    other.write_text("new")
    checkpoint_file.link(other, path)


WRITERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "sound": ("out.wav", _sound),
    "text": ("summary.json", lambda path: run_folder.write_whole(path, "new")),
    "checkpoint": ("best.ckpt", lambda path: sealed.write({"x": 1}, path)),
    "link": ("last.ckpt", _named_twice),
    "exported": ("model.onnx", _exported),
    "folder": ("hub", _folder),
    "picture": ("plot.png", lambda path: plots.save(Figure(), path)),
}


@pytest.mark.parametrize("planted", ["link", "link_to_nothing", "hard_link", "file", "folder"])
@pytest.mark.parametrize("name", WRITERS)
def test_what_lies_at_the_name_of_a_part_is_not_written_to(tmp_path: Path, name: str, planted: str) -> None:
    (tmp_path / "in").mkdir()
    title, write = WRITERS[name]
    path, victim = tmp_path / "in" / title, tmp_path / "victim"
    part = atomic.part_of(path)
    victim.write_text("precious")
    if planted == "link":
        part.symlink_to(victim)
    elif planted == "link_to_nothing":
        part.symlink_to(tmp_path / "made")
    elif planted == "hard_link":
        os.link(victim, part)
    elif planted == "file":
        part.write_text("remains of a killed writer, longer than what is written now " * 1000)
    else:
        part.mkdir()
        (part / "inside").write_text("remains")
    write(path)
    assert victim.read_text() == "precious"
    assert not (tmp_path / "made").exists()
    assert path.exists()
    assert not path.is_symlink()
    assert not list(path.parent.glob(".*"))
    if path.is_file() and name in ("text", "exported"):
        assert path.read_text() == "new"


@pytest.mark.parametrize("name", WRITERS)
def test_files_have_the_mode_that_the_user_wants(tmp_path: Path, name: str) -> None:
    title, write = WRITERS[name]
    before = os.umask(0o027)
    try:
        write(tmp_path / title)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / title).stat().st_mode) == (0o750 if name == "folder" else 0o640)


def test_what_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    run_folder.write_whole(path, "old")
    synced: list[int] = []

    def full(handle: int) -> None:
        synced.append(handle)
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="not written"):
        run_folder.write_whole(path, "new")
    assert synced
    assert path.read_text() == "old"
    assert [place.name for place in tmp_path.iterdir()] == ["summary.json"]
