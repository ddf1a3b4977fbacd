"""Continues texts side by side: prompts by the model's parallel form, then token by token."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lrnnx_app.data.tokenizer import AUTO, BYTES, Decoder, Tokenizer, opened
from lrnnx_app.disk import atomic
from lrnnx_app.errors import RunError, StreamError, UserError
from lrnnx_app.infer.sampling import Sampler, Sampling
from lrnnx_app.runs.run import Run
from lrnnx_app.streaming.session import StreamingSession

PIECE = 4096  # most tokens of one pass through the model
LOGITS = 1 << 24  # most numbers that it gives in one pass
LAST = "last_token"  # in a saved state, the token of each text that the model has not read yet
LENGTH, END, STOP = "length", "end", "stop"  # why a continuation ends


def piece(width: int) -> int:
    """How many steps go through a model in one pass that gives `width` numbers a step."""
    return max(1, min(PIECE, LOGITS // width))


class Continuation:
    """The text that is added to one prompt, as far as it can be shown.

    Attributes:
        text: the text so far. What may become a stop text, or is a part of a letter, is not shown yet.
        tokens: number of tokens.
        ended: "" while it goes on; "length", "end" of the document, or "stop" text.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[bytes]) -> None:
        self.text, self.tokens, self.ended = b"", 0, ""
        self._decoder, self._stop, self._end, self._held = Decoder(tokenizer), stop, tokenizer.end, b""

    def take(self, token: int) -> bytes:
        """Add a token; returns the text that can be shown now."""
        self.tokens += 1
        if token == self._end:
            return self.finish(END)
        self._held += self._decoder.push(token)
        found = [place for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if found:
            self._held, self.ended = self._held[: min(found)], STOP
            return self._show(len(self._held))
        return self._show(len(self._held) - max((_begun(self._held, stop) for stop in self._stop), default=0))

    def finish(self, why: str) -> bytes:
        """End, and return the rest of the text."""
        self.ended = why
        self._held += self._decoder.finish()
        return self._show(len(self._held))

    def _show(self, end: int) -> bytes:
        shown, self._held = self._held[:end], self._held[end:]
        self.text += shown
        return shown


def _begun(text: bytes, stop: bytes) -> int:
    """How many bytes at the end of a text begin a stop text."""
    sizes = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)


