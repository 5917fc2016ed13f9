"""A run that is lost goes back: when, to what, and what becomes of its seeds."""

import copy
import random

import numpy as np
import pytest
import torch

from esper.errors import Exhausted
from esper.kasmina.lifecycle import LIVE, State
from esper.tolaria.governor import Governor, GovernorOptions, LossWindow
from esper.tolaria.rollback import RollbackPoints, roll_back
from esper.tolaria.snapshot import capture
from tests.tolaria.runs import begin, follow, let_go

NAN = float("nan")


@pytest.fixture
def run_of(tmp_path):
    """Makes runs and lets go of them."""
    made = []

    def make(**options):
        local = begin(tmp_path / f"run-{len(made)}", run_id=f"run-{len(made)}", **options)
        made.append(local)
        return local

    yield make
    for local in made:
        let_go(local)


def rollbacks(local):
    return [message.rollback for message in local.heard if message.HasField("rollback")]


def spoil(local, factor):
    with torch.no_grad():
        for parameter in local.run.parts.model.parameters():
            parameter.mul_(factor)


def at(step, act):
    """Trouble: `act(local)` after this step, once."""
    done = []

    def trouble(local):
        if local.session.steps_done == step and not done:
            done.append(step)
            act(local)

    return trouble


class WentBack(Exception):
    """Stops a run where it has gone back."""


def until_rollback(local):
    """Train until the run goes back, and not a step further."""

    def stop(run):
        if rollbacks(run):
            raise WentBack

    with pytest.raises(WentBack):
        follow(local, 10_000, trouble=stop)


def everything(local):
    """All that a rollback has to restore, as one comparable thing."""
    snapshot = capture(local.run.parts, local.run.step)
    return {name: t.tolist() for name, t in snapshot.all_tensors().items()}, snapshot.scalars, local.run.step


def test_everything_is_as_it_was(run_of):
    local = run_of()
    kept = {}

    def keep(run):
        if run.session.steps_done == 40:
            kept["then"] = everything(run)

    def mess(run):
        spoil(run, NAN)
        random.random(), np.random.rand(), torch.rand(3)

    follow(local, 66, trouble=keep)
    random_before = random.getstate()
    at(66, mess)(local)
    seen = []
    follow(local, 70, trouble=lambda run: seen.append(everything(run)) if rollbacks(run) and not seen else None)
    (said,) = rollbacks(local)
    assert (said.step, said.restored_step, said.reason) == (68, 40, "the loss is nan")
    assert repr(seen[0]) == repr(kept["then"])
    assert random.getstate() == random_before
    assert local.session.governor.window.steps >= 40


def test_a_nan_is_found_one_step_late(run_of):
    local = run_of()
    follow(local, 70, trouble=at(48, lambda run: spoil(run, NAN)))
    assert [(r.step, r.restored_step) for r in rollbacks(local)] == [(50, 20)]  # 49 was lost, 50 read its loss


def test_an_explosion_is_found_in_three_steps(run_of):
    local = run_of()
    follow(local, 90, trouble=at(80, lambda run: spoil(run, 30.0)))
    (said,) = rollbacks(local)
    assert said.step == 84  # 81 to 83 were lost
    assert "over 20 times its mean" in said.reason


def test_a_divergence_goes_back_to_before_it_began(run_of):
    options = GovernorOptions(warm_up_steps=20, divergence_factor=1.5, divergence_steps=20, explosion_factor=1e9)
    local = run_of(governor=Governor(options))
    local.line.decide.germinate_at = 10_000
    follow(local, 100)
    follow(local, 170, trouble=lambda run: None if rollbacks(run) else spoil(run, 1.1))
    said = rollbacks(local)[0]
    assert "times its best" in said.reason
    assert said.step > 100
    assert said.restored_step <= said.step - options.divergence_steps


