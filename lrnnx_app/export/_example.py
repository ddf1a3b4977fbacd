"""Short scripts that run an exported program without lrnnx: 16-bit mono wav in and out, or noise."""

from pathlib import Path

from lrnnx_app.export._chunk import Chunk

HEAD = '''"""Streams {what} through {file}, {chunk} samples at a time. Needs {needs}, not lrnnx."""

import json
import sys
import time
import wave
from pathlib import Path

import numpy as np
{imports}
here = Path(__file__).parent
{load}
state = [np.full((1, *s["shape"]), s["initial"], s["dtype"]) for s in about["states"]]
{read}
count, chunk = len(x), about["chunk"]
x = np.pad(x, [(0, -count % chunk), *[(0, 0)] * (x.ndim - 1)])
ys, times = [], []
for start in range(0, len(x), chunk):
    inputs = [x[None, start : start + chunk], {dt}*state]
    began = time.perf_counter()
    {run}
    times.append(time.perf_counter() - began)
    ys.append(y[0])
{write}
print(f"median of a chunk: {{1000 * np.median(times):.2f}} ms{factor}", file=sys.stderr)
'''
WAV = """with wave.open(sys.argv[1]) as source:
    rate = source.getframerate()
    x = np.frombuffer(source.readframes(source.getnframes()), np.int16)[:, None].astype(np.float32) / 32768
if rate != about["sample_rate"]:
    sys.exit(f"expected {about['sample_rate']} Hz, not {rate}")"""
NOISE = (
    'x = np.random.default_rng(0).standard_normal((4 * about["chunk"], about["d_input"])).astype(np.float32)'
)
TOKENS = 'x = np.random.default_rng(0).integers(about["d_input"], size=4 * about["chunk"])'
SOUND = """y = np.concatenate(ys)[:count, 0]
with wave.open(sys.argv[2], "w") as target:
    target.setparams((1, 2, rate, 0, "NONE", ""))
    target.writeframes((y * 32768).round().clip(-32768, 32767).astype(np.int16).tobytes())"""
CLASS = 'print(about["classes"][int(np.reshape(ys[-1], (-1, len(about["classes"])))[-1].argmax())])'
NUMBERS = "print(ys[-1])"
FACTOR = ", real-time factor {np.median(times) * rate / chunk:.3f}"

RUNTIMES = {
    "onnx": {
        "needs": "numpy and onnxruntime",
        "imports": "import onnxruntime\n",
        "load": """options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(here / "{file}", options)
about = json.loads(session.get_modelmeta().custom_metadata_map["lrnnx"])
names = [i.name for i in session.get_inputs()]""",
        "run": "y, *state = session.run(None, dict(zip(names, inputs, strict=True)))",
    },
    "torch": {
        "needs": "torch and numpy",
        "imports": "import torch\n",
        "load": """torch.set_num_threads(1)
files = {{"lrnnx.json": ""}}
program = torch.export.load(here / "{file}", extra_files=files).module()
about = json.loads(files["lrnnx.json"])""",
        "run": """with torch.no_grad():
        y, *state = (z.numpy() for z in program(*map(torch.tensor, inputs)))""",
    },
}


def beside(path: Path) -> Path:
    """Where the script that runs an exported program goes."""
    return path.with_name(f"{path.stem}_{path.suffix[1:]}.py")


def write(target: Path, path: Path, runtime: str, chunk: Chunk) -> None:
    """Write the script that runs the program at `path`, which must be in the same folder."""
    spec, words = chunk.spec, RUNTIMES[runtime]
    audio = spec.sample_rate > 0 and not spec.tokens
    text = HEAD.format(
        what="a wav file" if audio else "noise",
        file=path.name,
        chunk=chunk.chunk,
        needs=words["needs"],
        imports=words["imports"],
        load=words["load"].format(file=path.name),
        read=WAV if audio else TOKENS if spec.tokens else NOISE,
        dt="np.ones((1, chunk), np.float32), " if chunk.timed else "",
        run=words["run"],
        factor=FACTOR if audio else "",
        write=CLASS if spec.classes else SOUND if audio else NUMBERS,
    )
    target.write_text(text if audio else text.replace("import wave\n", ""), encoding="utf-8")
