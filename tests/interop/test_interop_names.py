"""What interop takes and refuses: the names, sizes, parts and settings of every source."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lrnnx_app.errors import UserError
from lrnnx_app.interop import SOURCES, load
from tests.helpers import ROOT, relative
from tests.interop.test_interop import MODULES, given, s4_params, s4d_params

NAMES = {  # as each source saves them, with sizes that all differ where they may
    "attenuate": {"log_dt": (6,), "A": (6, 2), "B": (6, 3), "C": (5, 6)},
    "centaurus": {"log_dt": (5, 2), "A": (5, 3, 2, 2), "E": (5, 3, 2)},
    "event-ssm": {
        "Lambda_re": (4,),
        "Lambda_im": (4,),
        "B": (4, 3, 2),
        "C": (3, 4, 2),
        "D": (3,),
        "log_step": (4, 1),
    },
    "mamba": {
        "A_log": (6, 5),
        "D": (6,),
        "in_proj.weight": (12, 3),
        "conv1d.weight": (6, 1, 4),
        "conv1d.bias": (6,),
        "x_proj.weight": (11, 6),
        "dt_proj.weight": (6, 1),
        "dt_proj.bias": (6,),
        "out_proj.weight": (3, 6),
    },
    "minimal-lru": {
        "theta_log": (5,),
        "nu_log": (5,),
        "gamma_log": (5,),
        "B_re": (5, 3),
        "B_im": (5, 3),
        "C_re": (3, 5),
        "C_im": (3, 5),
        "D": (3,),
    },
    "recurrentgemma": {
        "linear_y.weight": (6, 5),
        "linear_y.bias": (6,),
        "linear_x.weight": (6, 5),
        "linear_x.bias": (6,),
        "linear_out.weight": (5, 6),
        "linear_out.bias": (5,),
        "conv_1d.weight": (6, 1, 4),
        "conv_1d.bias": (6,),
        "rg_lru.recurrent_param": (6,),
        "rg_lru.input_gate_weight": (2, 3, 3),
        "rg_lru.input_gate_bias": (2, 3),
        "rg_lru.recurrent_gate_weight": (2, 3, 3),
        "rg_lru.recurrent_gate_bias": (2, 3),
    },
    "s4": {
        "layer.D": (1, 6),
        "layer.kernel.C": (1, 6, 4, 2),
        "layer.kernel.inv_dt": (6, 1),
        "layer.kernel.B": (1, 3, 4, 2),
        "layer.kernel.A_real": (3, 4),
        "layer.kernel.A_imag": (3, 4),
        "layer.kernel.P": (1, 3, 4, 2),
        "layer.kernel.l_kernel": (),
        "output_linear.0.weight": (12, 6),
        "output_linear.0.bias": (12,),
    },
    "s4d": {
        "D": (3,),
        "kernel.C": (3, 4, 2),
        "kernel.log_dt": (3,),
        "kernel.log_A_real": (3, 4),
        "kernel.A_imag": (3, 4),
        "output_linear.0.weight": (6, 3, 1),
        "output_linear.0.bias": (6,),
    },
}
NAMES["falcon-mamba"], NAMES["s5"] = NAMES["mamba"], NAMES["event-ssm"]
# Sizes that no other parameter has.
FREE = {("attenuate", "B", 1), ("attenuate", "C", 0), ("recurrentgemma", "conv_1d.weight", 2)}
FREE |= {(source, "conv1d.weight", 2) for source in ("mamba", "falcon-mamba")}


def zeros(source):
    return {name: np.zeros(shape) for name, shape in NAMES[source].items()}


def test_names_are_recorded_of_every_source_and_the_docs_tell_it():
    assert NAMES.keys() == set(SOURCES)
    docs = (ROOT / "lrnnx_app" / "docs" / "python.md").read_text("utf-8")
    assert all(f"`{source}`" in docs for source in SOURCES)


@pytest.mark.parametrize("source", MODULES)
def test_the_names_are_those_of_the_module(source):
    assert MODULES[source]().state_dict().keys() == NAMES[source].keys()


@pytest.mark.parametrize("source", SOURCES)
def test_the_names_of_the_source_are_taken(source):
    layer = load(source, zeros(source))
    x = torch.zeros(1, 3, layer.d_model, dtype=torch.float64)
    assert layer(x)[0].shape[:2] == (1, 3)


@pytest.mark.parametrize("source", SOURCES)
def test_a_parameter_missing_or_unknown(source):
    params = zeros(source)
    with pytest.raises(UserError, match=f"{source}: no use for parameter 'zeta'"):
        load(source, params | {"zeta": np.zeros(3)})
    for name in params.keys() - {"conv1d.bias", "layer.kernel.P", "E"}:  # those tell an option
        with pytest.raises(UserError, match=f"{source}: parameter '{name}' is missing"):
            load(source, {other: value for other, value in params.items() if other != name})


@pytest.mark.parametrize("source", SOURCES)
def test_every_size_is_held_against_the_others(source):
    params = zeros(source)
    for name, value in params.items():
        with pytest.raises(UserError, match=f"{source}: '{name}' must be"):
            load(source, params | {name: value[None]})
        for axis in range(value.ndim):
            longer = np.concatenate((value, value.take([0], axis)), axis)
            if (source, name, axis) in FREE:
                assert load(source, params | {name: longer}).d_model
                continue
            with pytest.raises(UserError, match=rf"^{source}: [^\n]*$"):
                load(source, params | {name: longer})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros(3, complex), "'D' must be real numbers of floating point, not torch.complex128"),
        (torch.zeros(3, dtype=torch.int8), "'D' must be real numbers of floating point, not torch.int8"),
        (torch.zeros(3, device="meta"), "'D' must be real numbers of floating point, not meta"),
        ({"kernel": np.zeros(3)}, "'D' must be an array of numbers"),
    ],
)
def test_what_is_no_array_of_real_numbers(value, message):
    with pytest.raises(UserError, match=message):
        load("s5", zeros("s5") | {"D": value})


def test_a_size_that_differs_is_told_with_what_it_must_be():
    with pytest.raises(UserError, match=r"'output_linear.0.weight' must be \(2H=12, H=6\), not \(6, 6\)"):
        load("s4", zeros("s4") | {"output_linear.0.weight": np.zeros((6, 6))})
    with pytest.raises(UserError, match=r"_gate_weight' must be \(heads, w, w\), not \(2, 3, 4\)"):
        load("recurrentgemma", zeros("recurrentgemma") | {"rg_lru.input_gate_weight": np.zeros((2, 3, 4))})


def s4d_module():
    """The structure of the source's S4D, without its forward pass."""
    module, params = torch.nn.Module(), s4d_params()
    module.__class__ = type("S4D", (torch.nn.Module,), {})
    module.kernel, module.activation, module.dropout = torch.nn.Module(), torch.nn.GELU(), torch.nn.Identity()
    module.output_linear = torch.nn.Sequential(torch.nn.Conv1d(3, 6, 1), torch.nn.GLU(-2))
    module.register_parameter("D", torch.nn.Parameter(torch.from_numpy(params["D"])))
    for name in ("C", "log_dt", "log_A_real", "A_imag"):
        value = torch.nn.Parameter(torch.from_numpy(params[f"kernel.{name}"]))
        module.kernel.register_parameter(name, value)
    return module.double()


