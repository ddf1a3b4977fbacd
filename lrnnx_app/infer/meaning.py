"""Inference that shows what a model's output for each file or chunk means, such as a class."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor

from lrnnx_app.console.tables import table
from lrnnx_app.console.terminal import as_json, shown
from lrnnx_app.data.audio_io import check_rate
from lrnnx_app.disk import atomic
from lrnnx_app.errors import DataError
from lrnnx_app.infer.job import PIPE, Job
from lrnnx_app.runs.run import build_data
from lrnnx_app.streaming import sources
from lrnnx_app.streaming.tracks import OutputTrack, Track, in_parts


class MeaningJob(Job):
    """Shows the last output of every file, or on request the output after every chunk."""

    streams_only = False

    def shows_results(self) -> bool:
        return self.options.output in (None, PIPE)

    def words(self) -> AbstractContextManager[TextIO]:
        output = self.options.output
        if output is None or output == PIPE:
            return super().words()
        if any(path.exists() and output.exists() and path.samefile(output) for path in self.inputs):
            raise DataError(f"{output}: is the input; name another output")
        if not output.parent.is_dir():
            raise DataError(f"{output}: no such folder; make {output.parent} first")
        return _kept(output)

    def track(self, path: Path) -> Track:
        steps = max(self.rate, 1)
        show = partial(self._say, str(path), True) if self.options.running or path == PIPE else None
        done = partial(self._say, str(path), False) if show is None else lambda *_: None
        if path == PIPE:
            if not self.rate or self.task.spec.d_input != 1:
                raise DataError("-: this run takes no audio samples; expected files")
            blocks = self.pipe()
            check_rate("--rate", blocks.rate, self.rate)
            audio = sources.Resampled(blocks, blocks.rate, self.rate)

            def read(count: int) -> sources.Steps:
                return sources.Steps(audio.read(count)[:, None])

            return OutputTrack("-", read, done, show, steps, True, audio.delay)
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        example = build_data(self.run.recipe).read(path)
        return OutputTrack(str(path), in_parts(sources.Steps(example.x, example.dt)), done, show, steps)

    def _say(self, name: str, running: bool, time: float, output: Tensor) -> None:
        """Print the meaning of the output after a chunk, or of the last one."""
        meaning = self.task.meaning(output)
        if running and name == str(self.inputs[0]):
            self.recorder.meaning(time, meaning)
        at = {"seconds" if self.rate else "time": round(time, 4)} if running else {}
        if self.options.as_json:
            line = as_json({"file": name, **at, meaning.key: meaning.values})
        elif running:
            line = shown(f"{name}  {time:10.3f}  {meaning.headline}")
        else:
            rows: list[dict[str, Any]] = [
                {name: key, meaning.column: value} for key, value in meaning.values.items()
            ]
            line = table(rows)
        print(line, file=self.out, flush=True)


@contextmanager
def _kept(output: Path) -> Iterator[TextIO]:
    """A text file that appears when it is complete. If writing fails, an older file is unchanged."""
    place = output.resolve()
    beside = not place.exists() or place.is_file()  # not for a device or a pipe
    whole = atomic.whole(place) if beside else nullcontext(place)
    with whole as path, path.open("w", encoding="utf-8") as file:
        yield file
