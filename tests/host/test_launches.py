"""Grafts on disjoint chunks of a site in one launch: equal to one after another, in values, gradients and faults."""

import copy
import itertools
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import esper.host.launches as launches_module
from esper.blueprint.interface import Kind
from esper.host.forward import join_grafts
from esper.host.graft import Graft, Strategy, join
from esper.host.launches import MAX_SLOTS, launches
from esper.host.layout import Layout
from tests import builders

CHANNELS = 8
KINDS = {Kind.VECTOR: (), Kind.TOKENS: (5,), Kind.MAP1D: (5,), Kind.MAP2D: (3, 4)}


def table_of(count):
    """The seed table's alphas, no two equal."""
    return torch.linspace(0.2, 0.9, count)


def grafts_on(spans, kind=Kind.VECTOR, strategy=Strategy.RESIDUAL, *, transposed=False, alphas=None):
    table = table_of(len(spans)) if alphas is None else alphas
    made = []
    for index, span in enumerate(spans):
        at = builders.interface(kind, CHANNELS if span is None else span[1] - span[0])
        body = builders.body(at, title="scale", seed=index)
        made.append(Graft(body, Layout(kind, transposed), table[index], span=span, strategy=strategy))
        builders.stir(made[-1], seed=index)
    return made


def site_of(grafts):
    """A module that carries `grafts` in this order."""
    module = nn.Identity()
    for slot, graft in enumerate(grafts):
        module.add_module(f"esper_{slot}", graft)
    module.__dict__["_esper_grafts"] = tuple(f"esper_{slot}" for slot in range(len(grafts)))
    return module


def host_of(kind=Kind.VECTOR):
    at = builders.interface(kind, CHANNELS)
    return at.example(2, *KINDS[kind], generator=torch.Generator().manual_seed(5)).requires_grad_()


def serially(grafts, host):
    for graft in grafts:
        host = graft(host)
    return host


def with_gradients(call, grafts, host):
    leaves = [host, *(p for graft in grafts for p in graft.parameters())]
    out = call(host)
    weights = torch.linspace(1, 2, out.numel()).view_as(out)
    return [out, *torch.autograd.grad((out * weights).sum(), leaves)]


@pytest.fixture
def counted(monkeypatch):
    """The number of slots of each launch."""
    seen, blend = [], launches_module.blend

    def count(host, seeds, *args, **kwargs):
        seen.append(len(seeds))
        return blend(host, seeds, *args, **kwargs)

    monkeypatch.setattr(launches_module, "blend", count)
    return seen


@st.composite
def disjoint(draw):
    """Disjoint chunks of the channels in any order."""
    cuts = sorted(draw(st.sets(st.integers(0, CHANNELS), min_size=2, max_size=6)))
    chunks = list(itertools.pairwise(cuts))
    kept = [chunk for chunk in chunks if draw(st.booleans())] or chunks[:1]
    return draw(st.permutations(kept))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("strategy", [Strategy.RESIDUAL, Strategy.CONVEX])
@given(spans=disjoint(), kind=st.sampled_from(list(KINDS)))
def test_together_is_one_after_another_bit_for_bit_with_gradients(transposed, strategy, spans, kind):
    transposed = transposed and kind is Kind.TOKENS
    grafts = grafts_on(spans, kind, strategy, transposed=transposed)
    host = host_of(kind)
    host = host.detach().transpose(0, 1).requires_grad_() if transposed else host
    together = with_gradients(lambda h: join_grafts(site_of(grafts), h), grafts, host)
    alone = with_gradients(lambda h: serially(grafts, h), grafts, host)
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    assert together[0].shape == host.shape


@pytest.mark.parametrize("strategy", [Strategy.RESIDUAL, Strategy.CONVEX])
def test_each_chunk_is_its_formula_and_the_rest_is_the_hosts(strategy):
    spans = [(5, 7), (0, 2), (2, 4)]
    grafts, host = grafts_on(spans, strategy=strategy), host_of()
    out = join(grafts, host)
    for graft, (start, stop) in zip(grafts, spans, strict=True):
        part = host[:, start:stop]
        delta = graft.body(part) - (part if strategy is Strategy.CONVEX else 0)
        torch.testing.assert_close(out[:, start:stop], part + graft.alpha * delta, rtol=1e-6, atol=1e-6)
    assert torch.equal(out[:, 4], host[:, 4]) and torch.equal(out[:, 7], host[:, 7])


def test_all_chunks_of_a_site_are_one_launch(counted):
    join_grafts(site_of(grafts_on([(0, 2), (2, 4), (4, 8)])), host_of())
    assert counted == [3]


@pytest.mark.parametrize("strategy", [Strategy.RESIDUAL, Strategy.CONVEX])
def test_what_overlaps_sees_the_earlier_ones_result(counted, strategy):
    grafts, host = grafts_on([(0, 4), (4, 6), (2, 5), None, (0, 2), (2, 4)], strategy=strategy), host_of()
    out = join_grafts(site_of(grafts), host)
    assert counted == [2, 1, 1, 2]
    assert torch.equal(out, serially(grafts, host))


