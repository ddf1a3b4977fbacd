"""What the messages of a stream hold: steps of its input, and the samples or classes of its output."""

import numpy as np
import torch

from lrnnx_app.console.terminal import as_json
from lrnnx_app.errors import UserError, one_of
from lrnnx_app.streaming.sinks import pcm
from lrnnx_app.streaming.sources import FORMATS, FULL_SCALE
from lrnnx_app.tasks._base import Task

GOES, UNFIT, WRONG, UNALLOWED, LARGE = 1001, 1003, 1007, 1008, 1009  # close codes of RFC 6455
SAMPLES, CLASSES = "samples", "classes"  # what a stream gives
GIVES = {"audio": SAMPLES, "meaning": CLASSES}  # by the inference of a task
STEPS = "steps"  # the format of models of other things than sound


class Refused(Exception):  # noqa: N818  (no error of lrnnx: it ends one stream)
    """Ends a stream with the close code of a WebSocket and a reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class Wire:
    """How the steps and outputs of a task's model travel.

    A step of sound is a number for each channel, in one of FORMATS. Other steps are int32 tokens, or d_input
    float32 numbers; in a model of times a float32 dt follows each. All are little-endian.

    Args:
        timed: whether steps have a dt.
        form: a name in FORMATS for sound, else "steps"; "" for the first one that fits.

    Attributes:
        step: the dtype of a step, with fields x and dt.
        gives: "samples" or "classes".

    Raises:
        UserError: there is no such format for this model.
    """

    def __init__(self, task: Task, timed: bool, form: str = "") -> None:
        self.task, self.spec = task, task.spec
        sound = bool(self.spec.sample_rate) and not self.spec.tokens
        forms = ("f32le", *(name for name in FORMATS if name != "f32le")) if sound else (STEPS,)
        self.form, self.gives = one_of("format", form or forms[0], forms), GIVES[task.inference]
        self._number = FORMATS[self.form] if sound else np.dtype("<i4" if self.spec.tokens else "<f4")
        self._shape, self._timed = () if self.spec.tokens else (self.spec.d_input,), timed
        self.step = np.dtype([("x", self._number, self._shape), *([("dt", "<f4")] if timed else [])])
        self._scale = 1 / FULL_SCALE if self._number.kind == "i" and sound else None

    def check(self, message: bytes) -> None:
        """Raises:
        Refused: the message holds no whole number of steps, or a number that no step has.
        """
        size = self.step.itemsize
        if len(message) % size:
            raise Refused(WRONG, f"{len(message)} bytes: expected a multiple of {size}, the bytes of a step")
        x, dt = self._read(message)
        if x.dtype.kind == "f" and not np.isfinite(x).all():
            raise Refused(WRONG, "a number is not finite")
        if self.spec.tokens and len(x) and not 0 <= x.min() <= x.max() < self.spec.d_input:
            raise Refused(WRONG, f"a token is not among 0 to {self.spec.d_input - 1}")
        if dt is not None and not (np.isfinite(dt) & (dt >= 0)).all():
            raise Refused(WRONG, "a dt is negative or not finite")

    def fill(self, message: bytes, x: np.ndarray, dt: np.ndarray | None) -> int:
        """Write the steps of a message into rows x (T, d_input) or (T,) and dt (T,); returns their number."""
        steps, times = self._read(message)
        count = len(steps)
        x[:count] = steps
        if self._scale is not None:
            x[:count] *= self._scale
        if dt is not None:
            dt[:count] = times
        return count

    def answer(self, y: np.ndarray, time: float) -> bytes | str:
        """The message for outputs y (T, d_output), or (d_output,) of a model that pools."""
        if self.gives == SAMPLES:
            return pcm(y, self._number)
        meaning = self.task.meaning(torch.from_numpy(y if y.ndim == 1 else y[-1]))
        at = {"seconds" if self.spec.sample_rate else "time": round(time, 4)}
        return as_json(at | {meaning.key: meaning.values})

    def _read(self, message: bytes) -> tuple[np.ndarray, np.ndarray | None]:
        """x (T, d_input) or (T,), and dt (T,)."""
        if not self._timed:
            return np.frombuffer(message, self._number).reshape(-1, *self._shape), None
        steps = np.frombuffer(message, self.step)
        return steps["x"], steps["dt"]


def wire_of(task: Task, timed: bool, form: str) -> Wire:
    """The wire in the format that a client asks for.

    Raises:
        Refused: there is no such format.
    """
    try:
        return Wire(task, timed, form)
    except UserError as error:
        raise Refused(UNFIT, str(error)) from error
