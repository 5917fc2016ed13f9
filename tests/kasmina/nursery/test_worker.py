"""Jobs: message in, messages out. Whatever goes wrong is a result too."""

from pathlib import Path

import pytest
import torch
from torch import nn

from esper.api.common.v1 import seed_pb2, training_pb2
from esper.api.kasmina.v1 import nursery_pb2
from esper.errors import NotFound
from esper.kasmina.codec import read_curve, read_paired, write_assignment, write_graft
from esper.kasmina.lifecycle import SeedId, State
from esper.kasmina.nursery.measure import read
from esper.kasmina.nursery.trial import TrialOptions, run_trial
from esper.kasmina.nursery.worker import NurseryWorker, failed
from esper.kasmina.regrow import GraftSpec
from esper.tolaria.replay import Replay, make_run
from esper.tolaria.snapshot import capture, load
from tests import builders
from tests.kasmina.nursery.runs import candidate, regression

RUN = "run-1"
FACTORY = "tests.kasmina.nursery.test_worker:task"


def task(scale=1.0):
    """The task that workers import by name."""
    return regression(lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)))


class Office:
    """A worker with its folder, and what it said."""

    def __init__(self, folder):
        self.folder = folder
        self.kernels = {
            title: builders.kernel(title=title, artifact_id=title)
            for title in ("bottleneck_mlp", "low_rank", "wide_mlp")
        }
        self.worker = NurseryWorker(make_run, self.kernel, folder)
        self.said = []

    def kernel(self, artifact_id):
        if artifact_id not in self.kernels:
            raise NotFound(f"no kernel {artifact_id} here")
        return self.kernels[artifact_id]

    def do(self, stop=lambda: False, **work):
        job = nursery_pb2.Job(job_id=f"{RUN}/job/1", run_id=RUN, **work)
        self.said.clear()
        self.worker.do(job, self.said.append, stop)
        assert all((r.job_id, r.run_id) == (job.job_id, RUN) for r in self.said)
        assert self.said[-1].wall_s > 0
        return self.said[-1]

    def point(self, run, grafts=()):
        path = self.folder / f"point-{run.step}.safetensors"
        run.save(path, model_only=False)
        return nursery_pb2.RunPoint(task=reference(), snapshot=snapshot(path, run.step), grafts=grafts)


def reference():
    return training_pb2.TaskReference(factory=FACTORY)


def snapshot(path, step):
    return training_pb2.SnapshotReference(step=step, path=str(path))


@pytest.fixture
def office(tmp_path):
    return Office(tmp_path)


def started(steps=4):
    run = Replay(task(), site_names=["0"])
    for _ in range(steps):
        run.update(run.gradients())
    return run


def assignments(*titles, site="0"):
    return [write_assignment(builders.assignment(SeedId(site, i), artifact_id=t), RUN) for i, t in enumerate(titles)]


def test_a_trial_is_that_of_its_candidates_at_its_point(office):
    run = started()
    trial = nursery_pb2.Trial(
        point=office.point(run),
        event_id="e1",
        candidates=assignments("bottleneck_mlp", "low_rank"),
        steps=6,
        measure_every_steps=3,
        random_seed=5,
    )
    result = office.do(trial=trial)
    assert not result.failure.code and result.trial.event_id == "e1"
    assert (result.trial.host_steps, result.trial.batched) == (6, True)

    from esper.kasmina.kernel import weights_seed

    here = [
        candidate(run, "0", i, title=t, weights_seed=weights_seed(5, f"0/{i}", t, "e1"))
        for i, t in enumerate(("bottleneck_mlp", "low_rank"))
    ]
    expected = run_trial(run, here, TrialOptions(steps=6, measure_every_steps=3))
    assert [read_curve(curve) for curve in result.trial.curves] == expected.curves
    assert result.flops == expected.flops


def test_a_trial_stops_on_request_with_what_it_has(office):
    asked = []
    trial = nursery_pb2.Trial(
        point=office.point(started()), candidates=assignments("low_rank"), steps=50, measure_every_steps=2
    )
    result = office.do(trial=trial, stop=lambda: asked.append(1) or len(asked) > 4)
    assert result.trial.host_steps == 4 and len(result.trial.curves[0].points) == 2


def test_a_candidate_that_cannot_be_tried_is_told_in_its_curve(office):
    office.kernels["misfit"] = builders.kernel(builders.interface(channels=9), artifact_id="misfit")
    trial = nursery_pb2.Trial(
        point=office.point(started()), candidates=assignments("misfit", "low_rank"), steps=2, measure_every_steps=2
    )
    result = office.do(trial=trial)
    assert not result.failure.code
    assert result.trial.curves[0].failure.message.startswith("raised RuntimeError")
    assert result.trial.curves[1].points


