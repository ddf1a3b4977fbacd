"""The C of a classifier of events, and of a model of text, does what `lrnnx infer` does with the run."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lrnnx_app import export
from lrnnx_app.runs.run import Run, build_data
from lrnnx_app.streaming.session import StreamingSession
from tests.export.test_c import COMPILERS, ROUNDING, built, pushed
from tests.helpers import compiles, relative, untrained

pytestmark = pytest.mark.skipif(not compiles(), reason="this machine has no compiler, or none that works")
SMALL = ("model.d_model=8", "model.depth=1", "trainer.accelerator=cpu")
PROMPT = b"the stream"


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on events, its C in the folder beside it, and a file of a few hundred events at uneven times."""
    folder = tmp_path_factory.mktemp("events")
    run, rng = (
        untrained(folder / "run", "events_event_ssm_mini", *SMALL, "model.pools=[4,3]"),
        np.random.default_rng(0),
    )
    t, x, y, p = -50000 + np.cumsum(rng.exponential(300, 307)), *(rng.integers(0, n, 307) for n in (2, 16, 2))
    np.savetxt(folder / "events.csv", np.stack((p, t, x, y), 1), "%.6g", ",", header="p,t,x,y", comments="")
    (folder / "c").mkdir()
    export.export_run(run, folder / "c" / "model.c")
    return folder


def test_the_c_of_events_gives_what_a_session_gives(events: Path) -> None:
    run = Run(events / "run")
    x, _, dt, _ = build_data(run.recipe).read(events / "events.csv")
    assert dt is not None
    session = StreamingSession(run.task().model, chunk=1)
    given = x[None], dt[None]
    for part, gap in zip(*(z.split(1, 1) for z in given), strict=True):
        expected = session.push(part, gap)
    assert relative(pushed(events / "c" / "model.c", *given), expected) <= ROUNDING


def test_the_program_names_the_class_of_events(events: Path, lrnnx, tmp_path: Path) -> None:
    program = built(events / "c", "model", COMPILERS[0])
    done = subprocess.run([program, events / "events.csv"], capture_output=True, text=True)
    shares = json.loads(
        lrnnx("infer", events / "run", events / "events.csv", "--json").done().out.splitlines()[0]
    )
    best, share = next(iter(shares["classes"].items()))
    elapsed, name, probability = done.stdout.splitlines()[-1].split()
    assert (done.returncode, name) == (0, best)
    times = np.loadtxt(events / "events.csv", delimiter=",", skiprows=1)[:, 1].round()
    assert float(elapsed) == pytest.approx((times[-1] - times[0]) / 1000, abs=1e-3)
    assert float(probability) == pytest.approx(share, abs=1e-4)
    for text in (
        "",
        "t,x\n0,2,0,0\n",
        "t,x,y,p\n9,0,0,0\n8,0,0,0\n",
        "t,x,y,p\n0,,0,0\n",
        "t,x,y,p\n0,0,0,.5\n",
        "t,x,y\n0,0,0\n",
        "t,t,x,y,p\n0,1,0,0,0\n",
        "x,y,p,t\n0,0,0\n",
        "t,x,y,p\n" + "0" * 300 + ",0,0,0\n",
        ",".join("abcdefghijklmnopqtxyp") + "\n" + ",".join("0" * 21) + "\n",
    ):
        (tmp_path / "x.csv").write_text(text)
        done = subprocess.run([program, "x.csv"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2, text
        assert done.stderr.endswith(": expected a csv of events with t in us, x, y, p\n")
    for words, said in ((("gone",), "gone: cannot be read"), (("a", "b"), "usage: ./model [FILE]")):
        done = subprocess.run([program, *words], cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (2, f"{said}\n")


def test_the_program_continues_a_text(tmp_path: Path) -> None:
    run = untrained(tmp_path / "run", "text_rglru_mini", *SMALL)
    export.export_run(run, tmp_path / "model.c")
    program = built(tmp_path, "model", COMPILERS[0])

    def told(*words: str) -> bytes:
        done = subprocess.run([program, PROMPT, *words], capture_output=True, check=True)
        assert done.stderr.endswith(b" bytes/s\n")
        return done.stdout

    (tmp_path / "prompt").write_bytes(PROMPT)
    command = ["infer", str(run), "--prompt", f"@{tmp_path}/prompt", "--length", "200", "--temperature", "0"]
    done = subprocess.run([sys.executable, "-m", "lrnnx_app", *command], capture_output=True, check=True)
    assert len(done.stdout) == len(PROMPT) + 201
    assert told("200") == done.stdout
    assert told("200", "1", "1") == told("200", "1", "1")
    assert told("200", "1", "1") != told("200", "1", "2")
    for words in (
        ("",),
        ("a", "2x"),
        ("a", "1.5"),
        ("a", "1", "inf"),
        ("a", "1", "nan"),
        ("a", "1", "1", "-1"),
    ):
        wrong = subprocess.run([program, *words], capture_output=True, text=True)
        assert (wrong.returncode, wrong.stderr) == (
            2,
            "usage: ./model PROMPT [BYTES [TEMPERATURE [SEED]]]\n",
        ), words


def test_the_program_of_tokens_that_are_no_bytes_reads_them_as_steps(tmp_path: Path) -> None:
    run = untrained(tmp_path / "run", "text_rglru_mini", *SMALL, "data.tokenizer=ids:5")
    export.export_run(run, tmp_path / "model.c")
    program = built(tmp_path, "model", COMPILERS[0])
    done = subprocess.run([program], input="4\n1\n", capture_output=True, text=True, check=True)
    found = [[float(number) for number in line.split()] for line in done.stdout.splitlines()]
    expected = Run(run).task().model(torch.tensor([[4, 1]]))[0][0]
    assert relative(torch.tensor(found), expected) <= ROUNDING
