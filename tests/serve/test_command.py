"""`lrnnx serve` as a process: it says where it listens, and SIGTERM ends it in good order."""

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import numpy as np
import pytest

from lrnnx_app.bench import serving
from lrnnx_app.errors import StreamError
from tests.helpers import DOCS, ROOT, blocks, refused
from tests.serve.conftest import Client
from tests.serve.test_streams import CHUNK, sound


@contextmanager
def process(*words: object) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """The command and its lines until it listens; it must have ended with code 0 or by the caller's hand."""
    command = [sys.executable, "-m", "lrnnx_app.cli", "serve", *map(str, words), "--port", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = subprocess.Popen(command, text=True, cwd=ROOT, **pipes)  # type: ignore[call-overload]
    try:
        assert started.stdout is not None
        yield started, [started.stdout.readline()]
    finally:
        started.kill()
        started.wait()
        for pipe in (started.stdout, started.stderr):
            pipe.close()


def address(line: str) -> str:
    return line.split()[0].replace("ws", "http", 1)


def test_sigterm_lets_streams_go_on_answers_all_and_closes_them(runs: dict[str, Path]) -> None:
    async def go(url: str, server: subprocess.Popen[str]) -> tuple[int, str]:
        async with aiohttp.ClientSession() as session, session.ws_connect(url) as ws:
            client = Client(ws, await ws.receive_json())
            await client.exchange(sound(1)[0])
            server.send_signal(signal.SIGTERM)
            while (await session.get(url.partition("/stream")[0] + "/healthz")).status != 503:
                await asyncio.sleep(0.01)
            with pytest.raises(aiohttp.WSServerHandshakeError, match="503"):
                await session.ws_connect(url)
            await client.exchange(sound(1)[0])  # it goes on
            for part in sound(40):
                await ws.send_bytes(part.tobytes())
            got = 0
            while (message := await ws.receive(timeout=20)).type is aiohttp.WSMsgType.BINARY:
                got += len(message.data)
            assert got == 40 * 4 * CHUNK
            return message.data, message.extra

    with process(runs["denoiser"], "--drain", 3) as (server, lines):
        assert asyncio.run(go(address(lines[0]), server)) == (1001, "the server stops")
        assert server.wait(20) == 0


def test_it_ends_at_once_without_streams_and_by_a_second_signal(runs: dict[str, Path]) -> None:
    async def go(url: str, server: subprocess.Popen[str]) -> None:
        async with aiohttp.ClientSession() as session, session.ws_connect(url):
            server.send_signal(signal.SIGTERM)
            while (await session.get(url.partition("/stream")[0] + "/healthz")).status != 503:
                await asyncio.sleep(0.01)
            server.send_signal(signal.SIGINT)
            server.wait(20)

    for kind in ("denoiser", "events"):
        with process(runs[kind], "--drain", 600) as (server, lines):
            if kind == "denoiser":
                asyncio.run(go(address(lines[0]), server))
            else:
                server.terminate()
            assert server.wait(20) == 0


def test_several_runs_are_served_by_their_names_with_tls_and_a_token(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    files = "-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")
    about = "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"
    curve = "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"
    command = ["openssl", "req", "-x509", "-nodes", "-days", "2", *curve, *files, *about]
    subprocess.run(command, check=True, capture_output=True)
    (tmp_path / "token").write_text("secret\n")
    trusted = ssl.create_default_context(cafile=tmp_path / "cert.pem")

    async def go(url: str) -> None:
        headers = {"Authorization": "Bearer secret"}
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(url, ssl=trusted, headers=headers) as ws:
                await Client(ws, await ws.receive_json()).exchange(sound(1)[0])
            async with session.ws_connect(url.replace("/one", "/two"), ssl=trusted, headers=headers) as ws:
                assert (await ws.receive_json())["gives"] == "classes"
            with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
                await session.ws_connect(url, ssl=trusted)

    models = f"one={runs['denoiser']}", f"two={runs['events']}"
    tls = "--certificate", tmp_path / "cert.pem", "--key", tmp_path / "key.pem"
    with process(*models, *tls, "--token-file", tmp_path / "token") as (_, lines):
        assert lines[0].startswith("wss://127.0.0.1:")
        assert "/stream/one  64 streams in sessions of 8" in lines[0]
        asyncio.run(go(address(lines[0])))


def test_the_clients_of_the_guide_denoise_a_file_and_a_live_stream(tmp_path: Path) -> None:
    import soundfile

    noisy = (0.1 * np.random.default_rng(0).standard_normal(5000)).astype(np.float32)
    soundfile.write(tmp_path / "noisy.wav", noisy, 16000)
    pcm = soundfile.read(tmp_path / "noisy.wav", dtype="int16")[0].tobytes()
    with process("denoise_small") as (_, lines):
        for _, name, content in blocks(DOCS / "serve.md"):
            if name:
                content = content.replace("http://127.0.0.1:8765/stream/denoise", address(lines[0]))
                (tmp_path / name).write_text(content)
        ran = {"cwd": tmp_path, "check": True, "timeout": 60}
        subprocess.run([sys.executable, "client.py"], **ran)  # type: ignore[call-overload]
        live = [sys.executable, "live.py"]
        done = subprocess.run(live, input=pcm, capture_output=True, **ran)  # type: ignore[call-overload]
    whole = soundfile.read(tmp_path / "clean.wav", dtype="int16")[0].tobytes()
    assert done.stdout[-len(whole) :] == whole
    assert len(done.stdout) == len(whole) + 2 * 256  # the delay
    infer = [sys.executable, "-m", "lrnnx_app.cli", "infer", "denoise_small", "noisy.wav", "-o", "infer.wav"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(infer, cwd=tmp_path, check=True, env=env, capture_output=True)
    clean, expected = (soundfile.read(tmp_path / name)[0] for name in ("clean.wav", "infer.wav"))
    assert len(clean) == len(expected) == 5000
    assert np.abs(clean - expected).max() < 2 / 2**15


def test_the_client_of_the_guide_gets_the_classes_of_events_that_infer_gives(
    lrnnx, runs: dict[str, Path], tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    t, x, y, p = (
        50000 + np.cumsum(draw.exponential(300, 150)),
        *(draw.integers(0, n, 150) for n in (2, 16, 2)),
    )
    np.savetxt(tmp_path / "events.csv", np.stack((t, x, y, p), 1), "%d", ",", header="t,x,y,p", comments="")
    content = next(content for _, name, content in blocks(DOCS / "serve.md") if name == "classes.py")
    url = "http://127.0.0.1:8765/stream/events_event_ssm_mini"
    assert url in content
    with process(runs["events"]) as (_, lines):
        (tmp_path / "classes.py").write_text(content.replace(url, address(lines[0])))
        client = [sys.executable, "classes.py", "events.csv"]
        done = subprocess.run(client, cwd=tmp_path, check=True, timeout=60, capture_output=True, text=True)
    last = json.loads(done.stdout.splitlines()[-1])
    assert len(done.stdout.splitlines()) == 3
    infer = lrnnx("infer", runs["events"], tmp_path / "events.csv", "--running", "--json").done().out
    expected = json.loads(infer.splitlines()[-1])
    assert list(last["classes"]) == list(expected["classes"])
    assert last["classes"] == pytest.approx(expected["classes"], rel=1e-5)
    assert last["time"] == pytest.approx(expected["time"], abs=1e-3)


def test_what_cannot_be_served_is_one_line(lrnnx, runs: dict[str, Path], tmp_path: Path) -> None:
    run = runs["denoiser"]
    (tmp_path / "empty").write_text("")
    (tmp_path / "words").write_text("two words")
    for words, said in (
        (("nothing",), "no such run folder"),
        ((run, run), "expected NAME=RUN with another name"),
        ((run, "--token-file", tmp_path / "none"), "expected a file with a token"),
        ((run, "--token-file", tmp_path / "empty"), "one word"),
        ((run, "--token-file", tmp_path / "words"), "one word"),
        ((run, "--certificate", tmp_path / "words"), "no certificate"),
        ((run, "--key", tmp_path / "words"), "expected --certificate with it"),
        ((run, "--origin", "example.org"), "expected a place such as https://example.org"),
        ((run, "--page", tmp_path), "index.html"),
        ((run, "--host", "203.0.113.1", "--port", 0), "203.0.113.1"),
        ((run, "--device", "abacus"), "unknown device"),
    ):
        lrnnx("serve", *words).refuses(said)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        lrnnx("serve", run, "--port", taken.getsockname()[1]).refuses("choose another one")
    code = f"import sys; sys.modules['aiohttp'] = None; sys.argv[1:] = ['serve', {str(run)!r}]; "
    bare = [sys.executable, "-c", code + "from lrnnx_app.cli import main; main()"]
    done = subprocess.run(bare, cwd=ROOT, capture_output=True, text=True, timeout=60)
    said = "error: aiohttp is not installed: pip install 'lrnnx-app[serve]'\n"
    assert (done.returncode, done.stderr) == (2, said)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("text_s6_mini", "the task predict gives no samples or classes; it cannot be served"),
        ("digits_lru", "direction"),
    ],
)
def test_a_model_that_does_not_stream_is_refused(lrnnx, tmp_path: Path, recipe: str, said: str) -> None:
    from omegaconf import OmegaConf

    from lrnnx_app.recipe import load, typed
    from lrnnx_app.runs import sealed
    from lrnnx_app.runs.run import build

    config = load(recipe, ["model.d_model=8", "model.depth=1"])
    task = build(typed(config))[1]
    content = {"state_dict": task.state_dict()}
    task.on_save_checkpoint(content)
    (tmp_path / "checkpoints").mkdir()
    sealed.write(content, tmp_path / "checkpoints" / "best.ckpt")
    (tmp_path / "recipe.yaml").write_text(OmegaConf.to_yaml(config))
    lrnnx("serve", tmp_path, "--port", 0).refuses(said)


def test_the_load_measures_round_trips(runs: dict[str, Path]) -> None:
    """Of all voices, between a server on one core and a load on the others; a model of events has none."""
    found = serving.row(str(runs["denoiser"]), 2, 1.0, "cpu")
    assert (found["voices"], found["slots"]) == (2, 2)
    assert 60 < found["chunks"] <= 2 * 64
    assert 0 < found["p50 ms"] <= found["p99 ms"] <= found["worst ms"]
    assert found["session's CPU"] > 0
    with refused(StreamError, "its steps have no rate"):
        serving.row(str(runs["events"]), 2, 1.0, "cpu")


def test_the_search_doubles_and_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def row(run: str, voices: int, *_: object) -> dict[str, float]:
        tried.append(voices)
        return {"voices": voices, "p99 ms": voices, "late": 0}

    monkeypatch.setattr(serving, "row", row)
    assert serving.most(list(serving.search("run", 1.0, "cpu"))) == 36
    assert tried == [8, 16, 32, 64, 48, 40, 36]
