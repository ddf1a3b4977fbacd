"""A folder that `AutoModelForCausalLM` of transformers reads, and whatever else takes such folders."""

import json
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lrnnx_app.data import tokenizer
from lrnnx_app.disk.atomic import fresh
from lrnnx_app.errors import UserError, needs
from lrnnx_app.export._output import Options, accept, refuse
from lrnnx_app.models.language import Language
from lrnnx_app.published import _folder
from lrnnx_app.published.imports import KINDS
from lrnnx_app.runs.run import Run

ENDING = None  # a folder
STEPS = 100  # tokens on which the written model is compared
ROUNDING = 1e-4  # of the largest logit, in float32 by other operations; wrong weights differ by much more


def export(run: Run, path: Path, options: Options) -> list[str]:
    """Write the folder; returns lines that describe it.

    Raises:
        RunError: the run has no checkpoint, or the folder cannot be written.
        UserError: an option is for another format, or transformers has no such model.
    """
    refuse(options)
    model = run.task().model
    if not isinstance(model, Language) or not model.spec.tokens:
        raise UserError(f"{run.path}: is no language model; this format takes model.name=language on tokens")
    kind, layout = chosen(model)
    words = run.tokenizer()
    with fresh(path, folder=True) as part:
        tensors = layout.LAYOUT.given(model, model.state_dict())
        save_file(tensors, part / _folder.WHOLE, {"format": "pt"})
        (part / _folder.CONFIG).write_text(json.dumps(config(run, model, kind, layout), indent=2))
        if words:
            (part / tokenizer.FILE).write_text(words, encoding="utf-8")
        found = _difference(model, part)
        if found is not None:
            accept(path, found, ROUNDING)
    about = (
        "transformers is not installed, so it was not read back"
        if found is None
        else (f"read back by transformers, its logits differ by {found:.1e} of the largest")
    )
    return [f"{path}: {layout.LAYOUT.architecture}; {about}"]


def chosen(model: Language) -> tuple[str, ModuleType]:
    """The model_type and the layout that take a model.

    Raises:
        UserError: none does; says what the nearest one has.
    """
    refused = []
    for kind, layout in KINDS.items():
        try:
            layout.LAYOUT.check(model)
            return kind, layout
        except UserError as error:
            refused.append(error)
    own = {block.layer.config.name for block in model.blocks}
    near = (e for e, layout in zip(refused, KINDS.values(), strict=True) if own <= set(layout.LAYOUT.layers))
    raise next(near, UserError(f"transformers has no model of {' and '.join(sorted(own))}"))


def config(run: Run, model: Language, kind: str, layout: ModuleType) -> dict[str, Any]:
    """The content of config.json: what the layout says, and the rest as it was imported."""
    imported = run.path / _folder.CONFIG
    before = _folder.config(run.path) if imported.is_file() else {}
    before = before if before.get("model_type") == kind else {}
    data = run.recipe.data
    end = tokenizer.opened(data.tokenizer, data.end).end if hasattr(data, "tokenizer") else None
    ends = {} if end is None else {"eos_token_id": end, "pad_token_id": end, "bos_token_id": end}
    return {
        **ends,
        **before,
        **layout.config(model),
        "model_type": kind,
        "architectures": [layout.LAYOUT.architecture],
        "vocab_size": len(model.encoder.weight),
        "tie_word_embeddings": model.head is None,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }


@torch.inference_mode()
def outputs(path: Path, x: Tensor) -> Tensor:
    """The logits of the written model for tokens x (1, T).

    Raises:
        UserError: transformers is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise needs("transformers", error) from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    read = transformers.AutoModelForCausalLM.from_pretrained(path, local_files_only=True)
    return read.eval()(x, use_cache=False).logits


def _difference(model: Language, path: Path) -> float | None:
    """How far its logits are from the model's, as a share of the largest; None without transformers."""
    x = torch.randint(model.spec.d_input, (1, STEPS), generator=torch.Generator().manual_seed(0))
    if find_spec("transformers") is None:
        return None
    with torch.inference_mode():
        ours = model(x)[0]
        return float((outputs(path, x)[..., : model.spec.d_output] - ours).abs().max() / ours.abs().max())
