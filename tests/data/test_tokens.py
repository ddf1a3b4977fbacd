"""Tokens: text that comes back whole, shards that a kill does not change, rows in which nothing crosses."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data_modules.text import Text
from lrnnx_app.data import shards
from lrnnx_app.data.shards import Document, Shards, cut
from lrnnx_app.data.tokenizer import Decoder, Tokenizer, opened, trained
from lrnnx_app.errors import DataError, RecipeError, UserError
from lrnnx_app.spec import SPLITS
from tests.helpers import ROOT

LETTERS = "aé€𝄞 \n"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("LRNNX_CACHE", str(place))
    return place


def lines(count: int, seed: int = 0) -> str:
    """Lines of words, with letters of one to four bytes."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("abcdeé€𝄞"), 4)) for _ in range(200)]
    return "\n".join(" ".join(rng.choice(words, 6)) for _ in range(count))


@pytest.fixture(scope="module")
def content() -> str:
    """The JSON of a byte-level tokenizer."""
    return trained(iter([lines(200)]), 400)


def with_start(content: str) -> str:
    """The same with a token before each text, as Gemma's has one."""
    from tokenizers import Tokenizer as Read
    from tokenizers import processors

    read = Read.from_str(content)
    read.add_special_tokens(["<bos>"])
    place = read.token_to_id("<bos>")
    read.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", place)])
    return read.to_str()


def with_spaces() -> str:
    """A tokenizer of pieces in which ▁ stands for a space, and <0x..> for a byte that has no piece."""
    from tokenizers import Tokenizer as Read
    from tokenizers import decoders, models, normalizers

    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a", "</s>"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    read = Read(models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>", byte_fallback=True))
    read.normalizer = normalizers.Replace(" ", "▁")
    read.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    read.add_special_tokens(["<unk>", "</s>"])
    return read.to_str()


@pytest.mark.parametrize("kind", ["bytes", "byte-level", "pieces"])
def test_streamed_text_is_the_text_and_never_breaks_a_letter(kind: str, content: str) -> None:
    tokenizer = opened({"bytes": "bytes", "byte-level": content, "pieces": with_spaces()}[kind])
    rng = np.random.default_rng(0)
    for _ in range(30):
        text = "".join(rng.choice(list(LETTERS), 20))
        tokens = tokenizer.encode([text.encode()])[0]
        decoder = Decoder(tokenizer)
        parts = [decoder.push(int(token)) for token in tokens]
        assert "".join(part.decode() for part in parts) == text
        assert decoder.finish() == b""
        assert tokenizer.sizes is not None
        assert tokenizer.sizes[tokens].sum() == len(text.encode())
    decoder = Decoder(tokenizer)
    broken = [tokenizer.encode(["é".encode()])[0][:-1], tokenizer.encode([b"a"])[0]]
    assert kind == "byte-level" or b"".join(decoder.push(int(t)) for t in np.concatenate(broken)) == b"\xc3a"


def test_bytes_that_are_no_letters_pass_and_a_cut_letter_waits() -> None:
    decoder = Decoder(Tokenizer())
    given = b"a\xff\xe2\x82b\x80\x80\x80\x80\xf0\x9d\x84"
    parts = [decoder.push(byte) for byte in given]
    assert b"".join(parts) == given[:-3]
    assert decoder.finish() == given[-3:]
    assert parts[2:5] == [b"", b"", b"\xe2\x82b"]


def test_a_prompt_begins_as_the_tokenizer_says_and_a_document_ends(content: str) -> None:
    tokenizer = opened(with_start(content))
    plain = tokenizer.encode([b"abc"])[0].tolist()
    assert tokenizer.prompt(b"abc").tolist() == [400, *plain]
    assert tokenizer.document(b"abc").tolist() == [400, *plain, tokenizer.end]
    assert tokenizer.piece(400) == b""
    assert opened(content, "none").document(b"abc").tolist() == plain
    assert opened(with_spaces()).end == 260
    with pytest.raises(RecipeError, match=r"data\.end: .*'</s>'"):
        opened(content, "</s>")


@pytest.mark.parametrize("kind", ["byte-level", "start", "pieces"])
def test_prompts_and_texts_are_those_of_transformers(kind: str, content: str) -> None:
    from tokenizers import Tokenizer as Read
    from transformers import PreTrainedTokenizerFast

    given = {"byte-level": content, "start": with_start(content), "pieces": with_spaces()}[kind]
    tokenizer, theirs = opened(given), PreTrainedTokenizerFast(tokenizer_object=Read.from_str(given))
    for text in ("a b", " é€\n\n", "𝄞a a<|endoftext|>b", lines(2)):
        tokens = theirs(text).input_ids
        assert tokenizer.prompt(text.encode()).tolist() == tokens
        decoder = Decoder(tokenizer)
        shown = b"".join(map(decoder.push, tokens)) + decoder.finish()
        assert shown.decode() == theirs.decode(tokens, skip_special_tokens=True)


def test_tokens_have_the_smallest_type(content: str) -> None:
    assert opened(content).dtype is np.uint16
    assert opened("ids:65536").dtype is np.uint16
    assert opened("ids:65537").dtype is np.uint32


