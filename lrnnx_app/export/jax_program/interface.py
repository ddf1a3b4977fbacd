"""What a user of a written program calls. HOP and STATE stand for the model's."""

# ruff: noqa


def load(path=None):
    """The parameters, a nested dictionary of arrays, from a file of safetensors; None is the one beside this."""
    flat = load_file(path or Path(__file__).with_name("model.safetensors"))
    params = {}
    for name, value in flat.items():
        *words, last = name.split(".")
        inner = params
        for word in words:
            inner = inner.setdefault(word, {})
        inner[last] = value
    return params


def save(params, path=None):
    """Write the parameters with what `lrnnx import` needs, in place of the file beside this if path is None."""
    beside = Path(__file__).with_name("model.safetensors")
    with safe_open(beside, "np") as file:
        about = file.metadata()
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    save_file({".".join(key.key for key in keys): value for keys, value in leaves}, path or beside, about)


def init_state(batch):
    """The state before the first sample, a pytree of arrays (batch, …)."""
    return STATE


def forward(params, x, state=None, dt=None, lengths=None):
    """Run sequences; jit, grad and vmap apply.

    Args:
        params: of `load`.
        x: (B, T, d_input), or tokens (B, T), T ≥ 1.
        state: before x, of `init_state` or of another call; None is that before the first sample.
        dt: (B, T) time since the sample before; None where samples are evenly spaced.
        lengths: (B,) valid steps of right-padded rows; None is T. Later steps hold the state.

    Returns:
        y, and the state after each row's last valid step.
    """
    state = init_state(x.shape[0]) if state is None else state
    lengths = np.full(x.shape[0], x.shape[1]) if lengths is None else lengths
    RUN


def step(params, x, state, dt=None):
    """One hop of a stream: x (B, HOP, d_input), dt (B, HOP) or None; returns its y, and the state."""
    return forward(params, x, state, dt)
