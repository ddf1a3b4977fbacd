"""What a user may get wrong: each ends in one line that names it and code 2, and leaves what there was."""

import errno
import hashlib
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
import torch
import yaml

from lrnnx_app import recipe
from lrnnx_app.runs import sealed
from tests.helpers import DENOISE, SMALL, trained

RATE = 16000


class Place(NamedTuple):
    """Where a case puts its files, and the runs that it may use."""

    path: Path
    denoiser: Path
    classifier: Path

    def file(self, name: str, content: bytes | str) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def wave(self, name: str, samples: Any, rate: int = RATE, **options: Any) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, rate, **options)
        return path

    def copy(self, run: Path) -> Path:
        return Path(shutil.copytree(run, self.path / "run"))


CASES: dict[str, tuple[Callable[[Place], tuple[object, ...]], str]] = {}


def case(words: str) -> Callable[[Callable[[Place], tuple[object, ...]]], None]:
    """Enter a function that prepares an input and gives the command, with what its error must say."""

    def enter(prepare: Callable[[Place], tuple[object, ...]]) -> None:
        CASES[prepare.__name__.strip("_")] = (prepare, words)

    return enter


def written(text: str, words: str, name: str) -> None:
    """A recipe with the text in place of, or besides, its keys."""

    def prepare(place: Place) -> tuple[object, ...]:
        return "train", place.file("mine.yaml", text), "-o", place.path / "made"

    CASES[name] = (prepare, words)


def overridden(override: str, words: str, name: str) -> None:
    CASES[name] = (lambda place: ("train", *DENOISE, override, "-o", place.path / "made"), words)


BASE = recipe.find("digits_lru").read_text()
written("", "mapping", "recipe_empty")
written("- 1\n- 2\n", "mapping", "recipe_of_a_list")
written("task: [\n", "not readable as YAML", "recipe_cut_short")
written("\x00\x01\xff", "not readable as YAML", "recipe_of_bytes")
written("[" * 5000, "not readable as YAML", "recipe_too_deep")
written("{a: " * 5000 + "1" + "}" * 5000, "not readable as YAML", "mapping_too_deep")
written("!!python/object/apply:os.system ['false']", "not readable as YAML", "recipe_with_code")
written("a: &a [*a]\n" + BASE, "mine.yaml", "recipe_that_holds_itself")
written(BASE.replace("depth:", "depht:"), "depth", "misspelled_key")
written(BASE.replace("task:\n  name: classify", "task:\n  lr: 1"), "task.name", "task_without_a_name")
written(BASE + "\nextra: 1\n", "extra", "unknown_section")
written(BASE.replace("name: lru", "name: ${model.layer.name}"), "mine.yaml", "name_that_refers_to_itself")
written(BASE + "\nabout: ${about}\n", "mine.yaml", "key_twice_or_in_a_circle")
written(BASE.replace("name: lru", "name: ../../lru"), "../../lru", "name_with_separators")
written(BASE.replace("name: lru", "name: [lru, 5]"), "model.layer", "name_of_a_list")

overridden("model.depth=many", "model.depth", "depth_of_letters")
overridden("data.batch_size=0", "data.batch_size", "batch_of_none")
overridden("data.batch_size=-4", "data.batch_size", "negative_batch")
overridden("data.seconds=-1", "data.seconds", "negative_seconds")
overridden("data.seconds=nan", "data.seconds", "seconds_not_a_number")
overridden("data.workers=-1", "data.workers", "negative_workers")
overridden("task.lr=-1", "task.lr", "negative_lr")
overridden("model.channels=[8,-8]", "model.channels", "negative_channels")
overridden("model.channels=[]", "model.channels", "no_channels")
overridden("model.layer.d_state=0", "d_state", "no_states")
overridden("model.layer.d_state=1000000000000000", "out of memory", "more_states_than_memory")
overridden("trainer.max_steps=1e400", "trainer.max_steps", "infinite_steps")
overridden("trainer.precision=8-true", "8-true", "unknown_precision")
overridden("trainer.accelerator=abacus", "abacus", "unknown_accelerator")
overridden("trainer.devices=0", "trainer.devices", "no_devices")
overridden("trainer.devices=1000", "trainer.devices", "more_processes_than_cores")
overridden("trainer.checkpoint_every=0", "checkpoint_every", "checkpoints_never")
overridden("seed=-1", "seed", "negative_seed")
overridden("trainer", "key.sub=value", "override_without_a_value")


def infer(place: Place, path: Path, *words: object) -> tuple[object, ...]:
    return "infer", place.denoiser, path, *(words or ("-o", place.path / "out.wav"))