def test_a_trained_tokenizer_is_the_same_again_and_has_the_size_asked_for(content: str) -> None:
    assert trained(iter([lines(200)]), 400) == content
    assert opened(content).size == 400
    with pytest.raises(RecipeError, match=r"train:5000: the text gives \d+ tokens"):
        trained(iter(["a b"]), 5000)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere.json", "data.tokenizer: nowhere.json: not readable"),
        ("bad.json", "bad.json: no tokenizer"),
        ("ids.json", "ids.json: no tokenizer"),
        ("words.json", "its decoder is WordPiece"),
        ("train:256", "at least 257"),
        ("train:x", "at least 257"),
        ("ids:0", "at least 1"),
    ],
)
def test_a_wrong_tokenizer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, name: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.json").write_text("{")
    Path("ids.json").write_bytes(b"\xff")
    Path("words.json").write_text(
        json.dumps({**json.loads(content), "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}})
    )
    with pytest.raises((DataError, RecipeError)) as caught:
        Text(Text.Config(tokenizer=name))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for work in (lambda: opened(content), lambda: trained([], 300)):
        with pytest.raises(UserError, match=r"pip install 'lrnnx-app\[text\]'"):
            work()


@pytest.mark.parametrize(
    ("text", "words"),
    [(b"1 2 x 3", "'x' is no token"), (b"1 7", "'7' is no token"), (b"-1 2", "'-1' is no token")],
)
def test_numbers_that_are_no_tokens_are_named(tmp_path: Path, text: bytes, words: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(text)
    module = Text(Text.Config(tokenizer="ids:7"))
    with pytest.raises(DataError, match=words) as caught:
        module.read(path)
    assert str(path) in str(caught.value)


def test_text_that_is_no_utf_8_is_named_with_its_place(tmp_path: Path, content: str) -> None:
    (tmp_path / "t.json").write_text(content)
    good = lines(3).encode()
    for name, text in (("a.txt", good), ("b.txt", good + b"\xff"), ("c.txt", good)):
        (tmp_path / name).write_bytes(text)
    module = Text(Text.Config(root=str(tmp_path), tokenizer=str(tmp_path / "t.json"), suffixes=".txt"))
    with pytest.raises(DataError, match=rf"b\.txt: byte {len(good)} is not UTF-8"):
        [module.source(name) for name in SPLITS]


def test_numbers_are_documents_and_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" ".join(str(n % 50) for n in range(1000)))
    module = Text(Text.Config(root=str(tmp_path / "a.txt"), tokenizer="ids:50", length=10))
    assert (module.spec.d_input, module.spec.d_output, module.spec.tokens) == (50, 50, True)
    found = []
    for name in SPLITS:
        documents = Shards(module._documents(name), module.tokenizer)
        found += documents.part(0, 0, 10**6).tolist()
    assert found == [n % 50 for n in range(1000)]
    assert module.token_bytes is None
    assert Decoder(module.tokenizer).push(12) == b" 12"


def test_cuts_are_between_lines_or_words_and_never_in_a_letter() -> None:
    content = np.frombuffer(b"ab\n\ncd\nef gh", np.uint8)
    assert [cut(content, at) for at in range(13)] == [0, 7, 7, 7, 7, 7, 7, 9, 9, 9, 10, 11, 12]
    letters = np.frombuffer("€€€".encode(), np.uint8)
    assert [cut(letters, at) for at in range(10)] == [0, 3, 3, 3, 6, 6, 6, 9, 9, 9]


def documents_of(text: str, count: int) -> list[Document]:
    rows = text.encode()
    ends = [cut(np.frombuffer(rows, np.uint8), len(rows) * i // count) for i in range(count + 1)]
    return [Document(str(i), rows, *ends[i : i + 2]) for i in range(count)]


def test_shards_hold_what_the_tokenizer_gives(content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the text is cut into shards and pieces."""
    tokenizer = opened(with_start(content))
    documents = [*documents_of(lines(300), 7), Document("empty", b"", 0, 0), *documents_of(lines(9, 1), 3)]
    expected = [tokenizer.document(d.content().tobytes()) for d in documents if d.stop > d.start]
    assert Shards(documents, tokenizer).count == 1
    for shard, piece in ((2000, 300), (700, 10**6), (10**6, 64)):
        monkeypatch.setattr(shards, "SHARD", shard)
        monkeypatch.setattr(shards, "PIECE", piece)
        found = Shards(documents, tokenizer)
        assert found.count == (1 if shard == 10**6 else found.count) > 0
        assert found.sizes.tolist() == list(map(len, expected))
        assert "empty" not in found.names
        for i, tokens in enumerate(expected):
            assert np.array_equal(found.part(i, 0, len(tokens)), tokens)
            assert np.array_equal(found.part(i, 5, 9), tokens[5:9])
            assert np.array_equal(found.part(i, 3, 10**6), tokens[3:])
    assert found.part(0, 0, 4).dtype == np.dtype("<u2")


def test_shards_are_made_once_and_anew_for_other_text_or_tokens(
    content: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.txt"

    def made(tokenizer: Tokenizer) -> bool:
        Shards([Document("a", path, 0, path.stat().st_size)], tokenizer)
        return "shard 1 of 1" in capfd.readouterr().err

    path.write_text("abc abc")
    assert made(opened(content))
    assert not made(opened(content))
    assert made(opened(content, "none"))
    assert made(opened(with_start(content)))
    path.write_text("abc abcd")
    assert made(opened(content))


def test_packed_rows_hold_each_step_once_and_nothing_crosses(tmp_path: Path) -> None:
    for i in range(30):
        numbers = range(100 * i, 100 * i + 2 + i)
        (tmp_path / f"{i}.txt").write_text(" ".join(map(str, numbers)))
    module = Text(
        Text.Config(root=str(tmp_path), tokenizer="ids:4000", length=16, examples_per_epoch=0, pack=True)
    )
    source = module.source("train")
    batch = source.batch(range(len(source)), [np.random.default_rng(0)] * len(source))
    assert batch.lengths is None
    assert batch.x.shape == batch.y.shape == batch.reset.shape == (len(source), 16)
    assert torch.equal(batch.y, batch.x + 1)  # of the same document
    assert batch.reset[:, 0].all()
    follows = batch.x[:, 1:] == batch.x[:, :-1] + 1
    assert torch.equal(~follows, batch.reset[:, 1:])
    files = [int(name.removesuffix(".txt")) for name in source.documents.names]
    steps = [100 * i + step for i in files for step in range(1 + i)]
    flat = batch.x.flatten().tolist()
    assert flat[: 16 * (len(source) - 1)] == steps[: 16 * (len(source) - 1)]
    assert flat[-16:] == steps[-16:]
    loaded = list(module.loader("train"))
    assert sum(len(part.x) for part in loaded) == len(source) // 16 * 16 or len(source)
    assert all(part.reset is not None for part in loaded)


def test_random_packed_rows_begin_anywhere(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(bytes(range(100)))
    source = Text(Text.Config(root=str(tmp_path / "a.txt"), length=10, pack=True)).source("train")
    rngs = [np.random.default_rng(i) for i in range(700)]
    batch = source.batch([0] * 700, rngs)
    assert set(batch.x[:, 0].tolist()) == set(range(70))
    assert batch.reset is None  # of one document
    assert torch.equal(batch.y, batch.x + 1)


def test_a_resumed_epoch_goes_on_at_its_place() -> None:
    """Of packed rows, all of them, each once."""
    config = Text.Config(tokenizer="train:500", length=256, examples_per_epoch=0, pack=True, batch_size=8)
    module = Text(config, 3)
    whole = [batch.x for batch in module.loader("train")]
    later = Text(config, 3)
    later.position = (0, 5)
    rest = [batch.x for batch in later.loader("train")]
    assert len(rest) == len(whole) - 5 > 0
    assert all(map(torch.equal, rest, whole[5:]))


PREPARE = """
import sys, time
from lrnnx_app.data import shards
from lrnnx_app.data.tokenizer import Pieces
shards.SHARD, shards.PIECE, shards.PIECES = 4000, 500, 2
encode, slow = Pieces.encode, sys.argv.pop()
def slowly(self, parts):
    time.sleep(float(slow))
    return encode(self, parts)
Pieces.encode = slowly
from lrnnx_app.cli import main
sys.argv[0] = "lrnnx"
main()
"""


def test_killed_preparations_go_on_and_the_shards_are_the_same_bytes(
    tmp_path: Path, own_cache: Path, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.json").write_text(content)
    (tmp_path / "a.txt").write_text(lines(1500))
    words = ["data", "prepare", "text_rglru_mini", f"data.root={tmp_path / 'a.txt'}"]
    words += [f"data.tokenizer={tmp_path / 't.json'}"]

    def start(slow: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PREPARE, *words, str(slow)]
        return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def said(process: subprocess.Popen[str], many: int) -> list[str]:
        assert process.stderr is not None
        found = []
        while len(found) < many and (line := process.stderr.readline()):
            found += [line] if "shard" in line else []
        return found

    def bins(place: Path) -> dict[str, bytes]:
        files = (path for kind in ("*.bin", "*.npy") for path in place.rglob(kind))
        return {path.relative_to(place).as_posix(): path.read_bytes() for path in files}

    for many in (2, 3):
        process = start(0.05)
        assert len(said(process, many)) == many  # it is in the midst of the last of these
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    before = {name for name in bins(own_cache) if "building-" not in name}
    assert before
    rest = start(0)
    out, error = rest.communicate(timeout=100)
    assert rest.returncode == 0, error
    assert "train: " in out
    again = sum("shard" in line for line in error.splitlines())
    monkeypatch.setenv("LRNNX_CACHE", str(tmp_path / "other"))
    undisturbed = start(0)
    _, error = undisturbed.communicate(timeout=100)
    assert 0 < again < sum("shard" in line for line in error.splitlines())
    found = bins(own_cache)
    assert found == bins(tmp_path / "other")
    assert before < found.keys()