def s4_module(**settings):
    """The structure of the source's S4Block in mode diag, with settings of its kernel."""
    module, params = torch.nn.Module(), s4_params("diag")
    module.__class__ = type("S4Block", (torch.nn.Module,), {})
    module.layer, module.layer.kernel = torch.nn.Module(), torch.nn.Module()
    module.layer.activation, module.layer.drop, module.layer.drop_kernel = torch.nn.GELU(), *plain(2)
    module.layer.bidirectional = False
    module.mult_activation, module.drop = plain(2)
    module.output_linear = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.GLU(-1))
    module.layer.D = torch.nn.Parameter(torch.from_numpy(params["layer.D"]))
    for name in ("inv_dt", "C", "B", "A_real", "A_imag"):
        value = torch.nn.Parameter(torch.from_numpy(params[f"layer.kernel.{name}"]))
        module.layer.kernel.register_parameter(name, value)
    for name, value in settings.items():
        setattr(module.layer.kernel, name, value)
    return module.double()


def test_a_block_with_a_second_gelu_is_refused():
    module = s4_module()
    module.activation = torch.nn.GELU()
    for params in (module, module.state_dict()):
        with pytest.raises(UserError, match="s4: this module has a 'activation'"):
            load("s4", params)


def plain(count):
    return [torch.nn.Identity() for _ in range(count)]