class Generation:
    """Continues prompts with a trained model.

    On a GPU a step of all texts is one CUDA graph. The continuation of a text does not depend on the others,
    up to the rounding of larger batches.

    Args:
        prompts: if there is a state, what follows it; then none continues each of its texts as it is, and
            several may go on from one.
        before: a file that `save` wrote.

    Attributes:
        texts: what is added to each prompt.

    Raises:
        RunError: the run does not predict tokens, or its tokenizer does not fit the model.
        UserError: a prompt is empty, or not text of the tokenizer's kind.
        StreamError: the state is missing, or not one of this model and of so many prompts.
    """

    def __init__(
        self,
        run: Run,
        prompts: Sequence[bytes],
        how: Sampling,
        device: str = "cpu",
        before: Path | None = None,
    ) -> None:
        task, data = run.task(), run.recipe.data
        if task.inference != "errors" or not task.spec.tokens or task.model.hop > 1:
            raise RunError(
                f"{run.path}: is no model of text; --prompt continues runs of the task predict on text"
            )
        tokenizer = opened(getattr(data, "tokenizer", BYTES), getattr(data, "end", AUTO))
        if tokenizer.size > task.spec.d_input:
            raise RunError(
                f"{run.path}: takes {task.spec.d_input} tokens, its tokenizer gives {tokenizer.size}; "
                "restore the tokenizer.json that it was trained with"
            )
        state = None if before is None else _read(before)
        if state is not None and not prompts:
            prompts = [b""] * len(state[LAST])
        self.how, self.path = how, run.path
        self.texts = [Continuation(tokenizer, how.stop) for _ in prompts]
        self._model = task.model.to(device)
        self.session = StreamingSession(self._model, len(prompts), 1)
        given = [np.zeros(0, np.int64)] * len(prompts)
        if state is not None:
            rows = [0] * len(prompts) if len(state[LAST]) == 1 else list(range(len(state[LAST])))
            state = {name: tensor[rows] for name, tensor in state.items()}
            given = [last.numpy() for last in state.pop(LAST)]
            self.session.load_state(state)
        rows = zip(given, (_tokens(tokenizer, prompt, before is None) for prompt in prompts), strict=True)
        self._given = [torch.from_numpy(np.concatenate(row).astype(np.int64)) for row in rows]
        if not all(map(len, self._given)):
            raise UserError("--prompt: expected at least one byte to continue")
        self._last = [0] * len(prompts)

    @torch.inference_mode()
    def parts(self) -> Iterator[list[bytes]]:
        """After each token, what can be shown of each text now.

        Raises:
            StreamError: the model's numbers are not finite.
        """
        sampler = Sampler(self.how, len(self.texts))
        logits = self._prompted()
        for count in range(1, self.how.length + 1):
            tokens = sampler.draw(logits)
            shown = [self._add(row, int(token)) for row, token in enumerate(tokens.tolist())]
            if count == self.how.length:
                left = ((row, text) for row, text in enumerate(self.texts) if not text.ended)
                for row, text in left:
                    shown[row] += text.finish(LENGTH)
            yield shown
            if all(text.ended for text in self.texts):
                return
            ended = any(text.ended for text in self.texts)
            active = [not text.ended for text in self.texts] if ended else None
            logits = self.session.push(tokens[:, None], active=active)[:, 0]
            self._check()

    def save(self, path: Path) -> None:
        """Write the states of all texts, from which `before` goes on after the last token that was drawn."""
        state = {name: tensor.cpu().contiguous() for name, tensor in self.session.state().items()}
        with atomic.whole(path) as part:
            save_file({**state, LAST: torch.tensor(self._last)[:, None]}, part)

    def _add(self, row: int, token: int) -> bytes:
        if self.texts[row].ended:
            return b""
        self._last[row] = token
        return self.texts[row].take(token)

    def _prompted(self) -> Tensor:
        """The logits (B, tokens) after the prompts, which go through the model in long pieces."""
        lengths = torch.tensor([len(tokens) for tokens in self._given])
        x = torch.nn.utils.rnn.pad_sequence(self._given, batch_first=True)
        model = self._model
        size, found = PIECE if model.splits else piece(len(x) * model.spec.d_output), None
        for start in range(0, x.shape[1], size):
            part = x[:, start : start + size]
            left = (lengths - start).clamp(0, part.shape[1])
            full = bool((left == part.shape[1]).all())
            y = self.session.push(part, lengths=None if full else left, last=True)
            found = y if found is None else torch.where((left > 0)[:, None].to(y.device), y, found)
            self._check()
        assert found is not None
        return found

    def _check(self) -> None:
        if any(self.session.restarts):
            raise StreamError(f"{self.path}: gives numbers that are not finite; expected a trained model")


def _tokens(tokenizer: Tokenizer, prompt: bytes, first: bool) -> np.ndarray:
    """The tokens of a prompt, which begins a text, or goes on with one."""
    try:
        return tokenizer.prompt(prompt) if first else tokenizer.encode([prompt])[0]
    except UnicodeDecodeError as error:
        raise UserError(f"--prompt: byte {error.start} is not UTF-8; expected text") from error
    except ValueError as error:
        raise UserError(f"--prompt: {error}") from error


def _read(path: Path) -> dict[str, Tensor]:
    try:
        state = load_file(path)
        if state[LAST].ndim != 2 or any(len(tensor) != len(state[LAST]) for tensor in state.values()):
            raise ValueError("of no texts")
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise StreamError(
            f"{path}: not a saved state ({type(error).__name__}); expected a file of --save-state"
        ) from error
    return state