SILENCE = np.zeros(1000)
for name, words, prepare in (
    ("audio_without_samples", "no samples", lambda at: infer(at, at.wave("empty.wav", np.zeros(0)))),
    ("audio_of_no_bytes", "nothing.wav", lambda at: infer(at, at.file("nothing.wav", b""))),
    ("rate_of_no_sound", "1 Hz", lambda at: infer(at, at.wave("slow.wav", SILENCE, 1))),
    ("text_named_audio", "song.ogg", lambda at: infer(at, at.file("song.ogg", "no music"))),
    ("picture", "a.png", lambda at: ("infer", at.classifier, at.file("a.png", b"\x89PNG\r\n\x1a\nno more"))),
    ("run_in_a_file", "not an empty folder", lambda at: ("train", *DENOISE, "-o", at.file("a.txt", "mine"))),
    ("export_over_a_file", "there already", lambda at: ("export", at.denoiser, "-o", at.file("a.onnx", ""))),
    ("output_in_proc", "/proc", lambda at: infer(at, at.wave("in.wav", SILENCE), "-o", "/proc/out.wav")),
    ("output_nowhere", "no such folder", lambda at: infer(at, at.wave("a.wav", SILENCE), "-o", "no/a.wav")),
):
    CASES[name] = (prepare, words)


@case("cut.wav")
def _audio_cut_in_its_header(place: Place):
    whole = place.wave("whole.wav", np.zeros(100))
    return infer(place, place.file("cut.wav", whole.read_bytes()[:30]))


