"""What is printed: nothing that acts on a terminal, no character that stops it, whole tables, JSON."""

import io
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from data_modules import _splits
from lrnnx_app import cli
from lrnnx_app.console import terminal
from lrnnx_app.data.audio_io import read_mono
from lrnnx_app.errors import UserError
from lrnnx_app.export._output import Options, refuse
from lrnnx_app.infer import meaning
from lrnnx_app.registry import LAYERS, shipped
from lrnnx_app.spec import SPLITS
from lrnnx_app.streaming.sinks import AudioFile

ODD = os.fsdecode(b"caf\xe9")  # a name in Latin-1, as old archives have them
ENCODINGS = ("utf-8", "latin-1", "cp1252", "cp932", "ascii")


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain é 中 →", "plain é 中 →"),
        ("a\x1b[31mb\x07", r"a\x1b[31mb\x07"),
        ("two\nlines\r\t", r"two\x0alines\x0d\x09"),
        ("\x9b31m\x7f", r"\x9b31m\x7f"),
        ("gpj\u202e.exe\u2028", r"gpj\u202e.exe\u2028"),
        (ODD, r"caf\xe9"),
        ("\ud800", r"\ud800"),
        (Path("a\x1b"), r"a\x1b"),
    ],
)
def test_nothing_acts_on_a_terminal(text: object, seen: str) -> None:
    assert terminal.shown(text) == seen
    terminal.shown(text).encode()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_any_text_goes_to_streams_of_any_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    terminal.prepare()
    terminal.say("→ 中 é ±", ODD)
    terminal.say("→", aside=True)
    terminal.table(("→", "b"), [("中", ODD)])
    print("\ud800", flush=True)
    assert streams["stdout"].buffer.getvalue().count(b"\n") == 5
    assert streams["stderr"].buffer.getvalue()


