"""Kernels: bodies with first weights of their own; grafts built again from data."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.blueprint.interface import Interface, Kind
from esper.blueprint.ir import CHANNELS, INPUT, Graph, Initialiser, Node, Parameter, constant
from esper.blueprint.matching import match
from esper.errors import NotFound
from esper.host.graft import Strategy
from esper.kasmina.kernel import Kernel, weights_seed
from esper.kasmina.lifecycle import SeedId, State
from esper.kasmina.regrow import GraftSpec, born, dtype_of, regrow
from tests import builders

CPU = torch.device("cpu")
EVERY_TITLE = sorted(builders.TEMPLATES)
words = st.text(max_size=8)


every_fit = pytest.mark.parametrize(
    ("title", "kind"),
    [(t, k) for t in EVERY_TITLE for k in Kind if match(builders.graph(t), builders.interface(k))[0]],
    ids=lambda value: getattr(value, "value", value),
)


@every_fit
def test_at_birth_a_branch_is_zero_and_hidden_weights_are_drawn(title, kind):
    kernel = builders.kernel(builders.interface(kind), title=title)
    first, again, other = (kernel.body(seed, CPU) for seed in (1, 1, 2))
    h = kernel.interface.example(2, *[5] * kind.position_dims)
    assert not first(h).any()
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)]
    assert all(same)
    drawn = {parameter.initialiser for parameter in kernel.graph.parameters} - {Initialiser.ZEROS, Initialiser.ONES}
    if drawn:  # otherwise it has no hidden weights
        assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    assert kernel.parameter_count == sum(p.numel() for p in first.parameters())


@every_fit
def test_behind_a_gate_a_branch_is_awake_and_finite(title, kind):
    kernel = builders.kernel(builders.interface(kind), title=title)
    body = kernel.body(1, CPU, Strategy.GATED)
    out = body(kernel.interface.example(4, *[5] * kind.position_dims))
    assert out.isfinite().all() and out.any() and out.abs().max() < 100
    assert all(
        torch.equal(a, b)
        for a, b in zip(body.parameters(), kernel.body(1, CPU, Strategy.GATED).parameters(), strict=True)
    )


OUT = ("out", CHANNELS)
MATRIX = (CHANNELS, CHANNELS)
DEEP = {  # operators of more than one weight matrix, and how each starts
    "low_rank": (("rank", CHANNELS), {"down": (MATRIX, Initialiser.HE_UNIFORM), "up": (MATRIX, Initialiser.ZEROS)}),
    "mixture": (
        ("experts", 3),
        {
            "router": ((constant(3), CHANNELS), Initialiser.HE_UNIFORM),
            "experts": ((CHANNELS.times(3), CHANNELS), Initialiser.ZEROS),
        },
    ),
}


@pytest.mark.parametrize("operator", DEEP)
def test_behind_a_gate_every_weight_matrix_of_an_operator_is_awake(operator):
    setting, shapes = DEEP[operator]
    parameters = tuple(Parameter(name, shape, start) for name, (shape, start) in shapes.items())
    graph = Graph((Node("a", operator, (INPUT,), tuple(shapes), (OUT, setting)),), parameters, "a")
    kernel = Kernel("k", "b", graph, Interface(Kind.TOKENS, 8))
    h = kernel.interface.example(2, 5)
    assert not kernel.body(1, CPU)(h).any()
    out = kernel.body(1, CPU, Strategy.GATED)(h)
    assert out.isfinite().all() and out.any()


@given(st.integers(0, 2**31), words, words, words)
def test_weights_seeds_fit_a_generator_and_depend_on_every_part(run_seed, seed, artifact, event):
    made = weights_seed(run_seed, seed, artifact, event)
    assert 0 <= made < 2**56
    torch.Generator().manual_seed(made)
    others = {weights_seed(run_seed + 1, seed, artifact, event), weights_seed(run_seed, seed + "x", artifact, event)}
    assert made not in others | {weights_seed(run_seed, seed, artifact, event + "x")}


def test_weights_seeds_are_the_same_in_every_process():
    assert weights_seed(1, "conv1/0", "a", "e") == 56196526497935575


def spec(slot=0, state=State.STABILIZATION, **changes):
    return GraftSpec(SeedId("2", slot), builders.ARTIFACT, state, **changes)


def test_regrowing_attaches_in_order_and_skips_what_was_folded():
    model = builders.seeded(builders.perceptron)
    found = builders.sites(model, "2", builders.rows())
    specs = [spec(1), spec(0, State.FOSSILIZED, folded=True), spec(3, State.FOSSILIZED, frozen=True)]
    optimizer = builders.adam(model)
    grown = regrow(model, found, specs, {builders.ARTIFACT: builders.kernel()}, optimizer)
    assert [seed.slot for seed in grown] == [1, 3]
    live, fossil = grown.values()
    assert (live.settled, fossil.settled) == (False, True)
    assert not any(p.requires_grad for p in fossil.parameters())
    assert len(optimizer.param_groups[0]["params"]) == 6 + 4


def test_a_missing_kernel_stops_regrowing_before_it_begins():
    model = builders.seeded(builders.perceptron)
    found = builders.sites(model, "2", builders.rows())
    missing = GraftSpec(SeedId("2", 1), "missing", State.GRAFTING)
    with pytest.raises(NotFound, match="kernel missing of seed 2/1 is not at hand"):
        regrow(model, found, [spec(), missing], {builders.ARTIFACT: builders.kernel()})
    assert list(model.state_dict()) == list(builders.perceptron().state_dict())


def test_a_folded_fossil_needs_no_kernel():
    model = builders.seeded(builders.perceptron)
    found = builders.sites(model, "2", builders.rows())
    assert regrow(model, found, [spec(state=State.FOSSILIZED, folded=True)], {}) == {}


def test_a_new_graft_has_its_sites_element_type_of_now():
    model = builders.seeded(builders.perceptron)
    found = builders.sites(model, ["2", "3"], builders.rows())
    assert {dtype_of(site, model) for site in found.values()} == {torch.float32}
    model[2].double()  # a part of the model
    assert (dtype_of(found["2"], model), dtype_of(found["3"], model)) == (torch.float64, torch.float32)
    model.bfloat16()  # all of it
    assert {dtype_of(site, model) for site in found.values()} == {torch.bfloat16}
    graft = born(builders.kernel(), 1, found["3"], model, torch.zeros(()), Strategy.GATED, None)
    assert {p.dtype for p in graft.parameters()} == {torch.bfloat16} and graft.alpha.dtype is torch.float32
