"""What a nursery in the training process finds: gains, verdicts by ablation, and what an interruption costs."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from esper.kasmina.lifecycle import State
from esper.stats.verdict import Rule, judge
from esper.tolaria.checkpoint import CheckpointStore
from tests.tolaria.runs import let_go
from tests.tolaria.shadowed import begin, bent, curves, noisy, results, start, straight

__all__ = ["start"]  # a fixture


# Gains


def test_a_candidate_that_the_task_needs_gains(start):
    local = start(bent(), nursery_steps=100)
    local.train(160)
    for curve in curves(local):
        kept, why = judge(curve.points[-1][1], Rule())
        assert kept and curve.gain > 0.1, why


def test_a_candidate_that_nothing_is_left_for_does_not(start):
    local = start(straight(), germinate_at=300, nursery_steps=100)
    local.train(420)
    for curve in curves(local):
        kept, why = judge(curve.points[-1][1], Rule())
        assert not kept and curve.gain < Rule().min_gain, why


def test_candidates_learn_on_the_batches_that_the_host_was_given(start):
    """The task's own batches would teach the product; those that are passed to the session are of nothing but noise."""
    local = start(bent(), nursery_steps=100)
    generator = torch.Generator().manual_seed(0)
    session, task, parts = local.session, local.task, local.run.parts
    while session.steps_done < 140:
        x = torch.randn(64, 6, generator=generator)
        batch = x, torch.randn(64, generator=generator)
        loss = task.loss(parts.model(x), batch).mean()
        parts.optimizer.zero_grad()
        loss.backward()
        parts.optimizer.step()
        session.step(batch, loss)
        if session.due:
            session.decide()
    assert all(curve.gain < Rule().min_gain for curve in curves(local))


# The verdict


def test_the_life_of_a_seed_is_led_in_this_process_to_a_verdict_by_ablation(start):
    local = start(bent(), nursery_steps=40)
    local.train(180)
    assert State.FOSSILIZED in {t.target for t in local.transitions}
    verdicts = [r for r in results(local, "measure") if r.measure.label.startswith("verdict")]
    assert [r.measure.label.rpartition(":")[2] for r in verdicts] == ["ablation", "ablation"]
    assert all(r.flops > 0 and r.wall_s > 0 for r in verdicts)
    assert not [m for m in local.heard if m.HasField("job") or m.cancelled_job]  # nothing was asked of anybody
    assert local.run.nursery_flops >= sum(r.flops for r in [*verdicts, *results(local, "trial")])


def test_arms_and_controls_are_the_host_with_and_without_its_graft(start):
    task, read = bent(), {}
    local = start(task, nursery_steps=40)

    def look(run):
        """Judge the model by hand at every step at which a graft is in it: alpha as it is, and alpha 0."""
        (*_, graft) = run.run.executor.grafts.values() or [None]
        if graft is not None and not graft.settled:
            (batch,) = task.held_out("judge")
            with torch.no_grad():
                losses = [task.loss(run.run.parts.model(batch[0]), batch).mean()]
                kept = graft.alpha.clone()
                graft.alpha.zero_()
                losses.append(task.loss(run.run.parts.model(batch[0]), batch).mean())
                graft.alpha.copy_(kept)
            read[run.session.steps_done] = [float(loss) for loss in losses]

    local.train(180, after_step=look)
    first = next(r.measure for r in results(local, "measure") if r.measure.label.startswith("verdict"))
    assert len(first.arm_steps) == 2
    for step, arm, control in zip(first.arm_steps, first.arm_losses, first.control_losses, strict=True):
        assert (arm, control) == pytest.approx(read[step], rel=1e-5)
    assert first.paired.mean < 0.9 * first.paired.control_mean


def test_a_culled_graft_leaves_the_host_as_it_is(start):
    local = start(bent(), nursery_steps=40, keep=False)
    local.train(180)
    (culled,) = [t for t in local.transitions if t.target is State.CULLED]
    assert "no state of its twin is at hand" in culled.reason
    assert not local.run.executor.grafts


def test_the_run_ends_at_its_best_validated_state(start):
    local = start(bent(), nursery_steps=40)
    local.train(160)
    local.session.end()
    assert local.session.returned_step > 0
    validations = [r for r in results(local, "measure") if r.measure.label == "validation"]
    assert len(validations) > 5 and all(math.isfinite(r.measure.arm_losses[0]) for r in validations)


def test_a_copy_of_a_model_that_is_at_hand_makes_the_model(start):
    blank = bent().build_model()
    local = start(replace(bent(), make_model=lambda: copy.deepcopy(blank)), nursery_steps=40)
    local.train(180)
    assert State.FOSSILIZED in {t.target for t in local.transitions}


# Interruptions


def test_candidates_begin_again_when_the_run_goes_back(start):
    local = start(noisy(), inserts=False, nursery_steps=40)
    local.train(50)
    parts, session, batch = local.run.parts, local.session, local.task.batch(50)
    with torch.no_grad():
        parts.model.into.weight.fill_(math.nan)
    assert session.step(batch, math.nan) is None  # a loss is read one step late
    assert session.step(batch, math.nan) is not None
    back_at = session.steps_done
    local.train(back_at + 60)
    assert back_at < 50
    (result,) = results(local, "trial")
    assert result.trial.host_steps == 40
    assert all(math.isfinite(curve.gain) for curve in curves(local))  # none has learned beside what was lost


def test_a_run_that_is_resumed_in_the_middle_of_a_trial_tries_its_candidates_again(tmp_path):
    options = {"nursery_steps": 40, "checkpoint_every_steps": 10}
    local = begin(tmp_path / "run", bent(), **options)
    local.train(55)
    assert local.run.outstanding and not results(local, "trial")
    let_go(local)
    again = begin(tmp_path / "run", bent(), shelf=local.shelf, **options)
    again.session.resume(*CheckpointStore(tmp_path / "run" / "checkpoints").latest())
    assert again.session.steps_done == 50
    again.train(220)
    (trial,) = results(again, "trial")
    assert trial.trial.host_steps == 40
    assert State.FOSSILIZED in {t.target for t in again.transitions}
    again.close()
