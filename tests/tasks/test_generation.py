"""Continuations: as of each prompt alone, in whole letters, up to a stop text, and on from a saved state."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lrnnx_app.data.tokenizer import Tokenizer
from lrnnx_app.errors import RunError, StreamError, UserError
from lrnnx_app.infer import generation
from lrnnx_app.infer.generation import Continuation, Generation
from lrnnx_app.infer.sampling import Sampler, Sampling, shares
from lrnnx_app.runs.run import Run
from lrnnx_app.streaming.session import StreamingSession
from tests.helpers import untrained

GREEDY = Sampling(length=12, temperature=0)
PROMPTS = (b"abcdefghabcdefgh", b"a", b"the quick brown fox jumps over it", b"\xc3\xa9\x00\xff")
LAYERS = ("rglru", "s6", "s5", "lru", "gru", "[{name: rglru},{name: local_attention,window: 8}]")
SMALL = ["model.d_model=16", "model.depth=2", "trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("generation")


def run_of(place: Path, layer: str = "rglru") -> Run:
    folder = place / "".join(letter for letter in layer if letter.isalpha())
    if not folder.exists():
        untrained(folder, "text_rglru_mini", *SMALL, f"model.layer={layer}")
    return Run(folder)


def texts(made: Generation) -> list[bytes]:
    shown = [b""] * len(made.texts)
    for parts in made.parts():
        shown = [text + part for text, part in zip(shown, parts, strict=True)]
    assert shown == [text.text for text in made.texts]
    return shown


@pytest.mark.parametrize("layer", LAYERS)
def test_several_prompts_go_on_as_each_alone(
    place: Path, layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of any lengths, also when they go through the model in pieces that some do not reach."""
    run = run_of(place, layer)
    alone = [texts(Generation(run, [prompt], GREEDY))[0] for prompt in PROMPTS]
    assert texts(Generation(run, PROMPTS, GREEDY)) == alone
    monkeypatch.setattr(generation, "PIECE", 5)
    assert texts(Generation(run, PROMPTS, GREEDY)) == alone


def test_a_device_gives_the_text_of_the_others_and_a_gpu_by_a_graph(place: Path, device: str) -> None:
    made = Generation(run_of(place), PROMPTS, GREEDY, device)
    assert texts(made) == texts(Generation(run_of(place), PROMPTS, GREEDY))
    assert bool(made.session.graph_reason) == (device == "cpu")


def test_draws_of_a_text_do_not_depend_on_the_others(place: Path) -> None:
    run, warm = run_of(place), Sampling(length=20, temperature=1.5, seed=3)
    both = texts(Generation(run, [b"abc", b"abc"], warm))
    assert both[0] == texts(Generation(run, [b"abc"], warm))[0]
    assert both[1] == texts(Generation(run, [b"abc"], replace(warm, seed=4)))[0]
    assert both[0] != both[1]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (Sampling(temperature=1), [0.4, 0.3, 0.2, 0.1]),
        (Sampling(temperature=0.5), [0.16 / 0.3, 0.09 / 0.3, 0.04 / 0.3, 0.01 / 0.3]),
        (Sampling(temperature=1, top_k=2), [0.4 / 0.7, 0.3 / 0.7, 0, 0]),
        (Sampling(temperature=1, top_p=0.65), [0.4 / 0.7, 0.3 / 0.7, 0, 0]),
        (Sampling(temperature=1, top_p=0.75), [0.4 / 0.9, 0.3 / 0.9, 0.2 / 0.9, 0]),
        (Sampling(temperature=1, top_k=3, top_p=0.4), [1, 0, 0, 0]),
        (Sampling(temperature=0), [1, 0, 0, 0]),
    ],
    ids=str,
)
def test_draws_have_the_probabilities_asked_for(how: Sampling, expected: list[float]) -> None:
    order = torch.tensor([2, 0, 3, 1])
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()[order].repeat(3000, 1)
    wanted = torch.tensor(expected, dtype=torch.float32)[order]
    if how.temperature:
        found = shares(logits[:1], how)[0]
        assert torch.allclose((found / found.sum()).float(), wanted, atol=1e-6)
    drawn = torch.bincount(Sampler(how, 3000).draw(logits), minlength=4) / 3000
    assert float((drawn - wanted).abs().max()) < 0.04  # four standard deviations
    assert bool((drawn[wanted == 0] == 0).all())


