"""Splits of a user's own files: every split gets its share, whatever the folder; leftovers are no data."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from data_modules._splits import parted
from lrnnx_app.data import workers
from lrnnx_app.data.module import SHARES
from lrnnx_app.disk.files import below
from lrnnx_app.errors import DataError, RecipeError
from lrnnx_app.registry import DATA
from lrnnx_app.spec import SPLITS


def make(kind: str, path: Path, i: int) -> None:
    """A tiny file of a kind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "audio":
        soundfile.write(path.with_suffix(".wav"), 0.1 * np.ones(800) * (1 + i), 16000)
    elif kind == "image_sequence":
        Image.new("L", (8, 8), 3 * i).save(path.with_suffix(".png"))
    elif kind == "event_stream":
        np.savez(
            path.with_suffix(".npz"), t=np.arange(5) + i, x=np.arange(5), y=np.arange(5), p=np.zeros(5, int)
        )
    else:
        path.with_suffix(".txt").write_text(f"document {i}")


OPTIONS = {
    "audio": {"layout": "folders", "seconds": 0.05},
    "image_sequence": {"images": "folder", "side": 8},
    "event_stream": {"layout": "folders", "width": 8, "height": 8},
    "text": {},
}


def module(kind: str, root: Path, **options):
    config = DATA[kind].Config(root=str(root), **OPTIONS[kind] | options)
    return DATA[kind](config)


def names(source) -> list[str]:
    if hasattr(source, "rows"):
        return [source.store.names[i] for i in source.rows]
    paths = getattr(source, "names", None) or [
        getattr(clip, "path", None) or clip[0] for clip in source.clips
    ]
    return [str(path) for path in paths]


def test_every_module_is_tested() -> None:
    assert set(OPTIONS) == set(DATA) - {"state_tracking"}  # whose data are made


