"""Runs programs for JAX where there is neither torch nor lrnnx: python jax_compared.py FOLDER …

A folder has model.py, and files given*.npz with inputs and what torch made of them. Prints, as JSON, the
relative difference of each output and gradient.
"""

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

sys.modules |= dict.fromkeys(("torch", "lrnnx_app"))  # an import of them fails

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402


def leaves(tree):
    """The arrays of a state, in the order of the keys, which is torch's."""
    if isinstance(tree, dict):
        tree = tuple(tree.values())
    if isinstance(tree, tuple):
        return [leaf for part in tree for leaf in leaves(part)]
    return [] if tree is None else [tree]


def filled(tree, arrays):
    if isinstance(tree, dict):
        return {key: filled(part, arrays) for key, part in tree.items()}
    if isinstance(tree, tuple):
        return tuple(filled(part, arrays) for part in tree)
    return None if tree is None else next(arrays)


def compared(folder):
    spec = spec_from_file_location("program", folder / "model.py")
    program = module_from_spec(spec)
    spec.loader.exec_module(program)
    found = {}
    for path in sorted(folder.glob("given*.npz")):
        with np.load(path) as file:
            given = {key: jnp.asarray(value) for key, value in file.items()}
        found |= {f"{path.stem} {key}": error for key, error in errors(program, given).items()}
    return found


def errors(program, given):
    x, dt, lengths = given["x"], given.get("dt"), given.get("lengths")
    state = program.init_state(len(x))
    before = [given[f"state.{k}"] for k in range(len(leaves(state)))]
    weights = [given[f"weight.{k}"] for k in range(sum(key.startswith("weight.") for key in given))]

    def whole(leaf):
        return not jnp.issubdtype(leaf.dtype, jnp.floating)

    def loss(leaf):
        rest = iter(leaf["state"])
        start = filled(state, iter([z if whole(z) else next(rest) for z in before]))
        y, after = program.forward(leaf["params"], leaf.get("x", x), start, leaf.get("dt"), lengths)
        found = [y, *(z for z in leaves(after) if not whole(z))]
        if lengths is not None and y.ndim == 3:
            inside = jnp.arange(y.shape[1]) < lengths[:, None]
            found[0] = jnp.where(inside[..., None], y, 0)
        return sum((z * w).sum() for z, w in zip(found, weights, strict=True)), found

    params = program.load()
    if x.dtype == jnp.float64:
        params = jax.tree.map(lambda p: p.astype(x.dtype), params)
    leaf = {"params": params, "state": [z for z in before if not whole(z)]}
    leaf |= {} if whole(x) else {"x": x}
    leaf |= {} if dt is None else {"dt": dt}
    (_, found), slopes = jax.jit(jax.value_and_grad(loss, has_aux=True))(leaf)
    slopes |= {f"state.{k}": slope for k, slope in enumerate(slopes.pop("state"))}
    for keys, slope in jax.tree_util.tree_flatten_with_path(slopes.pop("params"))[0]:
        slopes["params." + ".".join(key.key for key in keys)] = slope
    values = {f"out.{k}": z for k, z in enumerate(found)} | {f"slope.{k}": z for k, z in slopes.items()}
    wanted = {key: value for key, value in given.items() if key.startswith(("out.", "slope."))}
    assert wanted.keys() == values.keys(), wanted.keys() ^ values.keys()
    return {key: relative(values[key], value) for key, value in wanted.items()}


def relative(value, expected):
    value, expected = (np.asarray(z, np.float64) for z in (value, expected))
    return float(np.linalg.norm(value - expected) / max(np.linalg.norm(expected), 1e-6))


print(json.dumps({name: compared(Path(name)) for name in sys.argv[1:]}))
