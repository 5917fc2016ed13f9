"""Transformer blocks take their fused path, but not past an active seed."""

import pytest
import torch
from torch import nn

from esper.blueprint.interface import Kind
from esper.host.forward import attach, detach
from esper.host.fused import off_fused_paths, set_fused, update_fused_paths
from esper.host.layout import Layout
from esper.host.sites import Site
from tests import builders

MASK = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])


def layer():
    return nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)


class Padded(nn.Module):
    """An encoder of two layers, with a padding mask if there is one."""

    def __init__(self, mask=None):
        super().__init__()
        self.encoder = nn.TransformerEncoder(layer(), 2)
        self.mask = mask

    def forward(self, x):
        return self.encoder(x, src_key_padding_mask=self.mask)


def inner_site(model, name):
    """A site as it would be proved in a model that did not fuse at wrap time."""
    at = builders.interface(Kind.TOKENS, model.get_submodule(name).out_features)
    from esper.host.fused import fused_ancestors

    return Site(name, model.get_submodule(name), "Linear", Layout(Kind.TOKENS), at, 5, fused_ancestors(model, name))


def test_an_active_site_inside_a_block_is_run_in_eval_without_grad():
    model = nn.Sequential(layer()).eval()
    x = torch.randn(2, 5, 8)
    site = inner_site(model, "0.linear1")
    graft = builders.graft(site.interface, layout=site.layout)
    with torch.no_grad():
        fused = model(x)
        attach(site, 0, graft)
        assert torch.equal(model(x), fused)  # passed by
        update_fused_paths(model, [site])
        grown = model(x)
        assert not torch.allclose(grown, fused)
        torch.testing.assert_close(grown, torch.func.functional_call(model, {}, (x,)))
    torch.testing.assert_close(grown, model(x), rtol=1e-5, atol=1e-6)  # with grad nothing was ever fused
    detach(site, 0)
    update_fused_paths(model, [site])
    with torch.no_grad():
        assert torch.equal(model(x), fused)
    assert model[0].activation_relu_or_gelu == 1
    assert not [name for name in vars(model[0]) if "esper" in name]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_block_in_an_encoder_is_not_handed_nested_tensors_while_it_is_active():
    model = builders.seeded(lambda: Padded(MASK)).eval()
    x = torch.randn(2, 5, 8)
    site = builders.sites(model, "encoder.layers.1", x)["encoder.layers.1"]
    graft = builders.graft(site.interface, layout=site.layout)
    with torch.no_grad():
        plain = model(x)
        attach(site, 0, graft)
        update_fused_paths(model, [site])
        grown = model(x)
        assert graft.fault == ""
    assert not model.encoder.use_nested_tensor
    valid = ~MASK
    expected = plain + graft.body(plain)
    torch.testing.assert_close(grown[valid], expected[valid], rtol=1e-4, atol=1e-5)
    detach(site, 0)
    update_fused_paths(model, [site])
    assert model.encoder.use_nested_tensor
    with torch.no_grad():
        assert torch.equal(model(x), plain)


def test_a_block_stays_off_until_the_last_of_its_sites_is_dormant():
    model = nn.Sequential(layer())
    first, second = inner_site(model, "0.linear1"), inner_site(model, "0.linear2")
    for site in (first, second):
        attach(site, 0, builders.graft(site.interface, layout=site.layout))
    update_fused_paths(model, [first, second])
    detach(first, 0)
    update_fused_paths(model, [first, second])
    assert model[0].activation_relu_or_gelu == 0
    detach(second, 0)
    update_fused_paths(model, [first, second])
    assert model[0].activation_relu_or_gelu == 1


def test_other_blocks_keep_their_fused_path():
    model = nn.Sequential(layer(), layer())
    site = inner_site(model, "0.linear1")
    attach(site, 0, builders.graft(site.interface, layout=site.layout))
    update_fused_paths(model, [site])
    assert (model[0].activation_relu_or_gelu, model[1].activation_relu_or_gelu) == (0, 1)


@pytest.mark.parametrize("kept", [1, 2, 0])
def test_what_the_block_would_have_done_by_itself_comes_back(kept):
    model = nn.Sequential(layer())
    model[0].activation_relu_or_gelu = kept
    site = inner_site(model, "0.linear1")
    with off_fused_paths(model, site):
        assert model[0].activation_relu_or_gelu == 0
        with off_fused_paths(model, site):  # within, nothing is left to do
            pass
        assert model[0].activation_relu_or_gelu == 0
    assert model[0].activation_relu_or_gelu == kept


def test_a_model_that_is_itself_a_block_is_found():
    from esper.host.fused import fused_ancestors

    assert fused_ancestors(layer(), "linear1") == ("",)
    assert fused_ancestors(Padded(), "encoder.layers.0.linear1") == ("encoder.layers.0", "encoder")
    assert fused_ancestors(Padded(), "encoder.layers.0") == ("encoder",)


def test_a_module_without_a_fused_path_is_left_alone():
    plain = nn.Linear(2, 2)
    before = dict(vars(plain))
    set_fused(plain, False)
    assert vars(plain) == before
