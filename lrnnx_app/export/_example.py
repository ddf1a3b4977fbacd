"""Scripts that run an exported program without lrnnx: on a wav, or on noise if the model is not for audio."""

import inspect
from pathlib import Path

from lrnnx_app.export._chunk import Chunk
from lrnnx_app.streaming import wav
from lrnnx_app.streaming.numbers import LOUDEST

HEAD = '''"""Streams {what} through {file}, {chunk} samples at a time. Needs {needs}, not lrnnx."""

import json
import sys
import time
import wave
from pathlib import Path

import numpy as np
{imports}{reader}
here = Path(__file__).parent
{load}
state = [np.full((1, *s["shape"]), s["initial"], s["dtype"]) for s in about["states"]]
{read}
count, chunk, late = len(x), about["chunk"], about["delay"]
x = np.pad(x, [(0, late + -(count + late) % chunk), *[(0, 0)] * (x.ndim - 1)])
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
READER = """

{source}

def heard(path):
    try:
        with open(path, "rb") as file:
            wav = wav_header(file.read)
            x = wav_samples(file.read(-1 if wav.size is None else wav.size), wav).mean(1, keepdims=True)
    except OSError as error:
        sys.exit(f"{{path}}: {{error.strerror}}")
    except ValueError as error:
        sys.exit(f"{{path}}: {{error}}; expected a wav of PCM with 8 to 32 bits, or of float")
    if not len(x) or not np.isfinite(x).all():
        sys.exit(f"{{path}}: expected at least one sample, and finite ones")
    return x.clip(-{loudest:g}, {loudest:g}), wav.rate


if len(sys.argv) != {words}:
    sys.exit("usage: python {script} IN.wav{out}")
"""
WAV = """x, rate = heard(sys.argv[1])
if rate != about["sample_rate"]:
    sys.exit(f"{sys.argv[1]}: expected {about['sample_rate']} Hz, not {rate}")"""
NOISE = (
    'x = np.random.default_rng(0).standard_normal((4 * about["chunk"], about["d_input"])).astype(np.float32)'
)
TOKENS = 'x = np.random.default_rng(0).integers(about["d_input"], size=4 * about["chunk"])'
SOUND = """y = np.concatenate(ys)[late : late + count, 0]
try:
    with open(sys.argv[2], "wb") as file, wave.open(file, "w") as target:
        target.setparams((1, 2, rate, 0, "NONE", ""))
        target.writeframes((y * 32768).round().clip(-32768, 32767).astype("<i2").tobytes())
except OSError as error:
    sys.exit(f"{sys.argv[2]}: {error.strerror}")"""
CLASS = 'print(about["classes"][int(np.reshape(ys[-1], (-1, len(about["classes"])))[-1].argmax())])'
NUMBERS = "print(ys[-1])"
FACTOR = ", real-time factor {np.median(times) * rate / chunk:.3f}"

RUNTIMES = {
    "onnx": {
        "needs": "numpy and onnxruntime",
        "imports": "import onnxruntime\n",
        "load": """options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.add_session_config_entry("session.set_denormal_as_zero", "1")  # they are slow
session = onnxruntime.InferenceSession(here / "{file}", options)
about = json.loads(session.get_modelmeta().custom_metadata_map["lrnnx"])
names = [i.name for i in session.get_inputs()]""",
        "run": "y, *state = session.run(None, dict(zip(names, inputs, strict=True)))",
    },
    "torch": {
        "needs": "torch and numpy",
        "imports": "import torch\n",
        "load": """torch.set_num_threads(1)
torch.set_flush_denormal(True)  # they are slow
files = {{"lrnnx.json": ""}}
program = torch.export.load(here / "{file}", extra_files=files).module()
about = json.loads(files["lrnnx.json"])""",
        "run": """with torch.no_grad():
        y, *state = (z.numpy() for z in program(*map(torch.tensor, inputs)))""",
    },
}


def beside(path: Path) -> Path:
    """The path of the script that runs the exported program at `path`."""
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
        reader=_reader(beside(path).name, bool(spec.classes)) if audio else "",
        load=words["load"].format(file=path.name),
        read=WAV if audio else TOKENS if spec.tokens else NOISE,
        dt="np.ones((1, chunk), np.float32), " if chunk.timed else "",
        run=words["run"],
        factor=FACTOR if audio else "",
        write=CLASS if spec.classes else SOUND if audio else NUMBERS,
    )
    target.write_text(text if audio else text.replace("import wave\n", ""), encoding="utf-8")


def _reader(script: str, classifies: bool) -> str:
    """The part of a script that reads a wav; it contains this project's own functions for that."""
    source = inspect.getsource(wav).partition('"""\n\n')[2].rstrip()
    out = "" if classifies else " OUT.wav"
    words = 2 if classifies else 3
    return READER.format(source=source, loudest=LOUDEST, words=words, script=script, out=out)
