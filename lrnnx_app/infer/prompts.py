"""`lrnnx infer --prompt`: reads prompts, shows their continuations, and says what it cost."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lrnnx_app.console import terminal
from lrnnx_app.console.terminal import as_json
from lrnnx_app.errors import DataError, UserError
from lrnnx_app.infer.generation import Generation
from lrnnx_app.infer.report import text
from lrnnx_app.infer.sampling import Sampling
from lrnnx_app.machine import chosen_device, peaks
from lrnnx_app.runs.run import Run
from lrnnx_app.streaming.slots import Timing
from lrnnx_app.streaming.threads import threads


def given(prompt: str | None, file: Path | None) -> list[bytes]:
    """The prompts: a text, or a file's if it is @FILE; or those of a file, one in each line that has one.

    Raises:
        UserError: both are given.
        DataError: a file is not readable, or has no line.
    """
    if prompt is not None and file is not None:
        raise UserError("--prompt and --prompts: expected one of them")
    if file is not None:
        lines = [line for line in _content(file).splitlines() if line.strip()]
        if not lines:
            raise DataError(f"{file}: no prompt in it; expected one a line")
        return lines
    if prompt is None:
        return []
    return [_content(Path(prompt[1:])) if prompt.startswith("@") else os.fsencode(prompt)]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: not readable ({error.strerror}); expected a text file") from error


def continued(
    run: Run,
    prompts: Sequence[bytes],
    how: Sampling,
    *,
    device: str | None = None,
    count: int | None = None,
    to_json: bool = False,
    save: Path | None = None,
    before: Path | None = None,
) -> None:
    """Write prompts and continuations to standard output, what it cost to standard error.

    One text is written as it grows, whole letters at a time. Of several, each has a line once it and those
    before it have ended.

    Args:
        count: threads of a CPU, 1 by default.
        to_json: write a line of JSON for each instead.
        save: file for the states at the end.
        before: file of states to go on from.

    Raises:
        RunError, UserError, StreamError: see `Generation`.
    """
    device = chosen_device(device)
    with threads(count or 1):
        made = Generation(run, prompts, how, device, before)
        prompts = prompts or [b""] * len(made.texts)
        shown = _Shown(made, prompts, to_json)
        if device == "cuda":
            made.session.warm_up()  # captures the graph
        timing, started = Timing(), time.perf_counter()
        for parts in made.parts():
            now = time.perf_counter()
            timing.chunks.append(now - started)
            shown.add(parts)
            started = now
        if save is not None:
            made.save(save)
        first, *rest = timing.chunks
        costs: dict[str, Any] = {"prompt_ms": round(1000 * first, 3)}
        if rest:
            added = sum(text.tokens for text in made.texts) - len(made.texts)
            costs["tokens_per_second"] = round(added / sum(rest), 1)
        costs |= timing.percentiles() | peaks(torch.device(device))
        costs |= {"threads": torch.get_num_threads()} if device == "cpu" else {}
        costs["graph"] = made.session.graph_reason or "replayed"
        terminal.say(text(costs, to_json), aside=True)


class _Shown:
    """Standard output."""

    def __init__(self, made: Generation, prompts: Sequence[bytes], to_json: bool) -> None:
        self.made, self.prompts, self.to_json = made, prompts, to_json
        self.out, self.done = terminal.target(), 0
        self.live = len(prompts) == 1 and not to_json
        if self.live:
            self._write(prompts[0])

    def add(self, parts: Sequence[bytes]) -> None:
        if self.live:
            self._write(parts[0])
        while self.done < len(self.prompts) and (found := self.made.texts[self.done]).ended:
            prompt, self.done = self.prompts[self.done], self.done + 1
            if self.to_json:
                words = {
                    "prompt": prompt.decode(errors="replace"),
                    "text": found.text.decode(errors="replace"),
                }
                line = as_json({**words, "tokens": found.tokens, "ended": found.ended}).encode()
            else:
                line = b"" if self.live else prompt + found.text
            self._write(line + b"\n")

    def _write(self, text: bytes) -> None:
        self.out.write(text)
        self.out.flush()
