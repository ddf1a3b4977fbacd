"""Weights of transformers: the same outputs, gradients and decoding, compared live."""

import pytest
import torch
from torch.nn import functional as F
from transformers import FalconMambaConfig, MambaConfig, MambaForCausalLM, RecurrentGemmaConfig
from transformers.models.falcon_mamba.modeling_falcon_mamba import FalconMambaMixer
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import (
    RecurrentGemmaRecurrentBlock,
    RecurrentGemmaRglru,
)

from lrnnx_app.errors import UserError
from lrnnx_app.interop import load
from lrnnx_app.layers._properties import in_pieces
from tests.helpers import relative

LIMITS = {torch.float32: (1e-5, 1e-4), torch.float64: (1e-10, 1e-10)}  # outputs, gradients


@pytest.fixture
def dtype(request, monkeypatch):
    """The source in this precision throughout: it casts to float32 inside."""
    if request.param == torch.float64:
        monkeypatch.setattr(torch, "float32", torch.float64)
        monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
        monkeypatch.setattr(RecurrentGemmaRglru._rnn_scan, "__defaults__", (torch.float64,))
    return request.param


in_both = pytest.mark.parametrize("dtype", LIMITS, ids=str, indirect=True)


def randomize(module, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.copy_(0.5 * noise if p.ndim == 1 else noise / p.shape[-1] ** 0.5)
    return module.to(dtype).eval()


def draw(*shape, dtype=torch.float64, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def compare(theirs, ours, source_of, x, dtype, run):
    """Outputs, and the gradients by the input and by every parameter."""
    one, other = (x.clone().requires_grad_() for _ in range(2))
    wanted, got = run(one), ours(other)[0]
    limit, grad_limit = LIMITS[dtype]
    assert relative(got, wanted) <= limit
    weight = draw(*wanted.shape, dtype=dtype, seed=2)
    (wanted * weight).sum().backward()
    (got * weight).sum().backward()
    assert relative(other.grad, one.grad) <= grad_limit
    grads = dict(ours.named_parameters())
    for name, p in theirs.named_parameters():
        assert relative(grads[source_of(name)].grad, p.grad) <= grad_limit, name


def mamba_config(**changes):
    return MambaConfig(
        **{"hidden_size": 12, "state_size": 5, "expand": 2, "vocab_size": 30, "num_hidden_layers": 3}
        | changes
    )


@in_both
@pytest.mark.parametrize(
    "changes", [{}, {"use_bias": True, "use_conv_bias": False, "conv_kernel": 3}], ids=str
)
def test_mamba_block(dtype, changes):
    theirs = randomize(MambaMixer(mamba_config(**changes), 0), dtype)
    ours = load("mamba", theirs.state_dict())
    x = draw(2, 150, 12, dtype=dtype)
    compare(theirs, ours, lambda name: name, x, dtype, theirs)
    assert relative(in_pieces(ours, x, None, [1] * x.shape[1])[0], theirs(x)) <= LIMITS[dtype][0]


def falcon_mixer(dtype, **changes):
    config = {"hidden_size": 12, "state_size": 5, "vocab_size": 30, "num_hidden_layers": 1} | changes
    return randomize(FalconMambaMixer(FalconMambaConfig(**config), 0, initialize_mixer_weights=False), dtype)


@in_both
@pytest.mark.parametrize("changes", [{}, {"mixer_rms_eps": 0.3, "use_bias": True}], ids=str)
def test_falcon_mamba_block(dtype, changes):
    theirs = falcon_mixer(dtype, **changes)
    ours = load("falcon-mamba", theirs)
    x = draw(2, 50, 12, dtype=dtype)
    compare(theirs, ours, lambda name: name, x, dtype, theirs)
    assert relative(in_pieces(ours, x, None, [1] * x.shape[1])[0], theirs(x)) <= LIMITS[dtype][0]
    told = load("falcon-mamba", theirs.state_dict(), mixer_rms_eps=theirs.rms_eps)
    assert relative(told(x)[0], ours(x)[0]) == 0


def test_a_module_or_its_state_dict_is_of_the_source_that_is_named():
    mamba, falcon = MambaMixer(mamba_config(), 0), falcon_mixer(torch.float32)
    gemma = gemma_block(torch.float32)
    for given in (falcon, falcon.state_dict()):
        with pytest.raises(UserError, match=r"^mamba: .*(FalconMambaMixer|_layernorm)"):
            load("mamba", given)
    for given in (mamba, mamba.state_dict()):
        with pytest.raises(UserError, match=r"^falcon-mamba: .*(MambaMixer|_layernorm)"):
            load("falcon-mamba", given)
    with pytest.raises(UserError, match="RecurrentGemmaRecurrentBlock is not of this source"):
        load("mamba", gemma)
    with pytest.raises(UserError, match="MambaMixer is not of this source"):
        load("s5", mamba)
    assert load("mamba", mamba).d_model == load("recurrentgemma", gemma).d_model == 12


def test_an_activation_that_the_layer_has_not_is_refused():
    with pytest.raises(UserError, match="mamba: hidden_act must be silu, not gelu"):
        load("mamba", MambaMixer(mamba_config(hidden_act="gelu"), 0))
    config = RecurrentGemmaConfig(
        hidden_size=12, num_attention_heads=3, lru_width=12, num_hidden_layers=1, hidden_activation="relu"
    )
    block = RecurrentGemmaRecurrentBlock(config, 0)
    with pytest.raises(UserError, match="recurrentgemma: act_fn must be GELUTanh, not ReLU"):
        load("recurrentgemma", block)
    with pytest.raises(UserError, match="hidden_activation must be gelu_pytorch_tanh, not relu"):
        load("recurrentgemma", block.state_dict(), hidden_activation="relu")


def test_a_config_tells_of_what_model_plain_tensors_are():
    theirs = falcon_mixer(torch.float64, mixer_rms_eps=0.3)
    plain, x = dict(theirs.state_dict()), draw(1, 10, 12)
    for config in (theirs.config, theirs.config.to_dict()):
        assert relative(load("falcon-mamba", plain, config)(x)[0], load("falcon-mamba", theirs)(x)[0]) == 0
        with pytest.raises(UserError, match="mamba: a config of model_type 'falcon_mamba' is not of this"):
            load("mamba", plain, config)
    with pytest.raises(UserError, match="mamba: hidden_act must be silu, not gelu"):
        load("mamba", plain, mamba_config(hidden_act="gelu"))
    with pytest.raises(UserError, match="s5: a config of model_type 'mamba'"):
        load("s5", plain, mamba_config())


class MambaStack(torch.nn.Module):
    """The language model around loaded blocks."""

    def __init__(self, theirs):
        super().__init__()
        self.backbone, self.head = theirs.backbone, theirs.lm_head
        self.mixers = torch.nn.ModuleList(load("mamba", b.mixer.state_dict()) for b in theirs.backbone.layers)

    def _norm(self, module, x):
        return F.rms_norm(x, (x.shape[-1],), module.weight, module.variance_epsilon)

    def forward(self, tokens, states=None):
        x, after = self.backbone.embeddings(tokens), []
        for k, (block, mixer) in enumerate(zip(self.backbone.layers, self.mixers, strict=True)):
            normed = self._norm(block.norm, x)
            if tokens.ndim == 1:
                y, state = mixer.step(normed, states[k])
            else:
                y, state = mixer(normed)
            x = x + y
            after.append(state)
        return self.head(self._norm(self.backbone.norm_f, x)), after


@in_both
def test_mamba_language_model(dtype):
    torch.manual_seed(0)
    theirs = MambaForCausalLM(mamba_config()).to(dtype).eval()
    ours = MambaStack(theirs)
    tokens = torch.randint(30, (2, 40), generator=torch.Generator().manual_seed(3))
    wanted = theirs(tokens, use_cache=False).logits
    got, _ = ours(tokens)
    limit, grad_limit = LIMITS[dtype]
    assert relative(got, wanted) <= limit
    names = [n for n, _ in theirs.backbone.layers.named_parameters() if "mixer" in n]
    of_theirs = [dict(theirs.backbone.layers.named_parameters())[n] for n in names]
    of_ours = [dict(ours.mixers.named_parameters())[n.replace(".mixer", "")] for n in names]
    weight = draw(*wanted.shape, dtype=dtype, seed=2)
    expected = torch.autograd.grad((wanted * weight).sum(), of_theirs)
    for name, a, b in zip(names, torch.autograd.grad((got * weight).sum(), of_ours), expected, strict=True):
        assert relative(a, b) <= grad_limit, name
    with torch.no_grad():
        prefill = theirs(tokens[:, :30], use_cache=True)
        name = "cache" if "cache" in prefill else "cache_params"  # before transformers 5.24
        cache, (_, states) = prefill[name], ours(tokens[:, :30])
        for t in range(30, 40):
            out = theirs(tokens[:, t : t + 1], **{name: cache}, use_cache=True)
            cache = out[name]
            logits, states = ours(tokens[:, t], states)
            assert relative(logits, out.logits[:, 0]) <= limit


def gemma_block(dtype, hidden=12):
    config = RecurrentGemmaConfig(
        hidden_size=hidden, num_attention_heads=3, lru_width=12, num_hidden_layers=1, vocab_size=8
    )
    block = randomize(RecurrentGemmaRecurrentBlock(config, 0), dtype)
    with torch.no_grad():
        block.rg_lru.recurrent_param -= 4  # else nothing is remembered
    return block


def gemma_name(name):
    return name.removeprefix("rg_lru.").replace("conv_1d", "conv1d")


@in_both
@pytest.mark.parametrize("hidden", [12, 9])
def test_recurrentgemma_block(dtype, hidden):
    theirs = gemma_block(dtype, hidden)
    ours = load("recurrentgemma", theirs.state_dict())
    x, positions = draw(2, 50, hidden, dtype=dtype), torch.arange(50).expand(2, -1)
    compare(theirs, ours, gemma_name, x, dtype, lambda x: theirs(x, positions, None, use_cache=False)[0])


@in_both
def test_recurrentgemma_documents_and_streams_that_are_not_fresh(dtype):
    theirs = gemma_block(dtype)
    ours = load("recurrentgemma", theirs.state_dict())
    plain = load("recurrentgemma", theirs.state_dict(), unit_start=False)
    x = draw(1, 20, 12, dtype=dtype)
    limit = LIMITS[dtype][0]
    with torch.no_grad():
        wanted, _ = theirs(x, torch.arange(5, 25)[None], None, use_cache=False)
        assert relative(plain(x)[0], wanted) <= limit
        assert relative(ours(x)[0], wanted) > 0.01
        fresh = ours.init_state(1)
        assert relative(ours(x, fresh._replace(fresh=torch.zeros(1)))[0], wanted) <= limit
        # The source's convolution sees across the border of a document, its recurrence does not.
        theirs.conv_1d.weight[..., :-1] = 0
        ours = load("recurrentgemma", theirs.state_dict())
        restarted = torch.cat((torch.arange(8), torch.arange(12)))[None]
        wanted, _ = theirs(x, restarted, None, use_cache=False)
        assert relative(ours(x, reset=restarted == 0)[0], wanted) <= limit


@in_both
def test_recurrentgemma_decoding(dtype):
    theirs = gemma_block(dtype)
    ours = load("recurrentgemma", theirs.state_dict())
    x = draw(2, 30, 12, dtype=dtype)
    with torch.no_grad():
        wanted, _ = theirs(x[:, :20], torch.arange(20).expand(2, -1), None)
        got, state = ours(x[:, :20])
        assert relative(got, wanted) <= LIMITS[dtype][0]
        for t in range(20, 30):
            wanted, _ = theirs(x[:, t : t + 1], torch.full((2, 1), t), None)
            y, state = ours.step(x[:, t], state)
            assert relative(y, wanted[:, 0]) <= LIMITS[dtype][0]
