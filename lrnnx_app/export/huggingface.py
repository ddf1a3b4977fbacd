"""A folder for the Hugging Face hub: config.json, model.safetensors, and a model card."""

import html
import json
import re
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from lrnnx_app import recipe as recipes
from lrnnx_app.data.tokenizer import FILE
from lrnnx_app.disk.atomic import fresh
from lrnnx_app.disk.overrides import dotlist
from lrnnx_app.errors import StreamError, needs
from lrnnx_app.export._chunk import CHUNKS
from lrnnx_app.export._output import Options, accept, refuse
from lrnnx_app.models._base import Model
from lrnnx_app.runs.run import Run, build_task
from lrnnx_app.spec import DataSpec

try:
    from huggingface_hub import PyTorchModelHubMixin
except ImportError as missing:
    raise needs("huggingface", missing) from missing

ENDING = None  # a folder
MARKS = r"[\\`*\[\]{}#|~$]|(?<![^\W_])_|_(?![^\W_])"  # characters with a meaning in Markdown
CARD_STEPS = 1000  # steps in the card's example, for a model that takes whole sequences
CARD = """---
license: mit
library_name: lrnnx
tags: [{tags}]
---

# {name}

{about}

A {layers} {model} of {parameters:,} parameters for the task `{task}`, trained with lrnnx. {latency}

| metric | value |
| --- | --- |
{metrics}

## Use

```python
import torch
from lrnnx_app.export.huggingface import HubModel
{use}
```

## Settings

{fence}yaml
{recipe}{fence}

## Licence

The weights are under the MIT licence. Data that they were trained on may ask for more: see their source.
"""

STREAM = """from lrnnx_app.streaming.session import StreamingSession

model = HubModel.from_pretrained("path or name of this folder")
session = StreamingSession(model.model, batch=1)
y = session.push({example})  # chunk after chunk; the session keeps the state"""
WHOLE = """
model = HubModel.from_pretrained("path or name of this folder").eval()
y, _ = model({example})  # a whole sequence"""


class HubModel(nn.Module, PyTorchModelHubMixin):
    """A trained model with `from_pretrained`, `save_pretrained` and `push_to_hub`.

    Args:
        recipe: the resolved recipe as YAML.
        spec: description of input and output, as `DataSpec.read` takes it.
    """

    def __init__(self, recipe: str, spec: dict[str, Any]) -> None:
        super().__init__()
        given = recipes.tree(recipes.mapping(recipe, "config.json"), "config.json")
        config = recipes.resolve(given, dotlist(()), "config.json")
        self.model = build_task(recipes.typed(config), DataSpec.read(spec)).model

    def forward(self, x: Tensor, state: Any = None, **options: Any) -> tuple[Tensor, Any]:
        """Arguments and results of the model's own forward."""
        return self.model(x, state, **options)


def export(run: Run, path: Path, options: Options) -> list[str]:
    """Write the folder; returns lines that describe it.

    Raises:
        RunError: the run has no checkpoint, or the folder cannot be written.
        UserError: an option is for another format.
    """
    refuse(options)
    task = run.task()
    recipe = OmegaConf.to_yaml(run.config)
    # Through JSON, as it will be read.
    made = HubModel(recipe=recipe, spec=json.loads(json.dumps(asdict(task.spec)))).eval()
    made.model.load_state_dict(task.model.state_dict())
    with fresh(path, folder=True) as part:
        made.save_pretrained(part)
        if tokenizer := run.tokenizer():
            (part / FILE).write_text(tokenizer, encoding="utf-8")
        (part / "README.md").write_text(card(run, made, recipe), encoding="utf-8")
        with redirect_stdout(None):  # the hub's library prints that it loads a file
            loaded = HubModel.from_pretrained(str(part)).eval()
        found = _difference(made, loaded, task.spec)
        accept(path, found, 0.0)
    return [f"{path}: read back, its output equals the run's"]


@torch.inference_mode()
def outputs(path: Path, x: Tensor) -> Tensor:
    """The outputs of the written model for a signal x (1, T, …)."""
    return HubModel.from_pretrained(str(path), local_files_only=True).eval()(x)[0]


def card(run: Run, made: HubModel, recipe: str) -> str:
    """The model card."""
    summary, model, spec = run.summary(), made.model, made.model.spec
    config = run.recipe.model
    layers = {node.name: None for _, node in recipes.layer_nodes(config.layer)}
    streams = _streams(model)
    milliseconds = 1e3 * model.lookahead / spec.sample_rate if spec.sample_rate else 0
    ahead = f" ({milliseconds:.1f} ms)." if milliseconds else "."
    if streams:
        latency = f"It looks {model.lookahead} samples ahead" + ahead
        latency += f" Its output is later than its input by {model.delay} samples." if model.delay else ""
    else:
        latency = "It runs in both directions, over whole sequences."
    time = model.hop if streams else CARD_STEPS
    shape = f"1, {time}" if spec.tokens else f"1, {time}, {spec.d_input}"
    example = f"torch.randint({spec.d_input}, ({shape}))" if spec.tokens else f"torch.randn({shape})"
    rows = (
        f"| {escaped(key)} | {value:.4g} |"
        for key, value in summary.get("metrics", {}).items()
        if "test/" in key
    )
    return CARD.format(
        name=escaped(run.recipe.name or run.path.name),
        about=escaped(run.recipe.about),
        layers=" and ".join(layers),
        model=config.name,
        parameters=sum(p.numel() for p in model.parameters()),
        task=run.recipe.task.name,
        latency=latency,
        metrics="\n".join(rows),
        tags=", ".join(("linear-rnn", "state-space-model", *(["streaming"] if streams else []))),
        use=(STREAM if streams else WHOLE).format(example=example),
        recipe=recipe,
        fence="`" * max(3, 1 + max(map(len, re.findall("`+", recipe)), default=0)),
    )


def escaped(text: str) -> str:
    """A text as one line of Markdown that shows it unchanged, without markup, HTML or table cells."""
    line = " ".join(text.encode(errors="replace").decode().split())
    return html.escape(re.sub(MARKS, r"\\\g<0>", line), quote=False)


def _streams(model: Model) -> bool:
    try:
        model.init_state(1)
    except StreamError:
        return False
    return True


@torch.no_grad()
def _difference(made: HubModel, loaded: HubModel, spec: DataSpec) -> float:
    generator, time = torch.Generator().manual_seed(0), made.model.hop * CHUNKS
    if spec.tokens:
        x = torch.randint(spec.d_input, (1, time), generator=generator)
    else:
        x = torch.randn(1, time, spec.d_input, generator=generator)
    return float((made(x)[0] - loaded(x)[0]).abs().max())