def test_a_drawn_table_is_of_signs_that_the_stream_has(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", "20")
    terminal.table(("a", ":smile:"), [("[red]", "x" * 50)])
    stream.flush()
    text = stream.buffer.getvalue().decode()
    assert text.count("x") == 50
    assert "[red]" in text
    assert ":smile:" in text
    assert "\\u" not in text


def test_where_the_output_is_no_terminal_a_table_has_a_line_for_each_row(
    capsys: pytest.CaptureFixture[str],
) -> None:
    terminal.table(("name", "about"), [("x" * 200, "中文"), ("two\nlines", 3)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[1] == "x" * 200 + "  中文"
    assert lines[2].split() == [r"two\x0alines", "3"]


@pytest.mark.parametrize("words", [["recipes"], ["recipes", "--matrix"], ["layers"]])
def test_names_are_whole_and_a_row_is_a_line(lrnnx, words: list[str]) -> None:
    result = lrnnx(*words).done()
    names = list(shipped()) if words[0] == "recipes" else list(LAYERS)
    for name in names:
        assert name in result.out.replace(",", " ").split()
    as_json = json.loads(lrnnx(*words, "--json").out)
    assert len(as_json) == len(result.out.splitlines()) - (2 if words[0] == "layers" else 1)


@pytest.mark.parametrize("word", ["digits_lru", "--explain"])
def test_a_matrix_is_of_all_recipes(lrnnx, word: str) -> None:
    result = lrnnx("recipes", word, "--matrix")
    assert result.code == 2
    assert result.error.splitlines() == [
        "error: --matrix is a table of its own; expected neither NAME nor --explain with it"
    ]


def test_json_has_null_where_a_number_is_not_finite() -> None:
    value = {"a": [math.nan, (1.0, math.inf)], "b": {"c": -math.inf, "d": True}, ODD: None}
    assert json.loads(terminal.as_json(value), parse_constant=pytest.fail) == {
        "a": [None, [1.0, None]],
        "b": {"c": None, "d": True},
        ODD: None,
    }


def test_what_libraries_print_is_kept_out_of_results(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.results_only():
        print("a bar")
    print("a result")
    assert capsys.readouterr() == ("a result\n", "a bar\n")


def test_closed_streams_are_said_or_lead_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    terminal.prepare()
    terminal.say("to nobody")
    terminal.table(("a",), [("b",)])
    print("to nobody", file=sys.stderr, flush=True)
    for ask in (terminal.source, terminal.target):
        with pytest.raises(UserError, match="closed"):
            ask()
    for stream in (sys.stdout, sys.stderr):
        stream.close()


def test_a_reader_that_leaves_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def leave(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(cli, "app", leave)
    with (tmp_path / "out").open("w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        print("to nobody", file=out, flush=True)
    assert stop.value.code == 0
    assert not (tmp_path / "out").read_bytes()


def test_the_version_and_help_alone(lrnnx) -> None:
    assert lrnnx("--version").out.startswith("lrnnx 0.")
    for words in ([], ["bench"]):
        result = lrnnx(*words)
        assert "Usage: lrnnx" in result.out + result.error
        assert "error:" not in result.error


def test_an_error_with_an_escape_sequence_is_shown(lrnnx) -> None:
    for words in (["recipes", "\x1b[31m"], ["train", "digits_lru", "\x1b[31m=\x9b"], ["infer", ODD, "x"]):
        result = lrnnx(*words)
        assert result.code == 2
        assert "\x1b" not in result.error
        assert "\x9b" not in result.error


def test_names_that_are_no_utf8_have_a_split(tmp_path: Path) -> None:
    paths = [tmp_path / ODD / f"{i}.wav" for i in range(60)]
    parts = [_splits.own(tmp_path, split, (0.8, 0.1, 0.1), lambda _: paths) for split in SPLITS]
    assert sorted(path for part in parts for path in part) == sorted(paths)


def test_audio_of_a_name_that_is_no_utf8_is_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / f"{ODD}.wav"
    sink = AudioFile(path, 16000)
    sink.write(torch.zeros(1000))
    sink.close()
    assert len(read_mono(path, 16000)) == 1000
    assert soundfile.info(os.fsencode(path)).samplerate == 16000
    assert np.all(read_mono(path, 16000).numpy() == 0)


def test_a_result_that_does_not_come_leaves_what_stood_there(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError), meaning._kept(path) as file:
        file.write("half" * (1 // 0))
    assert path.read_text() == "before"
    with meaning._kept(path) as file:
        file.write("after")
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


NUMBERS = (
    ("infer RUN a.wav", "--threads", ("0", "-1", "9" * 25)),
    ("infer RUN a.wav", "--slots", ("0", "9" * 25)),
    ("infer RUN a.wav", "--rate", ("0", "-8000")),
    ("infer RUN a.wav", "--channels", ("0", "9" * 25)),
    ("infer RUN a.wav", "--chunk-ms", ("nan", "inf", "0", "-1")),
    ("infer RUN a.wav", "--steps", ("0", "9" * 25)),
    ("infer RUN --prompt a", "--length", ("0", "-5")),
    ("infer RUN --prompt a", "--temperature", ("nan", "inf", "-1")),
    ("infer RUN --prompt a", "--top-k", ("-1",)),
    ("infer RUN --prompt a", "--seed", ("-1", "9" * 25)),
    ("train digits_lru", "--seeds", ("0", "-1")),
    ("export RUN -o a.onnx", "--chunk", ("0", "-1", "9" * 25)),
    ("bench layers", "--d-state", ("0",)),
    ("bench denoisers", "--count", ("0", "9" * 25)),
    ("bench scaling", "--steps", ("0",)),
    ("bench scaling", "--devices", ("0", "9" * 25)),
    ("bench scaling", "--sequence", ("0", "1", "a")),
    ("bench scaling", "--limit", ("0", "nan")),
    ("bench scaling", "--case", ("s9",)),
    ("bench streaming", "--voices", ("0", "a", "9" * 25)),
    ("bench streaming", "--hops", ("-1",)),
    ("bench streaming", "--seconds", ("nan", "0", "inf")),
    ("bench streaming", "--threads", ("0",)),
    ("bench soak", "--seconds", ("nan", "-1", "inf")),
)


@pytest.mark.parametrize(("words", "option", "values"), NUMBERS)
def test_numbers_that_no_option_means(lrnnx, words: str, option: str, values: tuple[str, ...]) -> None:
    for value in values:
        lrnnx(*words.split(), option, value).refuses(option)


def test_options_of_calls_are_refused_for_weights_alone() -> None:
    for options in (Options(chunk=4), Options(timed=True), Options(int8=True)):
        with pytest.raises(UserError, match="--chunk"):
            refuse(options)
    refuse(Options())
