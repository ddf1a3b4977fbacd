"""Inference from audio to audio: from files to files, or from standard input to standard output."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from lrnnx_app.console import terminal
from lrnnx_app.console.terminal import say
from lrnnx_app.data.audio_io import check_rate, find_audio, open_audio
from lrnnx_app.errors import DataError
from lrnnx_app.infer.job import PIPE, Job
from lrnnx_app.infer.report import text
from lrnnx_app.streaming import sources
from lrnnx_app.streaming.sinks import AudioFile, Pcm, Sink
from lrnnx_app.streaming.tracks import AudioTrack, Track


class AudioJob(Job):
    """Every input becomes a file of the same length and rate; standard input becomes standard output."""

    def found(self, path: Path) -> Iterator[Path]:
        yield from find_audio(path, "recordings") if path != PIPE and path.is_dir() else (path,)

    def shows_results(self) -> bool:
        return not self.results

    def track(self, path: Path) -> Track:
        if path == PIPE:
            blocks = self.pipe()
            rate, subtype = blocks.rate, "FLOAT" if self.options.form == "f32le" else None
        else:
            reader = open_audio(path)
            rate, subtype = reader.samplerate, reader.subtype
            blocks = sources.file_blocks(reader, path)
        check_rate(path, rate, self.rate)
        sink: Sink = (
            AudioFile(self.results[path], rate, subtype)
            if self.results
            else Pcm(terminal.target(), self.options.form)
        )
        watch = self.recorder.waves if path == self.inputs[0] else None
        source = sources.Resampled(blocks, rate, self.rate)
        late = self.model.delay
        return AudioTrack(str(path), source, sink, rate, self.rate, path == PIPE, watch, late)

    def done(self, track: Track) -> None:
        assert isinstance(track, AudioTrack)
        if track.beyond:
            self.beyond += track.beyond
            what = f"{track.beyond} samples beyond {sources.LOUDEST:g} times full scale were taken for that"
            say(f"{track.name}: {what}", aside=True)
        if self.results:
            name = str(self.results[Path(track.name)])
            line = {"file": name, "seconds": round(track.seconds, 3)}
            say(text(line, True) if self.options.as_json else f"{name}: {track.seconds:.2f} s")

    @cached_property
    def results(self) -> dict[Path, Path]:
        """The output file for each input; for several inputs in the folder that -o names; none for a pipe.

        Raises:
            DataError: -o is missing, does not fit the number of inputs, or two inputs would have one output.
        """
        output = self.options.output
        if output == PIPE or (output is None and self.inputs == [PIPE]):
            if len(self.inputs) > 1:
                raise DataError("-o -: expected one input, since raw PCM has no place for file names")
            return {}
        if output is None:
            raise DataError("-o: expected a file for the result, or a folder for several inputs")
        if len(self.inputs) == 1 and not output.is_dir():
            results = {self.inputs[0]: output}
        elif not output.is_dir():
            raise DataError(
                f"{output}: expected an existing folder, since there are {len(self.inputs)} inputs"
            )
        else:
            results = {path: output / path.name for path in self.inputs}
        for path, target in results.items():
            if target.exists() and path.exists() and target.samefile(path):
                raise DataError(f"{target}: is the input; name another output")
        if len(set(results.values())) < len(results):
            raise DataError(f"{output}: two inputs have the same name; run them one by one")
        return results
