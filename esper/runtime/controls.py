"""The two runs a grown model is compared with, and the summary of all three."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from google.protobuf.timestamp_pb2 import Timestamp

from esper.api.common.v1 import training_pb2
from esper.api.kasmina.v1 import nursery_pb2
from esper.api.nissa.v1 import observability_pb2
from esper.kasmina.codec import write_graft
from esper.kasmina.regrow import GraftSpec
from esper.nissa.lineage import lineage_of
from esper.nissa.seeds import CULLED
from esper.runtime.rebuild import fossils_of
from esper.runtime.runs import StoredRun
from esper.tolaria.asked import asked
from esper.tolaria.codec import write_task
from esper.tolaria.task import TaskReference

GROWN, NEVER_GROWN, STATIC_FINAL = "grown", "never-grown", "static-final"


def control_jobs(run: StoredRun, validate_every_steps: int) -> list[nursery_pb2.Job]:
    """A run from scratch without growth, and one with the final grafts in place from step 0.

    Both take the run's random seed, its batches, and the steps it had done when it ended. A folded
    fossil has added no parameters, so that a static model of the final size does not have it.
    """
    spec, steps = run.spec, run.result["steps"]
    task = write_task(TaskReference(spec["task"], spec["arguments"], tuple(spec["import_paths"])))
    grafts = [graft for graft in fossils_of(run) if not graft.folded]
    return [
        _job(run.run_id, NEVER_GROWN, task, [], steps, validate_every_steps),
        _job(run.run_id, STATIC_FINAL, task, grafts, steps, validate_every_steps),
    ]


def _job(
    run_id: str,
    label: str,
    task: training_pb2.TaskReference,
    grafts: Iterable[GraftSpec],
    steps: int,
    validate_every_steps: int,
) -> nursery_pb2.Job:
    work = nursery_pb2.ControlRun(
        task=task,
        grafts=[write_graft(graft, run_id) for graft in grafts],
        steps=steps,
        validate_every_steps=validate_every_steps,
        label=label,
    )
    job = nursery_pb2.Job(run_id=run_id, control_run=work)
    job.job_id = f"{run_id}/control/{asked(job)}/{label}"  # a run that went on has other controls
    return job


@dataclass(frozen=True, slots=True)
class Ended:
    """How many seeds a run's events say it fossilised for good, and how many it culled."""

    fossilised: int
    culled: int


def count_ends(run_id: str, events: Sequence[observability_pb2.RunEvent]) -> Ended:
    """From the run's events, in order."""
    fossils = [fossil for fossil in lineage_of(run_id, events).fossils if fossil.removed_step is None]
    culled = sum(event.HasField("transition") and event.transition.to == CULLED for event in events)
    return Ended(len(fossils), culled)


def summarise(
    run: StoredRun, results: Iterable[nursery_pb2.JobResult], ended: Ended, time: Timestamp
) -> observability_pb2.RunEvent:
    """The run beside its controls, as the event that ends it. A control that failed has no row."""
    said = run.result
    grown = observability_pb2.ArmSummary(
        arm=GROWN,
        test_loss=said["test_loss"],
        test_score=said["test_score"],
        parameters=said["parameters"],
        total_flops=said["train_flops"] + said["nursery_flops"],
        best_step=said["best_step"],
    )
    has_score = said["test_score"] is not None
    summary = observability_pb2.RunSummary(
        arms=[grown, *(_arm(result, has_score) for result in results if not result.failure.code)],
        train_flops=said["train_flops"],
        nursery_flops=said["nursery_flops"],
        stalled_steps=said["stalled_steps"],
        fossilised=ended.fossilised,
        culled=ended.culled,
    )
    return observability_pb2.RunEvent(run_id=run.run_id, time=time, step=said["steps"], summary=summary)


def _arm(result: nursery_pb2.JobResult, has_score: bool) -> observability_pb2.ArmSummary:
    found = result.control_run
    return observability_pb2.ArmSummary(
        arm=found.label,
        test_loss=found.test_loss,
        test_score=found.test_score if has_score else None,
        parameters=found.parameter_count,
        total_flops=result.flops,
        best_step=found.best_step,
    )
