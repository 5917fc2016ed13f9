"""What the sculptor orders, done to a model: smaller tensors, an optimiser that goes on, and a way back."""

import pytest
import torch

from esper.emrakul.advice import Sculptor, finding_log
from esper.errors import PreconditionFailed
from esper.kasmina.codec import read_seed_id
from esper.kasmina.lifecycle import State
from tests import builders
from tests.tamiyo.scenes import at_once, noon

from .fossils import fossil, point, probed


@pytest.fixture
def grown():
    """An executor with a fossil kept as a branch, its optimiser, and the seed."""
    owner = builders.executor()
    optimizer = builders.adam(owner.model)
    seed = builders.lead(owner, State.FOSSILIZED, optimizer, title="bottleneck_mlp", step=1000)
    builders.train(owner.model, optimizer, [builders.rows(seed=n) for n in range(3)])
    assert not owner.table[seed].folded
    return owner, optimizer, seed


def ordered(tmp_path, seed):
    """The removal that two probes without use lead to."""
    findings = finding_log(tmp_path / "findings.sqlite")
    sculptor = Sculptor(findings, noon)
    here = {"seeds": [fossil(seed.site, seed.slot)]}
    at_once(sculptor.advise(point(26, probed(-0.1, str(seed), "p25"), **here)))
    (command,) = at_once(sculptor.advise(point(39, probed(-0.1, str(seed), "p38"), **here))).commands
    findings.close()
    return command


def parameters(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def test_a_removal_takes_the_tensors_out_of_model_and_optimiser(tmp_path, grown):
    owner, optimizer, seed = grown
    command = ordered(tmp_path, seed)
    host = [p for p in parameters(optimizer) if p not in set(owner.grafts[seed].parameters())]
    moments = [optimizer.state[p]["exp_avg"].clone() for p in host]
    with_it, x = owner.model(builders.rows()).detach(), builders.rows()
    before = sum(p.numel() for p in owner.model.parameters())

    owner.cull(read_seed_id(command.remove.seed), optimizer, 4000, command.reason)

    assert sum(p.numel() for p in owner.model.parameters()) < before
    assert not any("esper" in key for key in owner.model.state_dict())
    assert [id(p) for p in parameters(optimizer)] == [id(p) for p in host]
    assert all(torch.equal(optimizer.state[p]["exp_avg"], m) for p, m in zip(host, moments, strict=True))
    assert not torch.equal(owner.model(x), with_it)
    assert owner.table[seed].reason == command.reason


def test_a_removal_can_be_undone_to_the_bit(tmp_path, grown):
    owner, optimizer, seed = grown
    x, state = builders.rows(seed=9), builders.state_of(owner.model)
    expected = owner.model(x).detach().clone()
    owner.cull(read_seed_id(ordered(tmp_path, seed).remove.seed), optimizer, 4000, "no use")
    owner.undo_removal(seed, optimizer)
    assert torch.equal(owner.model(x), expected)
    again = owner.model.state_dict()
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], value) for key, value in state.items())
    assert owner.table[seed].state is State.FOSSILIZED
    kept = builders.state_of(owner.grafts[seed])
    builders.train(owner.model, optimizer, [builders.rows()])
    assert any(not torch.equal(value, kept[key]) for key, value in owner.grafts[seed].state_dict().items())


def test_a_folded_fossil_refuses_to_be_removed_and_stays_as_it_was():
    owner = builders.executor()
    optimizer = builders.adam(owner.model)
    seed = builders.lead(owner, State.FOSSILIZED, optimizer, title="affine", step=1000)
    assert owner.table[seed].folded
    state = builders.state_of(owner.model)
    with pytest.raises(PreconditionFailed, match="folded"):
        owner.cull(seed, optimizer, 4000, "no use")
    assert owner.table[seed].state is State.FOSSILIZED
    assert all(torch.equal(owner.model.state_dict()[key], value) for key, value in state.items())
