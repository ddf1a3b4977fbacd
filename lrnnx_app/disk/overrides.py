"""Overrides of a recipe, `key.sub=value` each, as nested keys."""

import re
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lrnnx_app.disk import plain_yaml
from lrnnx_app.errors import RecipeError, one_line

OPENING = ("[", "{", "'", '"')  # first letters of a list, a mapping and a quoted text
NAMED = re.compile(r"^(task|model|data|model\.layer(?:\[\d+\])?)=(\w+)$")  # model.layer=s5 chooses by name


def dotlist(overrides: Sequence[str]) -> DictConfig:
    """The overrides as nested keys.

    Raises:
        RecipeError: one is not `key.sub=value`.
    """
    content = OmegaConf.create()
    for item in overrides:
        key, equals, _ = item.partition("=")
        if not equals or not key.strip():
            raise RecipeError(f"override '{item}': expected key.sub=value, such as trainer.max_steps=100")
        key, _, text = NAMED.sub(r"\1.name=\2", item).partition("=")
        try:
            plain_yaml.check(key)
            OmegaConf.update(content, key, _value(text), force_add=True)
        except (OmegaConfBaseException, LookupError, TypeError, ValueError) as error:
            raise RecipeError(f"override '{item}': {one_line(error)}; expected key.sub=value") from error
    return content


def _value(text: str) -> Any:
    """The value of an override. Lists, mappings and quoted texts are read as YAML, others as they are.

    Raises:
        NotPlainError: the text contains an interpolation.
    """
    plain_yaml.check(text)
    if text == "null":
        return None
    try:
        return plain_yaml.read(text) if text.startswith(OPENING) else text
    except plain_yaml.NotPlainError:
        return text  # a folder's name may open with a bracket too
