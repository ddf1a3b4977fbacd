"""`lrnnx import --from`: layers of every source begin a training as they are in the source's files."""

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from lrnnx_app import recipe
from lrnnx_app.errors import DataError
from lrnnx_app.interop import SOURCES, load
from lrnnx_app.published.layers import import_layers
from lrnnx_app.runs.run import build
from lrnnx_app.train import begin
from tests.helpers import relative
from tests.interop.test_interop_names import NAMES

RNG = np.random.default_rng(0)
WHOLE = ("l_kernel",)


def saved(source: str, path: Path, *places: str) -> list[dict[str, np.ndarray]]:
    """A file with a layer at each place; the layers' parameters by the names of the source."""
    layers = []
    for _ in places:
        layer = {name: RNG.uniform(-0.9, -0.1, shape) for name, shape in NAMES[source].items()}
        layers.append(layer | {name: np.array(16) for name in layer if name.endswith(WHOLE)})
    content = {
        place + name: value
        for place, layer in zip(places, layers, strict=True)
        for name, value in layer.items()
    }
    content |= {"head.weight": np.zeros(3)} if places[0] else {}
    if path.suffix == ".npz":
        np.savez(path, **content)
    elif path.suffix == ".safetensors":
        save_file({name: np.ascontiguousarray(value) for name, value in content.items()}, path)
    else:
        torch.save({"state_dict": {name: torch.tensor(value) for name, value in content.items()}}, path)
    return layers


@pytest.mark.parametrize("source", [name for name in SOURCES if name not in ("attenuate", "centaurus")])
def test_a_training_begins_with_the_layers_of_a_file(source: str, lrnnx, tmp_path: Path) -> None:
    """With the settings that the last line names; where they are of one width, in and out."""
    file = tmp_path / f"theirs{('.npz', '.safetensors', '.ckpt')[len(source) % 3]}"
    layers = saved(source, file, "net/layers_2/seq/", "net/layers_10/seq/")
    done = lrnnx("import", file, "--from", source, "-o", tmp_path / "layers.safetensors").done()
    assert "block 1: " in done.out
    assert "net.layers_10.seq" in done.out
    words = shlex.split(done.out.splitlines()[-1])[3:]
    assert words[0] == "RECIPE"
    started = [word for word in words[1:] if not word.startswith("init_from")]
    config = recipe.typed(recipe.load("digits_lru", [*started, "model.bidirectional=false"]))
    model = build(config)[1].model.double()
    taken = begin.take(model, str(tmp_path / "layers.safetensors"))
    assert not taken.left
    assert not taken.reshaped
    assert not any(".layer." in name for name in taken.new)
    for block, params in zip(model.blocks, layers, strict=True):
        own = load(source, params)
        x = torch.randn(2, 12, own.d_model, dtype=torch.float64)
        assert relative(block.layer(x)[0], own(x)[0]) < 1e-12


@pytest.mark.parametrize("source", ["attenuate", "centaurus"])
def test_a_layer_of_another_width_out_than_in_is_told(source: str, tmp_path: Path) -> None:
    saved(source, tmp_path / "theirs.npz", "")
    said = import_layers(tmp_path / "theirs.npz", source, (), tmp_path / "layers.safetensors")
    assert said[0] == "block 0: centaurus, width 3, from theirs.npz"
    assert "model.layer.d_output=5" in said[-1]


def test_options_of_a_source_follow_the_file(tmp_path: Path) -> None:
    saved("s5", tmp_path / "theirs.npz", "")
    options = ("discretization=bilinear", "conj_sym=false", "step_rescale=0.5")
    said = import_layers(tmp_path / "theirs.npz", "s5", options, tmp_path / "layers.safetensors")
    for word in ("model.layer.rule=bilinear", "model.layer.conj_sym=false", "model.layer.step_rescale=0.5"):
        assert word in said[-1]
    with pytest.raises(DataError, match="unknown option 'rule'"):
        import_layers(tmp_path / "theirs.npz", "s5", ["rule=zoh"], tmp_path / "other.safetensors")


def test_what_is_no_layer_of_the_source_is_one_line(lrnnx, tmp_path: Path) -> None:
    file, out = tmp_path / "theirs.npz", tmp_path / "layers.safetensors"
    saved("s5", file, "a.")
    lrnnx("import", file, "--from", "s4", "-o", out).refuses("s4 has 'layer.kernel.inv_dt' in every layer")
    lrnnx("import", file, "--from", "s6", "-o", out).refuses("unknown source 's6'")
    lrnnx("import", tmp_path / "no.npz", "--from", "s5", "-o", out).refuses("no.npz: no such file")
    lrnnx("import", file, "--from", "s5", "-o", tmp_path / "x").refuses("ends with .safetensors")
    lrnnx("import", file, "bidirectional=true", "-o", out).refuses("expected --from with them")
    lrnnx("import", file, "bidirectional", "--from", "s5", "-o", out).refuses("expected key=value")
    lrnnx("import", file, "bidirectional=true", "--from", "s5", "-o", out).refuses("in a: s5: ")
    file.write_bytes(file.read_bytes()[:-200])
    lrnnx("import", file, "--from", "s5", "-o", out).refuses("theirs.npz: not readable as arrays")
    np.savez(file, **{"a.Lambda_re": np.array([{}], dtype=object)})
    lrnnx("import", file, "--from", "s5", "-o", out).refuses("theirs.npz: not readable as arrays")
    assert not out.exists()
