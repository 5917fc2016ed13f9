"""Do nursery jobs: message in, messages out. Runs in a worker process, or in place for a run without services."""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from esper.api.common.v1 import training_pb2
from esper.api.kasmina.v1 import control_pb2, nursery_pb2
from esper.errors import EsperError, InvalidRequest
from esper.kasmina.codec import read_assignment, read_graft, read_seed_id, write_curve, write_paired
from esper.kasmina.kernel import Kernel, weights_seed
from esper.kasmina.nursery.control_run import run_control
from esper.kasmina.nursery.measure import Measurement, measure
from esper.kasmina.nursery.port import HostRun
from esper.kasmina.nursery.trial import Candidate, TrialOptions, TrialOutcome, run_trial
from esper.kasmina.nursery.twin import Saved, run_twin
from esper.kasmina.regrow import GraftSpec

Emit = Callable[[nursery_pb2.JobResult], None]
Stop = Callable[[], bool]
SLICES = {"validation": ("select", "judge")}


class MakeRun(Protocol):
    """Makes a run's host again. Tolaria provides it."""

    def __call__(
        self,
        task: training_pb2.TaskReference,
        snapshot: Path | None,
        grafts: Sequence[GraftSpec],
        kernels: dict[str, Kernel],
        *,
        site_names: Iterable[str] = (),
        without: Iterable[GraftSpec] = (),
        fresh_weights_seed: int | None = None,
    ) -> HostRun: ...


class NurseryWorker:
    """Does one job at a time. `kernel(artifact_id)` returns a verified kernel."""

    def __init__(self, make_run: MakeRun, kernel: Callable[[str], Kernel], folder: Path) -> None:
        self.make_run = make_run
        self.kernel = kernel
        self.folder = folder

    def do(self, job: nursery_pb2.Job, emit: Emit, stop: Stop = lambda: False) -> None:
        """Do a job and emit its result, and before it what is partial. A failure is a result too."""
        began = time.perf_counter()
        kind = job.WhichOneof("work")
        try:
            if kind is None:
                raise InvalidRequest(f"job {job.job_id} asks for no work")
            result: nursery_pb2.JobResult = getattr(self, f"_{kind}")(job, emit, stop)
        except Exception as error:  # the user's model, data and kernels may raise anything; the run must hear of it
            result = failed(job, error)
        result.job_id, result.run_id = job.job_id, job.run_id
        result.wall_s = time.perf_counter() - began
        emit(result)

    def _trial(self, job: nursery_pb2.Job, emit: Emit, stop: Stop) -> nursery_pb2.JobResult:
        trial = job.trial
        names = {candidate.seed.site for candidate in trial.candidates}
        run = self._host(trial.point, names)
        found = run_trial(run, candidates_of(trial, self.kernel), options_of(trial), stop=stop)
        return trial_result(job, found)

    def _twin(self, job: nursery_pb2.Job, emit: Emit, stop: Stop) -> nursery_pb2.JobResult:
        run = self._host(job.twin.point)
        folder = Path(job.twin.point.snapshot.path).parent

        def tell(saved: Saved, _flops: float) -> None:
            partial = nursery_pb2.TwinResult(snapshots=[_reference(saved)], partial=True)
            emit(nursery_pb2.JobResult(job_id=job.job_id, run_id=job.run_id, twin=partial))

        name = job.job_id.replace("/", "-")
        found = run_twin(run, list(job.twin.save_steps), folder, name, on_saved=tell, stop=stop)
        snapshots = [_reference(saved) for saved in found.saved]
        return nursery_pb2.JobResult(twin=nursery_pb2.TwinResult(snapshots=snapshots), flops=found.flops)

    def _measure(self, job: nursery_pb2.Job, emit: Emit, stop: Stop) -> nursery_pb2.JobResult:
        work = job.measure
        arms = [self._arm(work.task, arm) for arm in work.arms]
        controls = [self._arm(work.task, arm) for arm in work.controls]
        found = measure(arms, controls, SLICES.get(work.slice, (work.slice,)))
        return nursery_pb2.JobResult(measure=_write_measurement(work, found), flops=found.flops)

    def _arm(self, task: training_pb2.TaskReference, arm: nursery_pb2.Arm) -> Callable[[], HostRun]:
        specs = [read_graft(graft) for graft in arm.grafts]
        off = {read_seed_id(seed) for seed in arm.off}
        without = [spec for spec in specs if spec.seed in off]
        path = Path(arm.snapshot.path)
        return lambda: self.make_run(task, path, specs, self._kernels(specs), without=without)

    def _control_run(self, job: nursery_pb2.Job, emit: Emit, stop: Stop) -> nursery_pb2.JobResult:
        work = job.control_run
        specs = [read_graft(graft) for graft in work.grafts]
        run = self.make_run(work.task, None, specs, self._kernels(specs), fresh_weights_seed=0)
        best_file = self.folder / f"{job.job_id.replace('/', '-')}.safetensors"
        found = run_control(run, work.steps, work.validate_every_steps, best_file, stop=stop)
        best_file.unlink(missing_ok=True)
        answer = nursery_pb2.ControlRunResult(
            label=work.label,
            test_loss=found.test.loss,
            test_score=found.test.score or 0.0,
            best_validation_loss=found.best_validation_loss,
            best_step=found.best_step,
            parameter_count=found.parameter_count,
            losses=[nursery_pb2.LossPoint(step=s, train_loss=t, validation_loss=v) for s, t, v in found.losses],
        )
        return nursery_pb2.JobResult(control_run=answer, flops=found.flops)

    def _host(self, point: nursery_pb2.RunPoint, site_names: Iterable[str] = ()) -> HostRun:
        specs = [read_graft(graft) for graft in point.grafts]
        return self.make_run(point.task, Path(point.snapshot.path), specs, self._kernels(specs), site_names=site_names)

    def _kernels(self, specs: Sequence[GraftSpec]) -> dict[str, Kernel]:
        return {spec.artifact_id: self.kernel(spec.artifact_id) for spec in specs if not spec.folded}