@pytest.mark.parametrize("kind", sorted(OPTIONS))
@pytest.mark.parametrize("count", [2, 24])
def test_splits_of_a_folder_are_shares_without_overlap(kind: str, count: int, tmp_path: Path) -> None:
    for i in range(2 * count):
        make(kind, tmp_path / "ab"[i % 2] / f"utt_{i:03}", i)
    (tmp_path / "a" / "._utt_000.wav").write_bytes(b"\0\5\26\7")
    (tmp_path / ".git").mkdir()
    found = {split: names(module(kind, tmp_path).source(split)) for split in SPLITS}
    assert sum(map(len, found.values())) == len(set(itertools.chain(*found.values()))) == 2 * count
    expected = (38, 5, 5) if count == 24 else (2, 1, 1)
    assert tuple(map(len, found.values())) == expected
    halves = [
        len(module(kind, tmp_path, split=[0.5, 0.25, 0.25]).source(split)) for split in ("valid", "test")
    ]
    if kind != "text":
        assert halves == [count // 2, count // 2]


@pytest.mark.parametrize("kind", sorted(OPTIONS))
def test_folders_of_splits_are_taken(kind: str, tmp_path: Path) -> None:
    for i, (split, name) in enumerate(itertools.product(("train", "train", "test"), "ab")):
        make(kind, tmp_path / split / name / f"{i}", i)
    source = module(kind, tmp_path).source
    assert len(names(source("test"))) == 2
    assert sorted(len(names(source(split))) for split in ("train", "valid")) == [1, 3], (
        "valid is a share of train"
    )
    for i, name in enumerate("ab"):
        make(kind, tmp_path / "valid" / name / f"{i}", i)
    assert [len(names(source(split))) for split in SPLITS] == [4, 2, 2]


def test_noise_and_continued_recordings_are_split_alike(tmp_path: Path) -> None:
    for i in range(3):
        make("audio", tmp_path / "clean" / str(i), i)
        make("audio", tmp_path / "noise" / ("train", "valid", "test")[i] / str(i), i)
    options = {"layout": "mixtures", "noise_root": str(tmp_path / "noise")}
    for split in SPLITS:
        source = module("audio", tmp_path / "clean", **options).source(split)
        assert [path.parent.name for path in source.noise.paths] == [split]
        assert len(source.speech) == 1
        assert len(module("audio", tmp_path / "clean", layout="continued").source(split)) == 1


@pytest.mark.parametrize(("users", "torn"), [(4, True), (5, False)])
def test_users_stay_together_where_there_are_enough(users: int, torn: bool, tmp_path: Path) -> None:
    for user, name, i in itertools.product(range(users), "ab", range(4)):
        make("event_stream", tmp_path / name / f"user{user}_{i}", i)
    source = module("event_stream", tmp_path).source
    found = [{name.split("/")[1].split("_")[0] for name in names(source(split))} for split in SPLITS]
    assert all(found)
    assert any(one & other for one, other in itertools.combinations(found, 2)) == torn


@pytest.mark.parametrize("shares", [SHARES, (0.1, 0.1, 0.8), (0.98, 0.01, 0.01), (0.2, 0.7, 0.1)])
@pytest.mark.parametrize("count", [3, 4, 11, 500])
def test_every_split_gets_its_share_and_one_at_least(shares: tuple[float, ...], count: int) -> None:
    groups = [f"file {i}" for i in range(count)]
    found = parted(groups, shares, SPLITS, "here")
    for split, share in zip(SPLITS, shares, strict=True):
        assert found.count(split) >= 1
        assert abs(found.count(split) - share * count) <= max(2, 0.01 * count)
    assert parted(groups[::-1], shares, SPLITS, "here") == found[::-1], "the order of files is no matter"


def test_what_does_not_serve_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"here: 2 files .* for 3 splits"):
        parted(["a", "b"], SHARES, SPLITS, "here")
    for shares in ([0.8, 0.2], [0.9, 0.1, 0.0], [0.8, 0.1, 0.2], [float("nan"), 0.5, 0.5]):
        with pytest.raises(RecipeError, match=r"data\.split: expected shares"):
            module("text", tmp_path, split=shares)
    with pytest.raises(RecipeError, match=r"expected data\.root with it"):
        DATA["text"](DATA["text"].Config(split=[0.5, 0.25, 0.25]))
    make("text", tmp_path / "train" / "a", 0)
    make("text", tmp_path / "valid" / "a", 0)
    with pytest.raises(DataError, match="test: no such folder; expected one beside"):
        module("text", tmp_path).source("test")
    monkeypatch.setattr("resource.getrlimit", lambda _: (100, 100))
    with pytest.raises(DataError, match=r"data\.workers: a process may open 100 files"):
        workers.check_files(2)
    workers.check_files(0)


@pytest.mark.parametrize(
    ("layout", "option"),
    [
        ("mixtures", "gain"),
        ("mixtures", "noise"),
        ("pairs", "speed"),
        ("pairs", "reverb"),
        ("pairs", "noise"),
    ],
)
def test_an_augmentation_that_a_layout_does_not_use_is_refused(layout: str, option: str) -> None:
    from data_modules._augment import AugmentConfig

    augment = AugmentConfig(**{option: "room.wav" if option == "reverb" else 0.2})
    with pytest.raises(RecipeError, match=rf"augment\.{option}: layout {layout} does not use it"):
        DATA["audio"].Config(layout=layout, augment=augment)


@pytest.mark.parametrize("kind", sorted(OPTIONS))
def test_a_file_is_read_where_the_training_data_are_gone(kind: str, tmp_path: Path) -> None:
    make(kind, tmp_path / "one", 1)
    data = module(kind, tmp_path / "gone")
    assert len(data.read(next(tmp_path.iterdir())).x) > 1


def test_leftovers_are_left_out_with_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.wav", "._a.wav", ".DS_Store", "__MACOSX/b.wav", "sub/b.WAV", "Thumbs.db", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in below(tmp_path, (".wav",))] == ["a.wav", "b.WAV"]
    assert "left out 1 hidden or system files, such as ._a.wav" in capsys.readouterr().err
    assert [path.name for path in below(tmp_path)] == ["a.wav", "c.txt", "b.WAV"]
