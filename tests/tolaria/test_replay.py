"""A run that is resumed after it went back; journals that are torn or another run's; hosts made again elsewhere."""

import shutil
from pathlib import Path

import pytest
import torch

from esper.errors import Conflict, NotFound, PreconditionFailed
from esper.kasmina.lifecycle import SeedId, State
from esper.kasmina.regrow import GraftSpec
from esper.tolaria.checkpoint import CheckpointStore
from esper.tolaria.codec import write_task
from esper.tolaria.journal import NAME, read_journal
from esper.tolaria.replay import make_run
from tests.tolaria.runs import begin, crash_to, follow, go_on, let_go, noisy, same_parameters

STEPS = 135


def poison_at(step):
    """Trouble that spoils every weight after a step, the first time that the run gets there."""
    seen = []

    def trouble(local):
        if local.session.steps_done == step and not seen:
            seen.append(step)
            with torch.no_grad():
                for parameter in local.run.parts.model.parameters():
                    parameter.fill_(float("nan"))

    return trouble


@pytest.fixture(scope="module", params=[43, 72], ids=["before-a-graft", "during-a-trial"])
def lost(request, tmp_path_factory):
    """A run that is spoiled and goes back, and what crashes after that would have left."""
    base = tmp_path_factory.mktemp("lost")
    images = {step: base / f"crash-{step}" for step in (78, 125)}
    local = begin(base / "run", checkpoint_every_steps=10)
    course = follow(local, STEPS, images=images, trouble=poison_at(request.param))
    let_go(local)
    return base, images, local, course


@pytest.mark.parametrize("crash", [78, 125])
def test_a_run_that_went_back_is_resumed_exactly(lost, crash):
    base, images, first, course = lost
    crash_to(images[crash], base / "run")
    local = go_on(base / "run", first.shelf, checkpoint_every_steps=10)
    begun = local.session.steps_done
    assert begun <= crash
    again = follow(local, STEPS)
    let_go(local)
    assert all(again.losses[step] == course.losses[step] for step in range(begun + 1, STEPS + 1))
    assert same_parameters(course, again)


def test_the_rollback_is_in_the_journal(lost):
    base, images, first, _ = lost
    crash_to(images[125], base / "run")
    said = [m.rollback for m in first.heard if m.HasField("rollback")]
    written = [entry.rollback for entry in read_journal(base / "run" / NAME) if entry.HasField("rollback")]
    assert len(written) == 1
    assert written == said
    assert written[0].restored_step < written[0].step


@pytest.fixture(scope="module")
def between(tmp_path_factory):
    """A run that died right after it went back, so that its checkpoints are of what was undone."""
    base = tmp_path_factory.mktemp("between")
    images = {step: base / f"crash-{step}" for step in (48, 68)}
    local = begin(base / "run", checkpoint_every_steps=10)
    course = follow(local, STEPS, trouble=_crash_after_rollback(base, images))
    let_go(local)
    return base, images, local, course


def _crash_after_rollback(base, images):
    spoil = [poison_at(46), poison_at(66)]

    def trouble(local):
        for poison in spoil:
            poison(local)
        rollbacks = sum(m.HasField("rollback") for m in local.heard)
        for count, to in enumerate(images.values(), 1):
            if rollbacks == count and not to.exists():
                shutil.copytree(local.run.directory, to)

    return trouble


@pytest.mark.parametrize(("crash", "checkpoint"), [(48, 20), (68, 40)])
def test_a_checkpoint_of_what_was_undone_is_passed_over(between, crash, checkpoint):
    base, images, first, course = between
    crash_to(images[crash], base / "run")
    warnings = []
    manifest, _ = CheckpointStore(base / "run" / "checkpoints", warn=warnings.append).latest()
    rollback = [m.rollback for m in first.heard if m.HasField("rollback") and m.rollback.step == crash]
    assert rollback[0].restored_step >= manifest.step == checkpoint
    assert "went back to before" in warnings[0]
    local = go_on(base / "run", first.shelf, checkpoint_every_steps=10)
    again = follow(local, STEPS, trouble=poison_at(66) if crash < 66 else None)
    let_go(local)
    assert all(again.losses[s] == course.losses[s] for s in range(checkpoint + 1, STEPS + 1))
    assert same_parameters(course, again)


def test_a_run_resumed_in_mid_trial_can_still_go_back(tmp_path):
    local = begin(tmp_path / "run", checkpoint_every_steps=10)
    follow(local, 64)
    let_go(local)
    again = go_on(tmp_path / "run", local.shelf, checkpoint_every_steps=10)
    trialled = [s.id for s in again.run.executor.table.in_states((State.STABILIZATION,))]
    follow(again, STEPS, trouble=poison_at(67))
    said = [m.rollback for m in again.heard if m.HasField("rollback")]
    let_go(again)
    assert [(r.step, r.restored_step) for r in said] == [(69, 40)]  # as one that was never resumed
    assert again.run.executor.table[trialled[0]].state is State.ROLLED_BACK


def test_a_torn_last_line_is_as_if_it_had_not_been_written(tmp_path):
    local = begin(tmp_path / "run", checkpoint_every_steps=40)
    course = follow(local, 75)
    let_go(local)
    journal = tmp_path / "run" / NAME
    whole = journal.read_bytes()
    last = len(whole) - whole[:-1].rfind(b"\n")
    journal.write_bytes(whole[: -last // 2])
    again = go_on(tmp_path / "run", local.shelf, checkpoint_every_steps=40)
    resumed = follow(again, 75)
    let_go(again)
    assert resumed.losses == {s: x for s, x in course.losses.items() if s in resumed.losses}
    assert same_parameters(course, resumed)
    assert [e.position for e in read_journal(journal)] == list(range(1, whole.count(b"\n") + 1))


def test_another_runs_journal_is_left_alone(tmp_path):
    local = begin(tmp_path / "run")
    follow(local, 15)
    let_go(local)
    written = (tmp_path / "run" / NAME).read_bytes()
    second = begin(tmp_path / "run", run_id="second")
    with pytest.raises(Conflict, match="journal of an earlier run; resume that one, or choose another run id"):
        follow(second, 15)
    let_go(second)
    assert (tmp_path / "run" / NAME).read_bytes() == written


def test_a_run_without_a_checkpoint_cannot_be_resumed(tmp_path):
    local = begin(tmp_path / "run")
    follow(local, 5)
    let_go(local)
    with pytest.raises(NotFound, match=r"no sound checkpoint in .*; start the run anew"):
        go_on(tmp_path / "run", local.shelf)


# Hosts made again, as a nursery makes them


def test_a_host_made_again_trains_as_the_run_did(tmp_path):
    local = begin(tmp_path / "run")
    follow(local, 12)
    reference = local.run.save("here", model_only=False)
    state = torch.get_rng_state()
    course = follow(local, 18)
    twin = make_run(write_task(noisy().reference), Path(reference.path), [], {})
    assert torch.equal(torch.get_rng_state(), state)  # a snapshot has the generators too
    losses = []
    for _ in range(6):
        loss = twin.gradients()
        twin.update(loss)
        losses.append(float(loss))
    let_go(local)
    assert losses == [course.losses[step] for step in range(13, 19)]
    assert twin.step == 18


def test_what_is_folded_cannot_be_taken_out(tmp_path):
    spec = GraftSpec(SeedId("conv1", 0), "a" * 64, State.FOSSILIZED, folded=True)
    with pytest.raises(PreconditionFailed, match="fossil conv1/0 was folded into conv1 and cannot be switched off"):
        make_run(write_task(noisy().reference), None, [spec], {}, without=[spec])
