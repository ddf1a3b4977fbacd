"""Published models with a tokenizer: `lrnnx infer` continues texts as transformers does."""

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from lrnnx_app.data.tokenizer import trained
from tests.data.test_tokens import lines, with_start
from tests.published.test_published import TOKENS, each_case, saved

PROMPTS = ("abc de", lines(3), "€𝄞é a b c\td")


@pytest.fixture(scope="module")
def content() -> str:
    """The JSON of a tokenizer that puts a token before each prompt."""
    return with_start(trained(iter([lines(200)]), TOKENS - 1))


@each_case
@torch.inference_mode()
def test_texts_are_those_of_transformers(case: str, content: str, tmp_path: Path, lrnnx) -> None:
    theirs = saved(case, tmp_path / "hub")
    (tmp_path / "hub" / "tokenizer.json").write_text(content)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "hub" / "tokenizer.json"))
    lrnnx("import", tmp_path / "hub", "-o", tmp_path / "run").done()
    (tmp_path / "prompts").write_text("\n".join(prompt.replace("\n", " ") for prompt in PROMPTS))
    words = ["--prompts", tmp_path / "prompts", "--temperature", 0, "--length", 60, "--device", "cpu"]
    told = lrnnx("infer", tmp_path / "run", *words, "--json").done().out
    for line in told.splitlines():
        found = json.loads(line)
        given = torch.tensor([tokenizer(found["prompt"]).input_ids])
        assert given[0, 0] == TOKENS - 1
        options = {"max_new_tokens": 60, "do_sample": False, "eos_token_id": 0, "pad_token_id": 0}
        wanted = theirs.generate(given, **options)[0, given.shape[1] :]
        assert found["tokens"] == len(wanted)
        assert found["ended"] == ("end" if wanted[-1] == 0 else "length")
        assert found["text"] == tokenizer.decode(wanted, skip_special_tokens=True)