def test_a_module_tells_its_options():
    module = s4d_module()
    assert module.state_dict().keys() == NAMES["s4d"].keys()
    x = torch.randn(1, 20, 3, dtype=torch.float64)
    assert relative(load("s4d", module)(x)[0], load("s4d", dict(module.state_dict()))(x)[0]) == 0
    module = s4_module(disc="bilinear", dt_transform="softplus", bandlimit=None)
    x = torch.randn(1, 20, 6, dtype=torch.float64)
    options = {"disc": "bilinear", "dt_transform": "softplus"}
    assert relative(load("s4", module)(x)[0], load("s4", module.state_dict(), **options)(x)[0]) == 0
    assert relative(load("s4", module)(x)[0], load("s4", module.state_dict())(x)[0]) > 0.01


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (lambda: s4_module(bandlimit=0.5), "s4: layer.kernel.bandlimit must be None, not 0.5"),
        (lambda: s4_module(is_real=True), "s4: layer.kernel.is_real must be False, not True"),
        (lambda: s4_module(disc="dss"), "disc: unknown 'dss'"),
        (lambda: s4_module(dt_transform="square"), "transform: unknown 'square'"),
        (lambda: s4_module(real_transform="none"), "'layer.kernel.A_real' must be positive"),
    ],
)
def test_a_setting_that_no_layer_has_is_refused(module, message):
    with pytest.raises(UserError, match=message):
        load("s4", module())


@pytest.mark.parametrize("activation", [torch.nn.ReLU(), torch.nn.Identity()])
def test_another_activation_or_part_is_refused(activation):
    module = s4d_module()
    module.activation = activation
    with pytest.raises(UserError, match=f"s4d: activation must be GELU, not {type(activation).__name__}"):
        load("s4d", module)
    module = s4d_module()
    module.norm = torch.nn.LayerNorm(3, elementwise_affine=False)
    for params in (module, module.state_dict()):
        with pytest.raises(UserError, match="s4d: this module has a 'norm'"):
            load("s4d", params)


@pytest.mark.parametrize(
    ("transform", "of"),
    [
        ("none", lambda z: z),
        ("relu", lambda z: z.relu() + 1e-4),
        ("sigmoid", torch.sigmoid),
        ("softplus", F.softplus),
    ],
)
def test_transforms_of_what_is_positive(transform, of):
    plain = {name: torch.from_numpy(value) for name, value in s4_params("diag").items()}
    names = ("inv_dt", "A_real", "A_imag")
    given = {f"layer.kernel.{name}": plain[f"layer.kernel.{name}"].abs() + 0.1 for name in names}
    wanted = {name: of(value) for name, value in given.items()}
    for name in ("layer.kernel.inv_dt", "layer.kernel.A_real"):
        wanted[name] = wanted[name].log()
    x = torch.randn(1, 20, 6, dtype=torch.float64)
    options = dict.fromkeys(("dt_transform", "real_transform", "imag_transform"), transform)
    found = load("s4", plain | given, **options)(x)[0]
    assert relative(found, load("s4", plain | wanted)(x)[0]) <= 1e-12


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("s6", {}, "unknown source 's6'"),
        ("s5", {"discretisation": "zoh"}, "did you mean 'discretization'"),
        ("minimal-lru", {"rule": "zoh"}, "it has none"),
        ("s5", {"discretization": "zho"}, "did you mean 'zoh'"),
        ("s4", {"mode": "dplr"}, "did you mean 'nplr'"),
        ("mamba", {"hidden_act": "gelu"}, "hidden_act must be silu, not gelu"),
        ("event-ssm", {"stride": 4}, "stride must be 1, not 4"),
    ],
)
def test_what_is_asked_for_must_exist(source, options, message):
    with pytest.raises(UserError, match=message):
        load(source, given(source) if source in SOURCES else {}, **options)
