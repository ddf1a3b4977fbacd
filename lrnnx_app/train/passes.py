"""Training passes that cost less: compiled, replayed as CUDA graphs, or run twice so that less is kept."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from lrnnx_app.errors import RecipeError
from lrnnx_app.layers._relay import twice
from lrnnx_app.ops.capture import CaptureError, capture_passes
from lrnnx_app.recipe import TrainerConfig
from lrnnx_app.train.progress import say

NARROW = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class Passes(Callback):
    """While training, runs a model as `trainer.compile`, `trainer.graph` and `trainer.recompute` ask for.

    No graph is used on a CPU or on several GPUs.
    """

    def __init__(self, model: nn.Module, settings: TrainerConfig) -> None:
        self.model, self.settings = model, settings
        self._hooks: list[RemovableHandle] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        alone = trainer.world_size == 1 and trainer.strategy.root_device.type == "cuda"
        graph = self.settings.graph and alone
        if self.settings.recompute:
            recompute(self.model, graph)
        if graph or self.settings.compile:
            narrow = NARROW.get(self.settings.precision)
            self.model.forward = of_one_shape(self.model, self.settings.compile, graph, narrow)
        if graph and trainer.accumulate_grad_batches > 1:
            self._hooks = own_gradients(self.model)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        vars(self.model).pop("forward", None)  # restores the method of the class
        for hook in self._hooks:
            hook.remove()
        for block in blocks(self.model):
            block._compiled_call_impl = None


class Outputs(nn.Module):
    """A model that returns y, or what y is read from, without its state.

    Only the forward pass runs under autocast to `dtype`, as it does without a graph. A backward pass under
    autocast would round numbers that the forward pass kept in float32.
    """

    def __init__(
        self, model: nn.Module, run: Callable[..., Any], dtype: torch.dtype | None, **how: bool
    ) -> None:
        super().__init__()
        self.model, self.run, self.dtype, self.how = model, run, dtype, how

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cuda", self.dtype, enabled=self.dtype is not None, cache_enabled=False):
            return self.run(x, **self.how)[0]


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The modules that a model repeats, so that one compiled form serves them all."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            yield from module


def recompute(model: nn.Module, graph: bool = False) -> None:
    """Let each block keep its inputs alone for the backward pass, which then runs the block again.

    Raises:
        RecipeError: a graph is wanted, and a block draws numbers, which no graph can draw again.
    """
    draws = any(isinstance(module, nn.Dropout) and module.p for module in model.modules())
    if draws and graph:
        raise RecipeError("trainer.recompute: a graph cannot draw again; expected model.dropout or graph off")
    for block in blocks(model):
        block._compiled_call_impl = partial(_twice, block._call_impl, draws)


def _twice(run: Callable[..., Any], draws: bool, *inputs: Any, **options: Any) -> Any:
    if not torch.is_grad_enabled():
        return run(*inputs, **options)
    how = {"use_reentrant": False, "preserve_rng_state": draws, "context_fn": twice}
    return checkpoint(run, *inputs, **how, **options)


def own_gradients(model: nn.Module) -> list[RemovableHandle]:
    """Let gradients that are added up be no memory of a graph, whose next replay overwrites it."""
    return [p.register_hook(torch.clone) for p in model.parameters() if p.requires_grad]


def of_one_shape(
    model: nn.Module, compiled: bool, graph: bool, dtype: torch.dtype | None
) -> Callable[..., Any]:
    """The forward method of `model`, fast for inputs of the shape that training gives it first.

    These have no padding, elapsed times, packed sequences or state. Others run as they are written, since
    compiling for each new shape would take longer. A replayed graph returns None for the state. If a capture
    fails, one line says so and training goes on.

    Args:
        compiled: whether to compile the model's blocks.
        graph: whether to capture the passes for that shape as CUDA graphs.
        dtype: of autocast; None for no autocast.

    The method raises RecipeError if the blocks cannot be compiled.
    """
    run = others = model.forward
    if compiled:
        others = torch.compiler.set_stance("force_eager")(run)
        for block in blocks(model):
            block.compile(dynamic=False)
    shape: torch.Size | None = None
    replay: Callable[[Tensor], Tensor] | None = None

    def forward(x: Tensor, state: Any = None, **options: Any) -> tuple[Tensor, Any]:
        nonlocal shape, replay
        how = {"read": options.pop("read")} if "read" in options else {}  # the same in every step
        plain = state is None and all(option is None for option in options.values())
        if not (plain and model.training and torch.is_grad_enabled() and shape in (None, x.shape)):
            return others(x, state, **options, **how)
        if shape is None:
            shape = x.shape  # one is enough
            replay = _captured(Outputs(model, run, dtype, **how), x) if graph else None
        if replay is not None:
            return replay(x), None
        try:
            return run(x, **how)
        except BackendCompilerFailed as error:
            why = str(error.inner_exception).strip().partition("\n")[0]
            raise RecipeError(f"trainer.compile: torch.compile failed here; leave it out ({why})") from error

    return forward


def _captured(module: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor] | None:
    try:
        with torch.autocast("cuda", enabled=False):  # the module has its own
            return capture_passes(module, x)
    except CaptureError as error:
        say(f"training without a CUDA graph: {error}")
        return None