@case("cut.flac")
def _flac_cut_in_the_middle(place: Place):
    whole = place.wave("whole.flac", np.random.default_rng(0).uniform(-1, 1, 50000))
    content = whole.read_bytes()
    whole.unlink()
    return infer(place, place.file("cut.flac", content[: len(content) // 2]))


@case("sample 7")
def _audio_with_infinity(place: Place):
    samples = np.zeros(100)
    samples[7] = np.inf
    return infer(place, place.wave("inf.wav", samples, subtype="FLOAT"))


@case("a.wav")
def _folder_named_audio(place: Place):
    (place.path / "a.wav").mkdir()
    return infer(place, place.path / "a.wav")


@case("gone.wav")
def _link_to_nothing(place: Place):
    (place.path / "gone.wav").symlink_to(place.path / "nowhere.wav")
    return infer(place, place.path / "gone.wav")


def events(place: Place, text: str) -> tuple[object, ...]:
    """A folder of two classes in two splits; all files are good but one."""
    good = "t,x,y,p\n0,0,0,0\n10,1,1,1\n"
    for split in ("train", "valid", "test"):
        for name in ("a", "b"):
            place.file(f"events/{split}/{name}/{split}.csv", good)
    place.file("events/train/b/bad.csv", text)
    root = place.path / "events"
    return (
        "data",
        "event_stream",
        "data.layout=folders",
        f"data.root={root}",
        "data.width=4",
        "data.height=4",
    )


for name, text, words in (
    ("times_backwards", "t,x,y,p\n5,0,0,0\n4,1,1,1\n", "bad.csv"),
    ("column_missing", "t,x,p\n1,0,0\n", "no column y"),
    ("pixel_outside", "t,x,y,p\n0,0,0,0\n10,4,1,1\n", "bad.csv"),
    ("pixel_below_zero", "t,x,y,p\n0,0,0,0\n10,-1,1,1\n", "bad.csv"),
    ("pixel_of_a_half", "t,x,y,p\n0,0.5,0,0\n", "whole number"),
    ("third_polarity", "t,x,y,p\n0,0,0,2\n", "bad.csv"),
    ("time_not_a_number", "t,x,y,p\nnan,0,0,0\n", "bad.csv"),
    ("time_infinite", "t,x,y,p\n0,0,0,0\ninf,0,0,0\n", "bad.csv"),
    ("words_for_numbers", "t,x,y,p\none,0,0,0\n", "line 2"),
    ("lasting_hours", "t,x,y,p\n0,0,0,0\n36000000000,1,1,1\n", "at most"),
    ("no_events", "t,x,y,p\n", "bad.csv"),
    ("events_of_bytes", "\udcff", "bad.csv"),
):
    content = text.encode(errors="surrogateescape")
    CASES[f"events_{name}"] = (lambda place, content=content: events(place, content), words)


class Trap:
    """Unpickled, it makes a folder."""

    def __reduce__(self):
        return os.mkdir, ("sprung",)


@case("best.ckpt")
def _checkpoint_with_code(place: Place):
    run = place.copy(place.denoiser)
    (run / "checkpoints" / "best.ckpt").write_bytes(pickle.dumps(Trap()))
    return infer(place._replace(denoiser=run), place.wave("in.wav", SILENCE))


@case("best.ckpt")
def _sealed_checkpoint_with_code(place: Place):
    run = place.copy(place.denoiser)
    path = run / "checkpoints" / "best.ckpt"
    path.unlink()
    sealed.write({"state_dict": Trap()}, path)
    return infer(place._replace(denoiser=run), place.wave("in.wav", SILENCE))


@case("another model")
def _checkpoint_of_another_model(place: Place):
    run = place.copy(place.denoiser)
    shutil.copy(place.classifier / "checkpoints" / "best.ckpt", run / "checkpoints" / "best.ckpt")
    return infer(place._replace(denoiser=run), place.wave("in.wav", SILENCE))


@case("best.ckpt: no digest")
def _checkpoint_of_an_older_version(place: Place):
    run = place.copy(place.denoiser)
    path = run / "checkpoints" / "best.ckpt"
    content = torch.load(path, weights_only=True)
    path.unlink()
    torch.save(content, path)
    return infer(place._replace(denoiser=run), place.wave("in.wav", SILENCE))


@case("no wav, flac or ogg")
def _fifty_thousand_files_of_another_kind(place: Place):
    folder = place.path / "many"
    folder.mkdir()
    for index in range(50_000):
        (folder / f"{index}.txt").touch()
    return "train", *DENOISE, f"data.root={folder}", f"data.noise_root={folder}", "-o", place.path / "made"


@case("no wav, flac or ogg")
def _folder_that_leads_into_itself(place: Place):
    folder = place.path / "round"
    folder.mkdir()
    (folder / "again").symlink_to(folder)
    return "train", *DENOISE, f"data.root={folder}", f"data.noise_root={folder}", "-o", place.path / "made"


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Path:
    words = ["digits_lru", *SMALL, "data.batch_size=324", "trainer.max_steps=4"]  # an epoch
    return trained(folder, "bad_input_classifier", [*words, "model.d_model=8", "model.depth=1"])


@pytest.fixture
def place(tmp_path: Path, denoiser: Path, classifier: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lrnnx_app.disk.cache.root", lambda: tmp_path / "cache")
    return Place(tmp_path, denoiser, classifier)


def contents(folder: Path) -> dict[str, str]:
    """What is in a folder: names and digests, without the cache."""
    paths = (path for path in folder.rglob("*") if path.is_file() and "cache" not in path.parts)
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line(lrnnx, place: Place, name: str) -> None:
    prepare, words = CASES[name]
    command = prepare(place)
    before = contents(place.path)
    result = lrnnx(*command)
    result.refuses(words)
    assert len(result.error) < 1000
    assert contents(place.path) == before


def test_there_are_forty() -> None:
    assert len(CASES) >= 40


GOOD: dict[str, Callable[[Place], Path]] = {
    "one_sample": lambda place: place.wave("in.wav", [0.5]),
    "192_kHz": lambda place: place.wave("in.wav", np.zeros(19200), 192000),
    "8_channels": lambda place: place.wave("in.wav", np.zeros((4000, 8))),
    "24_bit": lambda place: place.wave("in.wav", np.zeros(4000), subtype="PCM_24"),
    "float": lambda place: place.wave("in.wav", np.zeros(4000), subtype="FLOAT"),
    "double": lambda place: place.wave("in.flac", np.zeros(4000)).rename(place.path / "in.wav"),
}


@pytest.mark.parametrize("name", GOOD)
def test_unusual_audio_is_no_mistake(lrnnx, place: Place, name: str) -> None:
    path = GOOD[name](place)
    lrnnx("infer", place.denoiser, path, "-o", place.path / "out.wav").done()
    source, out = soundfile.info(path), soundfile.info(place.path / "out.wav")
    assert out.frames == source.frames
    assert out.samplerate == source.samplerate


@pytest.mark.parametrize("begin", [0, -3_600_000_000])
def test_any_beginning_and_an_hour_without_events_are_no_mistake(lrnnx, place: Place, begin: int) -> None:
    lrnnx(*events(place, f"t,x,y,p\n{begin},0,0,0\n{begin + 3_600_000_000},1,1,1\n")).done()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_without_room_leaves_no_part_of_an_output(
    lrnnx, place: Place, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = place.wave("in.wav", np.zeros(4000))
    before = contents(place.path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr(Path, "replace", full)
    lrnnx("infer", place.denoiser, path, "-o", place.path / "out.wav").refuses(os.strerror(number))
    assert contents(place.path) == before


def test_every_recipe_survives_its_own_dump(tmp_path: Path) -> None:
    content = yaml.safe_load(BASE)
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(content))
    assert recipe.load(str(path)).model == recipe.load("digits_lru").model
