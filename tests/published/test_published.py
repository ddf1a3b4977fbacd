"""Checkpoints of transformers become runs, and runs such checkpoints: the same logits and texts both ways."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    FalconMambaConfig,
    FalconMambaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)

from lrnnx_app import load
from lrnnx_app.export import export_run
from lrnnx_app.published.imports import import_folder
from lrnnx_app.runs.run import Run
from tests.helpers import relative, untrained

TOKENS, ROUNDING = 300, 1e-5
SMALL = {"vocab_size": TOKENS, "hidden_size": 24, "num_hidden_layers": 3, "initializer_range": 0.4}
MAMBA = {**SMALL, "state_size": 5, "expand": 2}
MAMBA2 = {**SMALL, "state_size": 5, "head_dim": 8, "num_heads": 6, "chunk_size": 16}
GEMMA = {
    **SMALL,
    "hidden_size": 32,
    "intermediate_size": 60,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attention_window_size": 9,
    "conv1d_width": 3,
    "logits_soft_cap": 2.0,
}
CASES = {
    "mamba": lambda: MambaForCausalLM(MambaConfig(**MAMBA)),
    "mamba_untied": lambda: MambaForCausalLM(
        MambaConfig(**MAMBA, tie_word_embeddings=False, use_bias=True, use_conv_bias=False, time_step_rank=3)
    ),
    "mamba2": lambda: Mamba2ForCausalLM(Mamba2Config(**MAMBA2, n_groups=2, use_bias=True)),
    "mamba2_tied": lambda: Mamba2ForCausalLM(
        Mamba2Config(**MAMBA2, n_groups=1, tie_word_embeddings=True, use_conv_bias=False)
    ),
    "falcon_mamba": lambda: FalconMambaForCausalLM(FalconMambaConfig(**MAMBA, mixer_rms_eps=0.01)),
    "recurrent_gemma": lambda: RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**GEMMA)),
    "recurrent_gemma_untied": lambda: RecurrentGemmaForCausalLM(
        RecurrentGemmaConfig(**{**GEMMA, "num_key_value_heads": 1}, tie_word_embeddings=False)
    ),
}
each_case = pytest.mark.parametrize("case", CASES)
PROMPT = torch.randint(TOKENS, (2, 40), generator=torch.Generator().manual_seed(1))


def made(case: str, dtype: torch.dtype = torch.float32):
    """A random checkpoint whose every parameter matters."""
    torch.manual_seed(0)
    model = CASES[case]().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not name.endswith(("A_log", "recurrent_param")):
                p.add_(0.2 * torch.randn_like(p))
    return model.to(dtype)


def saved(case: str, folder: Path, dtype: torch.dtype = torch.float32, **options):
    """A random checkpoint in a folder; read back, in float32."""
    made(case, dtype).save_pretrained(folder, **options)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.inference_mode()
def greedy(model, prompt: torch.Tensor, count: int) -> torch.Tensor:
    """The likeliest tokens after a prompt (B, T), by the recurrent step."""
    logits, state = model(prompt)
    logits, found = logits[:, -1], []
    for _ in range(count):
        found.append(logits.argmax(-1))
        logits, state = model.step(found[-1], state)
    return torch.stack(found, 1)


@each_case
@torch.inference_mode()
def test_logits_and_texts_are_those_of_transformers(case, tmp_path):
    theirs = saved(case, tmp_path / "hub")
    import_folder(tmp_path / "hub", tmp_path / "run")
    ours = load(tmp_path / "run")
    assert relative(ours(PROMPT)[0], theirs(PROMPT, use_cache=False).logits) < ROUNDING
    wanted = theirs.generate(PROMPT, max_new_tokens=200, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(greedy(ours, PROMPT, 200), wanted[:, PROMPT.shape[1] :])


@pytest.mark.parametrize("case", ["mamba", "falcon_mamba"])
@torch.inference_mode()
def test_a_batch_that_they_pad_on_the_left_continues_alike(case, tmp_path):
    """Their RecurrentGemma, and their Mamba with a bias of in_proj, take the padding for text."""
    theirs = saved(case, tmp_path / "hub")
    import_folder(tmp_path / "hub", tmp_path / "run")
    ours, short = load(tmp_path / "run"), 9
    mask = torch.ones_like(PROMPT)
    mask[1, :-short] = 0
    options = {"max_new_tokens": 50, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    wanted = theirs.generate(PROMPT, attention_mask=mask, **options)[:, PROMPT.shape[1] :]
    assert torch.equal(greedy(ours, PROMPT[:1], 50), wanted[:1])
    assert torch.equal(greedy(ours, PROMPT[1:, -short:], 50), wanted[1:])


@each_case
@torch.inference_mode()
def test_an_export_is_read_by_transformers_and_imports_as_the_same_run(case, tmp_path):
    theirs = saved(case, tmp_path / "hub")
    import_folder(tmp_path / "hub", tmp_path / "run")
    (said,) = export_run(tmp_path / "run", tmp_path / "back", "transformers")
    assert type(theirs).__name__ in said
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    assert torch.equal(read(PROMPT, use_cache=False).logits, theirs(PROMPT, use_cache=False).logits)
    before, after = (json.loads((tmp_path / at / "config.json").read_text()) for at in ("hub", "back"))
    assert {key: after[key] for key in before} == before
    import_folder(tmp_path / "back", tmp_path / "again")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "again"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    models = [Run(tmp_path / name).config.model for name in ("run", "again")]
    assert models[0] == models[1]


@each_case
@torch.inference_mode()
def test_bf16_in_shards_is_taken_whole(case, tmp_path):
    theirs = saved(case, tmp_path / "hub", torch.bfloat16, max_shard_size="20KB")
    assert len(list((tmp_path / "hub").glob("*.safetensors"))) > 1
    import_folder(tmp_path / "hub", tmp_path / "run")
    ours = load(tmp_path / "run")
    assert relative(ours(PROMPT)[0], theirs(PROMPT, use_cache=False).logits) < ROUNDING
    kept = load_file(tmp_path / "run" / "model.safetensors")
    assert kept["encoder.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("norm", ["rms", "layer"])
@torch.inference_mode()
def test_names_of_the_authors_of_mamba(norm, tmp_path):
    """Their folder: a .bin, no model_type, `embedding`, and the number of tokens without the padding."""
    theirs = made("mamba")
    weights = {name.replace("embeddings", "embedding"): p for name, p in theirs.state_dict().items()}
    if norm == "layer":
        for name in [name for name in weights if "norm" in name]:
            weights[name.replace("weight", "bias")] = torch.randn(24)
    values = {"d_model": 24, "n_layer": 3, "vocab_size": TOKENS - 3, "ssm_cfg": {"d_state": 5}}
    values |= {"rms_norm": norm == "rms", "pad_vocab_size_multiple": 4}
    folder(tmp_path / "hub", values)
    torch.save(weights, tmp_path / "hub" / "pytorch_model.bin")
    import_folder(tmp_path / "hub", tmp_path / "run")
    ours = load(tmp_path / "run")
    if norm == "rms":
        assert relative(ours(PROMPT)[0], theirs(PROMPT, use_cache=False).logits) < ROUNDING
        return
    shifts = [value for name, value in ours.named_parameters() if name.endswith("norm.bias")]
    assert len(shifts) == 4
    assert all(shift.abs().max() > 0 for shift in shifts)


@torch.inference_mode()
def test_mamba_2_of_its_authors(tmp_path):
    theirs = made("mamba2")
    weights = {name.replace("embeddings", "embedding"): p for name, p in theirs.state_dict().items()}
    block = {"layer": "Mamba2", "d_state": 5, "headdim": 8, "ngroups": 2, "bias": True}
    values = {"d_model": 24, "n_layer": 3, "vocab_size": TOKENS, "pad_vocab_size_multiple": 4}
    folder(tmp_path / "hub", {**values, "ssm_cfg": block, "tie_embeddings": False}, weights)
    import_folder(tmp_path / "hub", tmp_path / "run")
    assert relative(load(tmp_path / "run")(PROMPT)[0], theirs(PROMPT, use_cache=False).logits) < ROUNDING


def test_a_mamba_2_with_two_norms_is_no_model_of_transformers(lrnnx, tmp_path):
    options = ("model.layer.norm_eps=0.01", "model.layer.d_state=4", "model.d_model=8")
    run = untrained(tmp_path / "run", "text_mamba2_mini", *options)
    lrnnx("export", run, "--format", "transformers", "-o", tmp_path / "hub").refuses("has one norm_eps")


def folder(path: Path, values: dict, weights: dict | None = None) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(values))
    if weights is not None:
        save_file(weights, path / "model.safetensors")
    return path


def test_what_is_wrong_in_a_folder_is_told_in_one_line(lrnnx, tmp_path):
    theirs = made("mamba_untied")
    values, weights = theirs.config.to_dict(), {k: v.contiguous() for k, v in theirs.state_dict().items()}
    name = "backbone.layers.1.mixer.A_log"
    wrong = {
        "missing": (values, {k: v for k, v in weights.items() if k != name}, f"'{name}' is missing"),
        "shape": (values, weights | {name: torch.zeros(48, 6)}, "(48, 6); expected (48, 5)"),
        "type": (values, weights | {name: torch.zeros(48, 5, dtype=torch.int64)}, "expected floating point"),
        "more": (values, weights | {"backbone.extra": torch.zeros(1)}, "no use for 'backbone.extra'"),
        "tied": ({**values, "tie_word_embeddings": True}, weights, "'lm_head.weight' is not"),
        "kind": ({**values, "model_type": "llama"}, weights, "no layout for model_type 'llama'"),
        "act": ({**values, "hidden_act": "gelu"}, weights, "hidden_act is 'gelu'"),
        "number": ({**values, "hidden_size": "24"}, weights, "hidden_size: expected a positive integer"),
        "width": ({**values, "intermediate_size": 50}, weights, "expected a multiple of 24"),
        "deep": ({**values, "num_hidden_layers": 4}, weights, "'backbone.layers.3"),
        "none": (values, None, "no weights in it"),
    }
    second = Mamba2Config(**MAMBA2).to_dict()
    wrong |= {
        "limit": ({**second, "time_step_limit": [0.0, 0.1]}, weights, "time_step_limit is [0.0, 0.1]"),
        "heads": ({**second, "num_heads": 5}, weights, "num_heads: expected 6 of 8 channels, not 5"),
    }
    for case, (given, tensors, said) in wrong.items():
        folder(tmp_path / case, given, tensors)
        lrnnx("import", tmp_path / case, "-o", tmp_path / "run").refuses(said)
        assert not (tmp_path / "run").exists()
    lrnnx("import", tmp_path / "nowhere", "-o", tmp_path / "run").refuses("no such folder")
    bad = folder(tmp_path / "pickle", values)
    (bad / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Path("/")}))
    lrnnx("import", bad, "-o", tmp_path / "run").refuses("a pickle of more than tensors")
    index = folder(tmp_path / "index", values) / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: "../shape/model.safetensors"}}))
    lrnnx("import", index.parent, "-o", tmp_path / "run").refuses("expected a file of this folder")
    index.write_text(json.dumps({"weight_map": {name: "gone.safetensors"}}))
    lrnnx("import", index.parent, "-o", tmp_path / "run").refuses("gone.safetensors")
    shutil.copytree(tmp_path / "none", tmp_path / "whole")
    save_file(weights, tmp_path / "whole" / "model.safetensors")
    lrnnx("import", tmp_path / "whole", "-o", tmp_path / "run").done()
    lrnnx("import", tmp_path / "whole", "-o", tmp_path / "run").refuses("is there already")
