"""Train, stream and export linear recurrent neural networks.

    from lrnnx_app import Session, load

    session = Session(load("runs/denoise_lru/<time>"), batch=2)
    y = session.push(x)  # x (2, T, 1), one chunk of two live streams

Each name below is imported when it is first used, so that `import lrnnx_app` costs nothing. A mistake of the
caller raises `UserError`, whose text is one line.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers read
    from lrnnx_app.errors import UserError as UserError
    from lrnnx_app.export import export_run as export_run
    from lrnnx_app.interop import load as convert  # noqa: F401 (by another name)
    from lrnnx_app.layers._build import layer as layer
    from lrnnx_app.models._build import model as model
    from lrnnx_app.recipe import load_recipe as load_recipe
    from lrnnx_app.registry import LAYERS as LAYERS
    from lrnnx_app.runs.run import Run as Run
    from lrnnx_app.runs.run import load as load
    from lrnnx_app.streaming.session import StreamingSession as Session  # noqa: F401 (by another name)
    from lrnnx_app.train.fit import evaluate as evaluate
    from lrnnx_app.train.fit import train_recipe as train_recipe

__version__ = "0.1.0"
_HOMES = {  # name -> where it is defined
    "LAYERS": "registry:LAYERS",
    "Run": "runs.run:Run",
    "Session": "streaming.session:StreamingSession",
    "UserError": "errors:UserError",
    "convert": "interop:load",
    "evaluate": "train.fit:evaluate",
    "export_run": "export:export_run",
    "layer": "layers._build:layer",
    "load": "runs.run:load",
    "load_recipe": "recipe:load_recipe",
    "model": "models._build:model",
    "train_recipe": "train.fit:train_recipe",
}
__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]  (made when used)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home, _, attribute = _HOMES[name].partition(":")
    globals()[name] = found = getattr(import_module(f"{__name__}.{home}"), attribute)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