def candidates_of(trial: nursery_pb2.Trial, kernel: Callable[[str], Kernel]) -> list[Candidate]:
    """A trial's candidates, their kernels from `kernel(artifact_id)`."""

    def candidate(message: control_pb2.Assignment) -> Candidate:
        assigned = read_assignment(message)
        seed = weights_seed(trial.random_seed, str(assigned.seed), assigned.artifact_id, trial.event_id)
        return Candidate(assigned.seed, kernel(assigned.artifact_id), seed, assigned.strategy, assigned.span)

    return [candidate(message) for message in trial.candidates]


def options_of(trial: nursery_pb2.Trial) -> TrialOptions:
    return TrialOptions(
        steps=trial.steps,
        measure_every_steps=trial.measure_every_steps,
        halving_step=trial.halving_step,
        keep_candidates=trial.keep_candidates,
    )


def trial_result(job: nursery_pb2.Job, found: TrialOutcome) -> nursery_pb2.JobResult:
    """The result of a trial job, ids and all."""
    answer = nursery_pb2.TrialResult(
        event_id=job.trial.event_id,
        curves=[write_curve(curve, job.run_id) for curve in found.curves],
        host_steps=found.host_steps,
        batched=found.batched,
    )
    return nursery_pb2.JobResult(job_id=job.job_id, run_id=job.run_id, trial=answer, flops=found.flops)


def failed(job: nursery_pb2.Job, error: Exception) -> nursery_pb2.JobResult:
    """The result of a job that could not be done: what it was, and why."""
    result = nursery_pb2.JobResult(job_id=job.job_id, run_id=job.run_id)
    text = str(error) if isinstance(error, EsperError) else f"{type(error).__name__}: {error}"
    result.failure.code, result.failure.message = 13, text
    kind = job.WhichOneof("work")
    if kind == "trial":
        result.trial.event_id = job.trial.event_id
    elif kind == "measure":
        result.measure.label = job.measure.label
    elif kind == "control_run":
        result.control_run.label = job.control_run.label
    elif kind == "twin":
        result.twin.SetInParent()
    return result


def _reference(saved: Saved) -> training_pb2.SnapshotReference:
    return training_pb2.SnapshotReference(step=saved.step, path=str(saved.path), size_bytes=saved.size_bytes)


def _write_measurement(work: nursery_pb2.Measure, found: Measurement) -> nursery_pb2.MeasureResult:
    return nursery_pb2.MeasureResult(
        label=work.label,
        arm_losses=[reading.loss for reading in found.arms],
        control_losses=[reading.loss for reading in found.controls],
        paired=write_paired(found.paired) if found.paired is not None else None,
        arm_scores=[reading.score for reading in found.arms if reading.score is not None],
        arm_steps=[arm.snapshot.step for arm in work.arms],
    )
