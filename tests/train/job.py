"""Run by torchrun in every process: trains what a JSON list names, [recipe, overrides, folder] each.

A folder that is there already is resumed.
"""

import json
import sys
from pathlib import Path

from lrnnx_app import recipe
from lrnnx_app.train import fit

if __name__ == "__main__":
    for name, overrides, folder in json.loads(sys.argv[1]):
        place = Path(folder)
        again = (place / "recipe.yaml").is_file() and (place / "checkpoints").is_dir()
        fit.train(recipe.load(name, overrides), None if again else place, place if again else None)
