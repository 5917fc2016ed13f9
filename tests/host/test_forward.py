"""Swapping forwards: what is there while a graft is, and that nothing is left of it."""

import copy
import functools
import pickle
from typing import NamedTuple

import pytest
import torch
from torch import nn

from esper.blueprint.interface import Kind
from esper.host.forward import arrange, attach, bypass, detach, grafts_of, install, restore
from esper.host.layout import Layout
from tests import builders


def site_of(model=None, target="2", example=None):
    model = model if model is not None else builders.seeded(builders.perceptron)
    return model, builders.sites(model, target, builders.rows() if example is None else example)[target]


def test_a_site_is_plain_before_and_after():
    model, site = site_of()
    before, keys = dict(vars(site.module)), list(model.state_dict())
    attach(site, 0, builders.graft())
    assert isinstance(vars(site.module)["forward"], functools.partial)
    assert [k for k in model.state_dict() if k not in keys] == [f"2.esper_0.body.{n}" for n in names()]
    detach(site, 0)
    assert vars(site.module) == before
    assert list(model.state_dict()) == keys
    assert "forward" not in vars(site.module)


def names():
    return ["expand_weight", "expand_bias", "project_weight", "project_bias"]


def test_grafts_run_in_the_order_in_which_they_came():
    _, site = site_of()
    first, second = builders.graft(seed=1), builders.graft(seed=2)
    x = torch.randn(3, 6)
    h = site.module(x)
    attach(site, 1, first)
    attach(site, 0, second)
    after_first = h + first.body(h)
    assert torch.equal(site.module(x), after_first + second.body(after_first))
    assert list(grafts_of(site.module)) == [1, 0]
    arrange(site, [0, 1])
    after_second = h + second.body(h)
    assert torch.equal(site.module(x), after_second + first.body(after_second))
    detach(site, 0)
    assert torch.equal(site.module(x), after_first)
    detach(site, 1)
    assert torch.equal(site.module(x), h)


def test_one_partial_serves_for_as_long_as_the_site_is_active():
    _, site = site_of()
    attach(site, 0, builders.graft())
    made = site.module.forward
    restore(site.module)
    install(site.module)
    attach(site, 1, builders.graft())
    assert site.module.forward is made


def test_a_graft_takes_on_the_sites_mode():
    _, site = site_of()
    site.module.eval()
    graft = builders.graft()
    attach(site, 0, graft)
    assert not graft.training
    site.module.train()
    assert graft.training


def test_a_plain_sequential_block_does_not_run_its_graft_twice():
    block = nn.Sequential(nn.Linear(5, 6), nn.Tanh())
    _, site = site_of(nn.Sequential(block, nn.Linear(6, 3)), "0")
    x = builders.rows()
    h = block(x)
    graft = builders.graft()
    attach(site, 0, graft)
    assert torch.equal(block(x), h + graft.body(h))
    bypass(block)
    assert torch.equal(block(x), h)
    install(block)
    detach(site, 0)
    assert torch.equal(block(x), h)


class Pair(NamedTuple):
    hidden: torch.Tensor
    extra: int


@pytest.mark.parametrize(
    ("make", "read"),
    [
        (lambda h: (h, h + 1), lambda out: out[0]),
        (lambda h: Pair(h, 7), lambda out: out.hidden * (out.extra == 7)),
        (lambda h: torch.return_types.max((h, h.long())), lambda out: out.values),
    ],
    ids=["tuple", "namedtuple", "structseq"],
)
def test_a_tuple_keeps_its_class_and_its_other_elements(make, read):
    class Gives(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(5, 6)

        def forward(self, x):
            return make(self.fc(x))

    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Gives()

        def forward(self, x):
            return read(self.block(x))

    model, site = site_of(Reads(), "block")
    x = builders.rows()
    plain = site.module(x)
    graft = builders.graft()
    attach(site, 0, graft)
    grown = site.module(x)
    assert type(grown) is type(plain)
    assert torch.equal(grown[0], plain[0] + graft.body(plain[0]))
    torch.testing.assert_close(grown[1:], plain[1:])
    assert torch.equal(model(x), read(grown))


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copied_site_binds_to_the_copy(how):
    model, site = site_of()
    attach(site, 0, builders.graft())
    copied = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    x = builders.rows()
    assert torch.equal(copied(x), model(x))
    assert copied[2].forward.args[0] is copied[2]
    with torch.no_grad():
        copied[2].weight.zero_()
    assert not torch.equal(copied(x), model(x))
    assert list(grafts_of(copied[2])) == [0]


def test_attributes_that_parents_read_stay():
    model = nn.Sequential(nn.TransformerEncoderLayer(6, 3, 8, 0.0, batch_first=True))
    _, site = site_of(model, "0.self_attn", torch.randn(2, 5, 6))
    attach(site, 0, builders.graft(builders.interface(Kind.TOKENS), layout=Layout(Kind.TOKENS)))
    assert site.module.batch_first and type(site.module) is nn.MultiheadAttention
    assert isinstance(model[0].self_attn, nn.MultiheadAttention)
    model(torch.randn(2, 5, 6))


def test_no_graft_means_an_empty_answer():
    assert grafts_of(nn.Linear(1, 1)) == {}