def test_a_twin_tells_of_each_state_and_then_of_all(office):
    result = office.do(twin=nursery_pb2.Twin(point=office.point(started(4)), save_steps=[6, 9]))
    partial = [r.twin for r in office.said[:-1]]
    assert [t.partial for t in partial] == [True, True] and not result.twin.partial
    assert [s.step for t in partial for s in t.snapshots] == [s.step for s in result.twin.snapshots] == [6, 9]
    expected = started(9)
    for saved in result.twin.snapshots:
        assert saved.size_bytes > 0 and load(Path(saved.path)).step == saved.step
    last = load(office.folder / "run-1-job-1-9.safetensors")
    assert all(torch.equal(last.tensors[f"model.{n}"], v) for n, v in expected.model.state_dict().items())


def grown(office, state=State.STABILIZATION, title="bottleneck_mlp"):
    """(run with a stirred graft, its spec, its snapshot)."""
    spec = GraftSpec(SeedId("0", 0), title, state, alpha=1.0)
    run = Replay(task(), None, [spec], {title: office.kernels[title]})
    builders.stir(run.grafts[spec.seed])
    run.step = 7
    path = office.folder / "arm.safetensors"
    capture(run.parts, 7, model_only=True).save(path)
    return run, spec, snapshot(path, 7)


def test_a_measurement_pairs_arms_with_controls(office):
    run, spec, saved = grown(office)
    arm = nursery_pb2.Arm(snapshot=saved, grafts=[write_graft(spec, RUN)])
    control = nursery_pb2.Arm(snapshot=saved, grafts=[write_graft(spec, RUN)], off=[seed_pb2.SeedRef(site="0", slot=0)])
    result = office.do(
        measure=nursery_pb2.Measure(task=reference(), slice="judge", arms=[arm], controls=[control], label="verdict")
    )
    assert result.measure.label == "verdict" and list(result.measure.arm_steps) == [7]
    with_graft = read(run, ("judge",))
    run.take_out(spec)
    without = read(run, ("judge",))
    assert list(result.measure.arm_losses) == pytest.approx([with_graft.loss])
    assert list(result.measure.control_losses) == pytest.approx([without.loss])
    seen = read_paired(result.measure.paired)
    assert seen.mean == pytest.approx(with_graft.loss) and seen.control_mean == pytest.approx(without.loss)
    assert seen.mean != pytest.approx(seen.control_mean)


def test_validation_is_on_both_validation_slices_without_a_control(office):
    run, spec, saved = grown(office)
    arm = nursery_pb2.Arm(snapshot=saved, grafts=[write_graft(spec, RUN)])
    result = office.do(measure=nursery_pb2.Measure(task=reference(), slice="validation", arms=[arm]))
    assert list(result.measure.arm_losses) == pytest.approx([read(run, ("select", "judge")).loss])
    assert not result.measure.HasField("paired")


def test_a_control_run_starts_from_first_weights_with_its_grafts_in_place(office):
    spec = GraftSpec(SeedId("0", 0), "bottleneck_mlp", State.FOSSILIZED)
    work = nursery_pb2.ControlRun(
        task=reference(), grafts=[write_graft(spec, RUN)], steps=6, validate_every_steps=3, label="static-final"
    )
    result = office.do(control_run=work)
    found = result.control_run
    assert found.label == "static-final" and [point.step for point in found.losses] == [3, 6]
    grown_run = Replay(task(), None, [spec], office.kernels)
    assert found.parameter_count == sum(p.numel() for p in grown_run.model.parameters())
    assert found.test_loss > 0 and result.flops > 0
    assert not list(office.folder.glob("*.safetensors"))  # the best state was its own business


WORK = {
    "trial": {"trial": nursery_pb2.Trial(event_id="e9", steps=1, measure_every_steps=1)},
    "twin": {"twin": nursery_pb2.Twin()},
    "measure": {"measure": nursery_pb2.Measure(label="verdict:9", arms=[nursery_pb2.Arm()])},
    "control_run": {"control_run": nursery_pb2.ControlRun(label="never-grown")},
}


@pytest.mark.parametrize("kind", WORK)
def test_a_job_that_cannot_be_done_says_which_and_why(office, kind):
    result = office.do(**WORK[kind])
    assert result.failure.code == 13 and "task" in result.failure.message
    assert result.WhichOneof("result") == kind
    said = {"trial": result.trial.event_id, "measure": result.measure.label, "control_run": result.control_run.label}
    assert said.get(kind, "") == {"trial": "e9", "measure": "verdict:9", "control_run": "never-grown"}.get(kind, "")


def test_a_job_without_work_is_refused(office):
    result = office.do()
    assert result.failure.message == "job run-1/job/1 asks for no work" and result.WhichOneof("result") is None


def test_errors_of_the_users_code_carry_their_class(office):
    job = nursery_pb2.Job(job_id="j", run_id=RUN)
    assert failed(job, ZeroDivisionError("oops")).failure.message == "ZeroDivisionError: oops"
    assert failed(job, NotFound("no such thing")).failure.message == "no such thing"


def test_a_missing_kernel_fails_the_job_and_names_it(office):
    spec = write_graft(GraftSpec(SeedId("0", 0), "unknown", State.STABILIZATION), RUN)
    twin = nursery_pb2.Twin(point=office.point(started(), [spec]), save_steps=[5])
    assert office.do(twin=twin).failure.message == "no kernel unknown here"