def test_the_graft_on_trial_is_locked_and_the_others_go_on(run_of):
    local = run_of()
    follow(local, 66)
    table = local.run.executor.table
    trial = table.in_states(LIVE)[0].id
    before = {seed.id: copy.copy(seed) for seed in table if seed.id != trial}
    names = set(local.run.parts.model.state_dict())
    spoil(local, NAN)
    until_rollback(local)
    (said,) = rollbacks(local)
    assert list(said.locked_seeds) == [str(trial)]
    assert table[trial].state is State.ROLLED_BACK
    assert table[trial].reason == "rolled back: the loss is nan"
    assert all(
        (table[seed].state, table[seed].embargo_until_step) == (was.state, was.embargo_until_step)
        for seed, was in before.items()
    )
    assert names - set(local.run.parts.model.state_dict())
    held = {id(p) for group in local.run.parts.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in local.run.parts.model.parameters()}
    assert not local.session.adaptations.grafts  # no twin, no verdict


def test_a_locked_seed_stays_locked_until_it_is_released(run_of):
    local = run_of()
    follow(local, 100, trouble=at(66, lambda run: spoil(run, NAN)))
    locked = local.run.executor.table.in_states((State.ROLLED_BACK,))
    assert len(locked) == 1
    follow(local, 160)
    assert locked[0].state is State.ROLLED_BACK
    moves = [t for t in local.transitions if t.seed == locked[0].id and t.target is State.ROLLED_BACK]
    assert [t.step for t in moves] == [68]  # the moves of a rollback come out of the next decision point


def test_a_rollback_before_trials_are_over_leaves_them(run_of):
    local = run_of()
    follow(local, 46)
    trying = [seed.id for seed in local.run.executor.table.in_states((State.TRAINING,))]
    assert len(trying) == 6
    spoil(local, NAN)
    follow(local, 60)
    assert [(r.step, list(r.locked_seeds)) for r in rollbacks(local)] == [(48, [])]
    inserted = [t for t in local.transitions if t.target is State.GRAFTING]
    assert [t.step for t in inserted] == [50]


def test_a_fossil_may_go_back_to_its_trial_for_it_has_passed_it(run_of):
    local = run_of()
    follow(local, 115)
    (fossil,) = local.run.executor.table.in_states((State.FOSSILIZED,))
    assert (fossil.inserted_step, fossil.state_step) == (50, 110)
    spoil(local, NAN)
    until_rollback(local)
    (said,) = rollbacks(local)
    assert (said.restored_step, list(said.locked_seeds)) == (80, [])
    assert fossil.state is State.FOSSILIZED
    assert local.run.executor.grafts[fossil.id].settled
    follow(local, 130)
    assert fossil.state is State.FOSSILIZED


def test_a_fossil_of_after_the_point_is_culled_late(run_of):
    local = run_of()
    follow(local, 40)
    names, points = list(local.run.parts.model.state_dict()), RollbackPoints(GovernorOptions())
    points.take(local.run, LossWindow())
    follow(local, 115)
    (fossil,) = local.run.executor.table.in_states((State.FOSSILIZED,))
    assert list(local.run.parts.model.state_dict()) != names
    roll_back(local.run, points.choose(115, local.run.executor, LossWindow()), "to see")
    assert fossil.state is State.CULLED
    assert fossil.reason == "late cull: the run went back to step 40, before it"
    assert list(local.run.parts.model.state_dict()) == names


def test_validations_of_what_was_undone_do_not_count(run_of):
    local = run_of()
    follow(local, 46)
    assert local.session.validations.latest[0] == 20
    asked = [o.job.measure for o in local.run.outstanding.values() if o.job.measure.label == "validation"]
    assert [measure.arms[0].snapshot.step for measure in asked] == [40]
    spoil(local, NAN)
    until_rollback(local)
    assert not [o for o in local.run.outstanding.values() if o.job.measure.label == "validation"]
    assert local.session.validations.latest[0] <= local.session.steps_done