def scripted(monkeypatch: pytest.MonkeyPatch, *rows: Sequence[int]) -> None:
    """Let these tokens be drawn, whatever the logits are."""
    steps = iter(list(zip(*rows, strict=True)))

    def draw(self: Sampler, logits: Tensor) -> Tensor:
        assert logits.shape[0] == len(rows)
        return torch.tensor(next(steps))

    monkeypatch.setattr(Sampler, "draw", draw)


def test_shown_text_ends_with_a_letter(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "aé€𝄞b".encode()
    scripted(monkeypatch, list(text[:-2]))
    made = Generation(run_of(place), [b"x"], Sampling(length=len(text) - 2))
    parts = [part for (part,) in made.parts()]
    assert [part.decode() for part in parts[:-1] if part] == ["a", "é", "€"]
    assert b"".join(parts) == text[:-2]  # what is left comes at the end


def test_a_stop_text_ends_one_and_not_the_others(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, b"some text. End", b"noEneEndwhatever"[:14], b"neither one En")
    made = Generation(run_of(place), [b"x"] * 3, Sampling(length=14, stop=(b"End", b"ne\n")))
    steps = list(made.parts())
    assert [b"".join(column) for column in zip(*steps, strict=True)] == [
        b"some text. ",
        b"noEne",
        b"neither one En",
    ]
    assert [text.ended for text in made.texts] == ["stop", "stop", "length"]
    assert [text.tokens for text in made.texts] == [14, 8, 14]
    assert b"".join(step[1] for step in steps[:3]) == b"no"  # what may become a stop text waits


def test_the_first_of_several_stop_texts_counts() -> None:
    text = Continuation(Tokenizer(), (b"cd", b"bcd"))
    assert b"".join(text.take(byte) for byte in b"abcd") == b"a"
    assert text.ended == "stop"


def test_the_end_of_a_document_ends_a_text(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tokenizer, "end", 0)
    scripted(monkeypatch, b"ab\0cd", b"abcde")
    made = Generation(run_of(place), [b"x"] * 2, Sampling(length=5))
    assert texts(made) == [b"ab", b"abcde"]
    assert [(text.ended, text.tokens) for text in made.texts] == [("end", 3), ("length", 5)]


@pytest.mark.parametrize("layer", LAYERS)
def test_saved_states_go_on_as_if_nothing_had_happened(place: Path, tmp_path: Path, layer: str) -> None:
    run, half = run_of(place, layer), replace(GREEDY, length=6)
    whole = texts(Generation(run, PROMPTS, GREEDY))
    first = Generation(run, PROMPTS, half)
    begun = texts(first)
    first.save(tmp_path / "state")
    later = texts(Generation(run, [], half, before=tmp_path / "state"))
    assert [one + other for one, other in zip(begun, later, strict=True)] == whole


def test_prompts_follow_a_state_and_several_can_follow_one(place: Path, tmp_path: Path) -> None:
    run, one = run_of(place), replace(GREEDY, length=1)
    first = Generation(run, [b"a long beginning"], one)
    begun = b"a long beginning" + texts(first)[0]
    first.save(tmp_path / "state")
    ends = [b" and", b"", b" or this"]
    alone = [texts(Generation(run, [begun + end], GREEDY))[0] for end in ends]
    assert texts(Generation(run, ends, GREEDY, before=tmp_path / "state")) == alone


def test_a_state_of_another_model_or_of_no_model_is_refused(place: Path, tmp_path: Path) -> None:
    made = Generation(run_of(place), [b"a", b"b"], replace(GREEDY, length=1))
    texts(made)
    made.save(tmp_path / "state")
    with pytest.raises(StreamError, match=r"expected .* 2 streams"):
        Generation(run_of(place, "s6"), [], GREEDY, before=tmp_path / "state")
    with pytest.raises(StreamError, match="3 streams"):
        Generation(run_of(place), [b"a"] * 3, GREEDY, before=tmp_path / "state")
    (tmp_path / "text").write_text("no state")
    for name in ("text", "nowhere"):
        with pytest.raises(StreamError, match=f"{name}: not a saved state"):
            Generation(run_of(place), [], GREEDY, before=tmp_path / name)


def test_a_model_that_is_not_finite_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(place)
    task = run.task()
    task.model.head.weight.data.fill_(torch.nan)
    monkeypatch.setattr(Run, "task", lambda _: task)
    with pytest.raises(StreamError, match="not finite"):
        texts(Generation(run, [b"a"], GREEDY))


def test_a_tokenizer_that_is_larger_than_the_model_is_refused(place: Path) -> None:
    run = run_of(place)
    run.recipe.data.tokenizer = "ids:300"
    with pytest.raises(RunError, match="takes 256 tokens, its tokenizer gives 300"):
        Generation(run, [b"1"], GREEDY)
    run.recipe.data.tokenizer = "ids:200"  # the model has rows to spare
    with pytest.raises(UserError, match="--prompt: 'a' is no token"):
        Generation(run, [b"1 a"], GREEDY)
    assert texts(Generation(run, [b"1 2"], GREEDY))[0].split()


def test_a_file_of_prompts_gives_a_line_for_each(place: Path, tmp_path: Path, lrnnx) -> None:
    run = run_of(place)
    (tmp_path / "prompts").write_text("one\n\ntwo words\nthree\n")
    words = ["infer", run.path, "--prompts", tmp_path / "prompts", "--length", 5, "--device", "cpu"]
    told = lrnnx(*words, "--json", "--temperature", 0).done()
    rows = [json.loads(line) for line in told.out.splitlines()]
    assert [row["prompt"] for row in rows] == ["one", "two words", "three"]
    assert {row["ended"] for row in rows} == {"length"}
    for row in rows:
        alone = texts(Generation(run, [row["prompt"].encode()], replace(GREEDY, length=5)))[0]
        assert row["text"] == alone.decode(errors="replace")
        assert row["tokens"] == 5
    assert json.loads(told.error)["tokens_per_second"] > 0
    state = tmp_path / "state"
    lrnnx(*words, "--save-state", state, "--top-k", 3, "--top-p", 0.9, "--stop", "x", "--seed", 1).done()
    again = lrnnx("infer", run.path, "--load-state", state, "--length", 3, "--json", "--device", "cpu").done()
    assert len(again.out.splitlines()) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "a", "--prompts", "p"], "expected one of them"),
        (["--prompts", "nowhere"], "nowhere: not readable"),
        (["--prompts", "empty"], "empty: no prompt in it"),
        (["--prompt", "a", "--top-p", "0"], "--top-p"),
        (["--prompt", "a", "--top-p", "nan"], "--top-p"),
        (["--prompt", "a", "--stop", ""], "--stop"),
        (["--load-state", "nowhere"], "nowhere: not a saved state"),
        (["--save-state", "s"], "--save-state: expected --prompt"),
        (["--prompt", "a", "--save-state", "no/s"], "no/"),
    ],
)
def test_mistakes_are_one_line(
    place: Path, tmp_path: Path, lrnnx, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text("\n \n")
    lrnnx("infer", run_of(place).path, *words, "--length", "2", "--device", "cpu").refuses(message)


@pytest.mark.parametrize("model", ["backbone", "language"])
def test_a_pass_for_the_last_output_is_the_same_as_step_by_step(place: Path, model: str) -> None:
    built = untrained(place / model, "text_rglru_mini", *SMALL, f"model.name={model}")
    stack = Run(built).task().model
    one, other = (StreamingSession(stack, 2, 1) for _ in range(2))
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 30)))
    for lengths in (None, torch.tensor([30, 11])):
        steps, last = one.push(x, lengths=lengths), other.push(x, lengths=lengths, last=True)
        for row in range(2):
            end = 30 if lengths is None else int(lengths[row])
            assert torch.allclose(steps[row, end - 1], last[row], atol=1e-5)
        for name, value in one.state().items():
            assert torch.allclose(value, other.state()[name], atol=1e-5), name