def test_what_is_settled_gated_or_of_another_strategy_is_not_put_with_others():
    fossil, live = grafts_on([(0, 2), (2, 4)])
    fossil.settle()
    (gated,) = grafts_on([(4, 6)], strategy=Strategy.GATED)
    (convex,) = grafts_on([(6, 8)], strategy=Strategy.CONVEX)
    for order in ([fossil, live], [live, fossil], [live, gated], [gated, live], [live, convex]):
        assert launches(order) == [[graft] for graft in order]
        host = host_of()
        assert torch.equal(join_grafts(site_of(order), host), serially(order, host))


def test_a_launch_holds_no_more_slots_than_every_backend_takes():
    class At:
        blends, strategy = True, Strategy.RESIDUAL

        def __init__(self, start):
            self.span = (start, start + 1)

    assert [len(launch) for launch in launches([At(i) for i in range(MAX_SLOTS + 3)])] == [MAX_SLOTS, 3]


@pytest.mark.parametrize("bad", [0, 1, 2])
@pytest.mark.parametrize("fault", ["raises", "shape", "nan"])
def test_a_fault_of_one_leaves_its_chunk_and_the_others_join(counted, fault, bad):
    spans = [(0, 2), (2, 5), (5, 8)]
    grafts, host = grafts_on(spans), host_of()
    forms = {"raises": lambda *_: 1 / 0, "shape": lambda h, *_: h[:1], "nan": lambda h, *_: h * float("nan")}
    whole = join(grafts, host)
    grafts[bad].use_form(forms[fault])
    del counted[:]
    out = join_grafts(site_of(grafts), host)
    assert counted == [2]
    assert [bool(graft.fault) for graft in grafts] == [i == bad for i in range(3)]
    for i, (start, stop) in enumerate(spans):
        assert torch.equal(out[:, start:stop], (host if i == bad else whole)[:, start:stop])
    out.sum().backward()
    assert torch.equal(host.grad[:, slice(*spans[bad])], torch.ones(2, spans[bad][1] - spans[bad][0]))
    assert all(p.grad is None for p in grafts[bad].parameters())


def test_the_hosts_own_tensor_passes_where_all_fail():
    grafts, host = grafts_on([(0, 2), (2, 5)]), host_of()
    for graft in grafts:
        graft.use_form(lambda *_: None)
    assert join_grafts(site_of(grafts), host) is host


def test_a_branch_of_another_dtype_is_joined_apart_under_autocast(counted):
    grafts, host = grafts_on([(0, 2), (2, 5), (5, 8)]), host_of()
    grafts[1].use_form(lambda h, *_: h.to(torch.bfloat16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = join_grafts(site_of(grafts), host)
    assert counted == [2] and out.dtype is host.dtype
    part = host[:, 2:5]
    assert torch.equal(out[:, 2:5], part + grafts[1].alpha * part.to(torch.bfloat16))
    grafts[1].use_form(None)
    assert torch.equal(out[:, :2], join(grafts, host)[:, :2])


# Alphas


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_neighbours_of_the_seed_table_are_handed_over_as_a_view_of_it(monkeypatch, order):
    seen, blend = [], launches_module.blend
    monkeypatch.setattr(launches_module, "blend", lambda h, s, a, *r, **k: seen.append(a) or blend(h, s, a, *r, **k))
    table = torch.linspace(0, 1, 7)
    grafts = grafts_on([(0, 2), (2, 4), (4, 8)], alphas=[table[i] for i in (3, 4, 5)])
    ordered, host = [grafts[i] for i in order], host_of()
    out = join(ordered, host)
    assert seen[0].data_ptr() == table[3].data_ptr() and torch.equal(seen[0], table[3:6])
    assert torch.equal(out, serially(ordered, host))
    table.fill_(0.0)
    assert torch.equal(join(ordered, host), host)


@pytest.mark.parametrize("picked", [(0, 2), (2, 2), (5, 0)])
def test_alphas_that_are_not_neighbours_are_their_own(picked):
    table = torch.linspace(0, 1, 7)
    grafts, host = grafts_on([(0, 2), (2, 4)], alphas=[table[i] for i in picked]), host_of()
    assert torch.equal(join(grafts, host), serially(grafts, host))


def test_alphas_of_two_tables_are_their_own():
    grafts = grafts_on([(0, 2), (2, 4)], alphas=[torch.tensor([0.3, 9.0])[0], torch.tensor([9.0, 0.6])[1]])
    host = host_of()
    assert torch.equal(join(grafts, host), serially(grafts, host))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda site: pickle.loads(pickle.dumps(site))])
def test_a_copied_site_computes_the_same(copied):
    site, host = site_of(grafts_on([(0, 2), (2, 5), (5, 8)])), host_of()
    assert torch.equal(join_grafts(copied(site), host), join_grafts(site, host))


def test_compiled_it_is_one_graph_whatever_alpha_is():
    torch._dynamo.reset()
    table, graphs = table_of(3).clone(), []
    site, host = site_of(grafts_on([(0, 2), (2, 5), (5, 8)], alphas=table)), host_of().detach()

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    call = torch.compile(lambda h: join_grafts(site, h), backend=backend, fullgraph=True)
    for alpha in (0.0, 0.3, 1.0):
        table.fill_(alpha)
        torch.testing.assert_close(call(host), join_grafts(site, host), rtol=1e-6, atol=1e-6)
    assert len(graphs) == 1
    torch._dynamo.reset()