def test_going_back_again_and_again_ends_in_a_clear_error(run_of):
    local = run_of()
    local.line.decide.germinate_at = 10_000

    def cursed(run):
        if run.session.steps_done == 46:
            spoil(run, NAN)

    with pytest.raises(Exhausted) as caught:
        follow(local, 100, trouble=cursed)
    assert str(caught.value) == (
        "training was lost 4 times after going back to step 20 and no seed explains it: "
        "lower the learning rate, clip gradients or check the data"
    )
    assert len(rollbacks(local)) == 3


def test_a_run_lost_at_its_first_step_goes_back_to_its_start(run_of):
    local = run_of()
    first = [p.clone() for p in local.run.parts.model.parameters()]
    spoil(local, NAN)
    seen = []
    follow(local, 2, trouble=lambda run: seen.append([p.clone() for p in run.run.parts.model.parameters()]))
    (said,) = rollbacks(local)
    assert (said.step, said.restored_step) == (2, 0)
    assert all(torch.equal(a, b) for a, b in zip(first, seen[1], strict=True))


# Points


def test_points_are_kept_apart_and_few(run_of):
    local = run_of()
    run = local.run
    points = RollbackPoints(GovernorOptions(certify_steps=20), keep=3)
    for run.step in range(0, 100, 5):
        points.take(run, LossWindow())
    assert [point.step for point in points._points] == [40, 60, 80]
    run.step = 0
    assert points.taken_step == 80


def test_a_point_in_alarm_is_passed_over(run_of):
    run = run_of().run
    points = RollbackPoints(GovernorOptions(certify_steps=20))
    for run.step, window in ((0, LossWindow()), (20, LossWindow(diverging_steps=3)), (40, LossWindow())):
        points.take(run, window)
    run.step = 0
    assert points.choose(50, run.executor, LossWindow()).step == 0  # 20 was diverging, 40 is not certified yet
    assert points.choose(70, run.executor, LossWindow()).step == 0  # and later points are of what was undone
    assert points.taken_step == 0


def risen(share, **counted):
    """A window whose mean has lost `share` of what was won."""
    return LossWindow(steps=500, mean=1.0 + share, first_mean=2.0, best_mean=1.0, last=1.0, noise=0.01, **counted)


def test_a_collapse_goes_back_to_before_the_loss_rose_however_long_ago(run_of):
    run = run_of().run
    points = RollbackPoints(GovernorOptions(certify_steps=20), keep=3)
    for run.step in range(0, 300, 10):  # from 110 on the mean rises; its alarm counts from 150 on
        share = 0.0 if run.step < 110 else min(1.0, (run.step - 100) / 100)
        points.take(run, risen(share, collapsed_steps=max(0, run.step - 150)))
    assert [(p.step, p.certified) for p in points._points] == [(80, True), (240, False), (260, False), (280, False)]
    run.step = 0
    assert points.choose(290, run.executor, risen(1.0)).step == 80  # 100 was not certified: at 120 the mean had risen
    assert points.taken_step == 80


def test_a_point_is_certified_by_what_came_after_it(run_of):
    run = run_of().run
    points = RollbackPoints(GovernorOptions(certify_steps=20))
    for run.step, share in ((0, 0.0), (20, 0.0), (39, 0.4), (40, 0.0), (60, 0.4)):
        points.take(run, risen(share))
    run.step = 0
    assert [(p.step, p.certified) for p in points._points] == [(20, True), (40, False), (60, False)]
    counting = risen(0.9, collapsed_steps=1)
    assert points.choose(61, run.executor, risen(0.0)).step == 40
    assert points.choose(61, run.executor, counting).step == 20


def test_there_may_be_no_way_back(run_of):
    run = run_of().run
    points = RollbackPoints(GovernorOptions())
    with pytest.raises(Exhausted, match="training is lost at step 5 and there is no state to go back to"):
        points.choose(5, run.executor, LossWindow())


def test_a_point_is_a_copy(run_of):
    local = run_of()
    first = everything(local)
    point = RollbackPoints(GovernorOptions())
    point.take(local.run, LossWindow())
    follow(local, 9)
    roll_back(local.run, point.choose(9, local.run.executor, LossWindow()), "to see")
    assert repr(everything(local)) == repr(first)
