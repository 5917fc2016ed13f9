"""Measurements of the run that no graft on trial asks for: validations of the whole, probes of fossils."""

from collections.abc import Iterable
from pathlib import Path

from esper.api.kasmina.v1 import nursery_pb2
from esper.kasmina.codec import write_seed_id
from esper.kasmina.lifecycle import SeedId
from esper.tolaria.run import Run


def submit_validation(run: Run) -> None:
    """Measure the run on all validation data."""
    task = run.task_message()
    snapshot = run.save_if_room("state", model_only=True, without="this validation is left out")
    if snapshot is None:
        return
    arm = nursery_pb2.Arm(snapshot=snapshot, grafts=run.graft_messages())
    work = nursery_pb2.Measure(task=task, slice="validation", arms=[arm], label="validation")
    due = run.step + run.settings.decision_every_steps
    run.submit(nursery_pb2.Job(measure=work, priority=20), due, [Path(snapshot.path)])


def cancel_validations(run: Run, *, after_step: int) -> None:
    """The run went back: nobody waits for validations of what was undone."""
    for job_id, outstanding in list(run.outstanding.items()):
        measure = outstanding.job.measure
        if measure.label == "validation" and measure.arms[0].snapshot.step > after_step:
            run.cancel(job_id)


def submit_probe(run: Run, probe_id: str, seeds: Iterable[SeedId]) -> None:
    """Measure the run against itself without each of several fossils. Raises Exhausted where the spool is full."""
    task = run.task_message()
    snapshot = run.save(f"probe-{probe_id}", model_only=True)
    path, grafts = Path(snapshot.path), run.graft_messages()
    for seed in seeds:
        off = write_seed_id(seed, run.run_id)
        work = nursery_pb2.Measure(
            task=task,
            slice="judge",
            arms=[nursery_pb2.Arm(snapshot=snapshot, grafts=grafts)],
            controls=[nursery_pb2.Arm(snapshot=snapshot, grafts=grafts, off=[off])],
            label=f"probe:{probe_id}:{seed}",
        )
        due = run.step + run.settings.decision_every_steps
        run.submit(nursery_pb2.Job(measure=work), due, [run.spool.hold(path)])
    run.spool.release(path)
