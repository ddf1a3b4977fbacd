"""Benchmarks on sizes small enough for a test: rows, table, JSON and plot."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lrnnx_app.bench import layers, ops, records, report, scaling, sequences, soak, streaming
from lrnnx_app.console import tables
from lrnnx_app.ops._examples import Sizes
from lrnnx_app.ops._timed import TIMED, Timed
from lrnnx_app.runs.run import audio_model


def small(row: Timed) -> Timed:
    return replace(row, sizes=Sizes(1, 50, 8))


@pytest.mark.parametrize("device", TIMED)
def test_every_row_of_operators_can_be_timed(device, monkeypatch):
    """On a CPU, those of a GPU too, at small sizes: names as in the tables of before, all figures there."""
    monkeypatch.setattr(ops._timing, "copy_bandwidth", lambda device: 1e10)
    found = ops.rows("cpu", [small(row) for row in TIMED[device]])
    assert all(row["forward ms"] > 0 and row["forward / copy"] > 0 for row in found)
    assert all(row["backward / copy" if "backward ms" in row else "training ms"] > 0 for row in found)
    if device == "cpu":
        assert len({(row["op"], row["dtype"]) for row in found}) == len(found)


def test_rows_and_reports(tmp_path):
    rows = ops.rows("cpu", [small(TIMED["cpu"][0]), small(TIMED["cpu"][7])])
    assert [row["op"] for row in rows] == ["linear_scan real", "linear_scan complex constant a"]
    assert all(row["forward ms"] > 0 and row["backward / copy"] > 0 for row in rows)
    assert rows[0]["forward MB"] == 3 * 50 * 8 * 4 / 1e6
    assert len(tables.table(rows).splitlines()) == 3
    report.write_json(rows, tmp_path / "rows.json")
    assert json.loads((tmp_path / "rows.json").read_text())["rows"] == rows
    report.write_plot(rows, tmp_path / "rows.png")
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_slower_than_a_record_is_told(tmp_path, monkeypatch, lrnnx):
    times = {"lru": 1.0, "s5": 2.0}

    def rows(*_, **__):
        return [{"layer": name, "forward ms": ms, "peak MiB": ms} for name, ms in times.items()]

    monkeypatch.setattr(layers, "rows", rows)
    record = tmp_path / "record.json"
    lrnnx("bench", "layers", "--record", record).done()
    times["lru"] = 1.04
    lrnnx("bench", "layers", "--against", record).done()
    times["s5"] = 2.2
    told = lrnnx("bench", "layers", "--against", record)
    assert told.code == 1
    assert re.search(r"s5 +forward ms +2 +2.2 +1.1\n1 of 2 times are at most 5 % longer", told.out)
    del times["lru"]
    lrnnx("bench", "layers", "--record", record).done()
    assert [row["forward ms"] for row in records.read(record)] == [1.0, 2.2]


@pytest.mark.parametrize(
    "kept", sorted(Path(records.__file__).with_suffix("").glob("*.json")), ids=lambda path: path.stem
)
def test_kept_records_name_each_row_once(kept, monkeypatch):
    device = json.loads(kept.read_text())["device"]
    assert kept.stem == device.lower().replace(" ", "-")
    monkeypatch.setattr(report, "machine", lambda: {"device": device})
    rows = records.read(kept)
    assert len({records._name(row) for row in rows}) == len(rows)
    slow, count = records.slower([{**row, "forward ms": 2 * row["forward ms"]} for row in rows], rows)
    assert len(slow) == len(rows)
    assert count > len(rows)


@pytest.mark.parametrize("content", ["", "{}", '{"rows": [1], "device": "x"}', '{"rows": [], "device": "x"}'])
@pytest.mark.parametrize("option", ["--against", "--record"])
def test_a_file_that_is_no_record_of_this_machine_is_refused_before_timing(option, content, tmp_path, lrnnx):
    path = tmp_path / "record.json"
    path.write_text(content)
    lrnnx("bench", "ops", option, path).refuses("record.json: ")
    assert path.read_text() == content


def test_layers():
    rows = layers.rows("cpu", ["lru", "s5"], (1, 20, 4), d_state=4)
    assert [row["layer"] for row in rows] == ["lru", "s5"]
    assert all(row["forward + backward ms"] > row["forward ms"] * 0.5 > 0 for row in rows)


def test_streaming(tmp_path):
    model = audio_model(None)
    rows = streaming.rows(model, "cpu", [1, 2], [1, 2], seconds=0.05)
    assert [(row["voices"], row["chunk ms"]) for row in rows] == [(1, 16), (1, 32), (2, 16), (2, 32)]
    assert all(row["p99 ms"] >= row["p50 ms"] > 0 for row in rows)
    streaming.write_plot(rows, tmp_path / "rows.png")
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")
    steps = streaming.step_rows("cpu", ["lru", "s6"], [1])
    assert all(row["batch 1 µs"] > 0 for row in steps)
    matmuls = streaming.matmul_rows("cpu", [1])
    assert all(row["row_linear batch 1 µs"] > 0 for row in matmuls)


def test_largest_number_of_voices_is_within_an_eighth(monkeypatch):
    for limit in (1, 2, 3, 7, 100, 1000):
        monkeypatch.setattr(
            streaming,
            "push_times",
            lambda _, voices, *rest, limit=limit: ([15.0 if voices <= limit else 17.0], ""),
        )
        found = streaming.largest(audio_model(None), "cpu")
        assert 7 / 8 * limit - 1 < found <= limit


def test_scaling_compares_the_losses_of_two_processes_with_those_of_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "S5 classifier"
    monkeypatch.setitem(scaling.CASES, "cpu", {name: scaling.CASES["cpu"][name]})
    alone, both = scaling.rows("cpu", [1, 2], 2, ["ddp"])
    assert (alone["devices"], both["devices"], both["strategy"]) == (1, 2, "ddp")
    assert both["largest difference"] < 1e-5
    assert alone["ratio"] == 1
    assert both["ratio"] == both["samples/s"] / alone["samples/s"] > 0


def test_a_sequence_in_two_parts_has_the_losses_of_the_whole() -> None:
    alone, both = sequences.rows("cpu", [2], [64], 2, word="S6", recompute=True)
    assert (alone["devices"], both["devices"], both["time steps"]) == (1, 2, 64)
    assert both["largest difference"] < 1e-5
    assert both["ratio"] == alone["s / step"] / both["s / step"] > 0
    states = 3 * 64 + 64 * 16  # of a layer: convolution and recurrence
    assert both["KiB / layer"] == 2 * 4 * states / 1024  # in float32, there and back


def test_a_row_that_fails_says_why_and_others_follow() -> None:
    short, late = (
        list(sequences.rows("cpu", [2], [1], 1, word="S6", limit=limit))[1] for limit in (None, 0.2)
    )
    assert "a row of 1 steps for 2 processes" in short["failed"]
    assert late["failed"] == "over 0.2 s"


SOAKED = """
import json
import re
import subprocess
import sys
from lrnnx_app.bench import soak
from lrnnx_app.runs.run import audio_model
soak.SEGMENTS = 16
list(soak.rows(audio_model(None), "cpu", 16 * 1.024))  # what a first run allocates for good
print(json.dumps(list(soak.rows(audio_model(None), "cpu", 16 * 1.024))))
"""


def test_soak(tmp_path):
    """In a process of its own, since what other tests leave behind is returned at any time."""
    rows = json.loads(subprocess.check_output([sys.executable, "-c", SOAKED]).splitlines()[-1])
    ok, words = soak.verdict(rows)
    assert ok, words
    assert rows[-1]["stream s"] == 16 * 1.024
    soak.write_plot(rows, tmp_path / "soak.png")
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")
    assert not soak.verdict([*rows, rows[-1] | {"error": 1e-3}])[0]
    leaking = [row | {"MiB": row["MiB"] + 10 * i} for i, row in enumerate(rows)]
    assert not soak.verdict(leaking)[0]
    assert soak.verdict([*rows, rows[-1] | {"MiB": 1e6}])[0]  # for a moment
    assert not soak.verdict([*rows, rows[-1] | {"finite": False}])[0]
