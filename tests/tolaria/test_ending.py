"""The end of a run: what is open is closed, the best validated state is returned, and that is said."""

import pytest
import torch

from esper.kasmina.lifecycle import BEFORE_HOST, LIVE, State
from esper.tolaria.snapshot import load
from tests.tolaria.runs import begin, follow, let_go


@pytest.fixture
def ended_at(tmp_path):
    made = []

    def run(step):
        local = begin(tmp_path / f"run-{len(made)}")
        made.append(local)
        follow(local, step)
        local.session.end()
        return local

    yield run
    for local in made:
        let_go(local)


def test_what_is_only_tried_is_cancelled(ended_at):
    local = ended_at(36)
    states = {seed.state for seed in local.run.executor.table}
    assert not states & (BEFORE_HOST | LIVE)
    assert {s.reason for s in local.run.executor.table if s.state is State.CANCELLED} == {
        "the run ended before it could be inserted"
    }


@pytest.mark.parametrize(
    ("step", "state", "reason"),
    [
        (64, State.CULLED, "the run ended before its verdict"),
        (104, State.FOSSILIZED, "the run ended after its verdict, before the repetition"),
    ],
)
def test_a_graft_stays_if_it_passed_a_verdict_and_goes_if_not(ended_at, step, state, reason):
    local = ended_at(step)
    moved = [m.transition for m in local.heard if m.HasField("transition")]
    closing = [t for t in moved if t.reason.startswith(reason)]
    assert [t.to for t in closing] == [int(state)]
    assert not local.run.executor.table.in_states(LIVE)


def test_the_model_returned_is_the_best_validated_one(ended_at):
    local = ended_at(150)
    best = min(local.session.validations.kept.values(), key=lambda m: m.loss)
    assert local.session.returned_step == best.step
    model, saved = local.run.parts.model.state_dict(), load(best.path).tensors
    assert all(torch.equal(value, saved[f"model.{name}"]) for name, value in model.items())
    notes = [m.note.text for m in local.heard if m.HasField("note")]
    assert notes[-1].startswith(f"the model returned is that of step {best.step}, the best validated: loss ")


def test_a_fossil_that_came_after_the_best_state_is_culled_late(tmp_path):
    local = begin(tmp_path / "run")
    follow(local, 115)
    (fossil,) = local.run.executor.table.in_states((State.FOSSILIZED,))
    with torch.no_grad():  # it gets much worse from here
        for parameter in local.run.parts.model.parameters():
            parameter.mul_(0.0)
    kept = local.session.validations.kept
    for structure in [s for s in kept if s]:
        del kept[structure]
    follow(local, 116)
    local.session.end()
    let_go(local)
    assert fossil.state is State.CULLED
    assert fossil.reason.startswith("late cull: the best validated state, of step ")
    assert not [name for name in local.run.parts.model.state_dict() if "esper_" in name]


def test_goodbye_is_the_last_word_and_comes_once(ended_at):
    local = ended_at(30)
    assert [m.goodbye.completed for m in local.heard if m.HasField("goodbye")] == [True]
    assert local.heard[-1].HasField("goodbye")
    assert local.heard[-1].goodbye.step == 30
