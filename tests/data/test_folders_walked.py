"""Walks of a user's folders: links are followed, loops end, and nothing is left out without a word."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data_modules import _pictures, _speech_commands, text
from data_modules._events import layouts
from lrnnx_app.data.audio_io import find_audio
from lrnnx_app.disk import files
from lrnnx_app.errors import DataError
from tests.helpers import refused

SHARES = (0.8, 0.1, 0.1)
WALKS: dict[str, Callable[[Path], object]] = {
    "audio": lambda root: find_audio(root, "recordings"),
    "by_class": lambda root: _pictures.by_class(root, "train", SHARES, (".wav",)),
    "text": lambda root: text._files(root, (".wav",)),
    "all": files.below,
}
CLASSES: dict[str, Callable[[Path], object]] = {
    "pictures": lambda root: _pictures.classes_of(str(root)),
    "events": layouts.folder_classes,
}


def fill(folder: Path, count: int = 12) -> Path:
    folder.mkdir(parents=True)
    for index in range(count):
        (folder / f"{index}.wav").touch()
    return folder


@pytest.mark.parametrize("name", WALKS)
def test_links_to_folders_are_followed(tmp_path: Path, name: str) -> None:
    fill(tmp_path / "data" / "a")
    (tmp_path / "data" / "b").symlink_to(fill(tmp_path / "real"))
    found = WALKS[name](tmp_path / "data")
    assert isinstance(found, list)
    assert {path.parent.name for path in found} == {"a", "b"}


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_may_be_a_link(tmp_path: Path, name: str) -> None:
    fill(tmp_path / "data" / "a")
    (tmp_path / "data" / "b").symlink_to(fill(tmp_path / "real"))
    assert CLASSES[name](tmp_path / "data") == ("a", "b")
    (tmp_path / "data" / "c").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"data/c: is a link to nothing"):
        CLASSES[name](tmp_path / "data")
    (tmp_path / "data" / "c").unlink()
    (tmp_path / "data" / "c").symlink_to(tmp_path)
    with pytest.raises(DataError, match=r"data/c: leads back"):
        CLASSES[name](tmp_path / "data")


def test_loops_end_and_add_nothing(tmp_path: Path) -> None:
    inner = fill(tmp_path / "a" / "b", 2)
    (inner / "up").symlink_to(tmp_path)
    (inner / "root").symlink_to("/")
    (inner / "self").symlink_to(inner)
    assert len(files.below(tmp_path)) == 2


def test_two_ways_to_a_folder_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "a")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(DataError, match=r"/b: is .*/a once more"):
        files.below(tmp_path)


def test_a_file_that_is_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    fill(tmp_path / "a")
    (tmp_path / "a" / "gone.wav").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"gone\.wav: is a link to nothing"):
        files.below(tmp_path, (".wav",))
    assert files.below(tmp_path, (".flac",)) == []


@pytest.mark.parametrize("name", [*WALKS, "speech_commands"])
def test_an_unreadable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    fill(tmp_path / "bed")
    closed = fill(tmp_path / "bird")
    for lists in _speech_commands.LISTS.values():
        (tmp_path / lists).write_text("")
    real = Path.iterdir

    def iterdir(self: Path) -> Iterator[Path]:
        if self == closed:
            raise PermissionError(13, os.strerror(13), str(self))
        return real(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    walk = WALKS.get(name, lambda root: _speech_commands.speech_commands(root, "train", 35))
    with refused(DataError, "bird: not readable (Permission denied)"):
        walk(tmp_path)
