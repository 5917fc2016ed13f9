"""What growth sends to the nursery, and when: trials of events, twins and verdicts of grafts.

Nothing is decided here. A trial goes out when the last kernel of an event is loaded; a
twin when a graft is inserted; a verdict's measurement when its last snapshot and the
twin's are there.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from esper.api.common.v1 import seed_pb2, training_pb2
from esper.api.kasmina.v1 import nursery_pb2
from esper.kasmina.codec import write_assignment, write_seed_id
from esper.kasmina.executor import Assignment
from esper.kasmina.lifecycle import LIVE, SeedId, State
from esper.tolaria.run import Run

ROUNDS = (1, 2)  # the verdict and its repetition


@dataclass(slots=True)
class Event:
    """Seeds that germinated together and are tried together."""

    event_id: str
    seeds: list[SeedId]
    nursery_steps: int
    job_id: str = ""


@dataclass(slots=True)
class Round:
    """One verdict on one graft: what was captured of run and twin, and the job that compares them."""

    number: int
    steps: list[int]  # at which run and twin are captured
    arms: dict[int, nursery_pb2.Arm] = field(default_factory=dict)
    job_id: str = ""


@dataclass(slots=True)
class Adaptation:
    """One graft between insertion and its last verdict, with its twin."""

    seed: SeedId
    inserted_step: int
    rounds: list[Round]
    twin_job: str
    host: list[seed_pb2.Graft]  # the host's grafts at insertion, which are the twin's
    before: training_pb2.SnapshotReference  # the host then, which a run that is resumed may have to go back to
    twin: dict[int, training_pb2.SnapshotReference] = field(default_factory=dict)

    def files(self) -> list[Path]:
        arms = [arm.snapshot.path for number in self.rounds for arm in number.arms.values()]
        return [Path(path) for path in [self.before.path, *arms, *(ref.path for ref in self.twin.values())]]


@dataclass(slots=True)
class Adaptations:
    """The run's open events and grafts."""

    run: Run
    events: dict[str, Event] = field(default_factory=dict)
    grafts: dict[SeedId, Adaptation] = field(default_factory=dict)

    # Trials

    def begin_event(self, event_id: str, assignments: Iterable[Assignment], nursery_steps: int) -> None:
        self.events[event_id] = Event(event_id, [a.seed for a in assignments], nursery_steps)

    def submit_trials(self) -> None:
        """Send the trial of every event whose kernels are all loaded or refused."""
        run = self.run
        for event in list(self.events.values()):
            states = {seed: run.executor.table[seed].state for seed in event.seeds}
            if event.job_id or State.LOADING in states.values():
                continue
            ready = [seed for seed, state in states.items() if state is State.TRAINING]
            if not ready:
                del self.events[event.event_id]
            elif event.nursery_steps:
                event.job_id = self._submit_trial(event, ready)

    def _submit_trial(self, event: Event, ready: list[SeedId]) -> str:
        """Returns the job's id; "" where there is no room for it yet."""
        run, settings = self.run, self.run.settings
        point = self._trial_point(event)
        if point is None:
            return ""
        keep = settings.keep_candidates or (len(ready) + 1) // 2
        trial = nursery_pb2.Trial(
            point=point,
            event_id=event.event_id,
            candidates=[write_assignment(self._assignment(seed), run.run_id) for seed in ready],
            steps=event.nursery_steps,
            measure_every_steps=settings.measure_every_steps,
            halving_step=settings.halving_step,
            keep_candidates=keep if settings.halving_step else 0,
            random_seed=run.seed,
        )
        files = [Path(point.snapshot.path)] if point.HasField("snapshot") else []
        return run.submit(nursery_pb2.Job(trial=trial), run.step + event.nursery_steps, files)

    def _trial_point(self, event: Event) -> nursery_pb2.RunPoint | None:
        """The host as a worker needs it; None where there is no room. Beside the live host nothing is needed."""
        run = self.run
        if run.shadow is not None:
            return nursery_pb2.RunPoint()
        task = run.task_message()
        snapshot = run.save_if_room(f"trial-{event.event_id}", model_only=False, without="its trial waits")
        if snapshot is None:
            return None
        return nursery_pb2.RunPoint(task=task, snapshot=snapshot, grafts=run.graft_messages())

    def _assignment(self, seed_id: SeedId) -> Assignment:
        seed = self.run.executor.table[seed_id]
        return Assignment(seed_id, seed.artifact_id, seed.title, seed.family, seed.strategy, seed.span)

    # Twins and verdicts

    def inserted(self, seed: SeedId, point: nursery_pb2.RunPoint) -> None:
        """A graft was inserted into the host that `point` holds: its twin goes on from there, where one can be run."""
        run, settings = self.run, self.run.settings
        first = run.step + settings.verdict_steps
        second = first + settings.fine_tune_steps
        gaps = [settings.snapshot_gap_steps * k for k in reversed(range(settings.verdict_snapshots))]
        rounds = [
            Round(number, [end - gap for gap in gaps]) for number, end in zip(ROUNDS, (first, second), strict=True)
        ]
        last = second + settings.max_twin_lag_steps
        every = settings.decision_every_steps
        decisions = range(first // every * every, last + every, every)
        saves = sorted({*(s for r in rounds for s in r.steps), *(s for s in decisions if s >= first)})
        job_id = ""
        if run.shadow is None:
            twin = nursery_pb2.Twin(point=point, save_steps=saves)
            job_id = run.submit(nursery_pb2.Job(twin=twin), second, [run.spool.hold(Path(point.snapshot.path))])
        self.grafts[seed] = Adaptation(seed, run.step, rounds, job_id, list(point.grafts), point.snapshot)

    def point_before(self, seed: SeedId) -> nursery_pb2.RunPoint:
        """The host before an insertion."""
        task = self.run.task_message()
        snapshot = self.run.save(f"before-{seed.site}-{seed.slot}", model_only=False)
        return nursery_pb2.RunPoint(task=task, snapshot=snapshot, grafts=self.run.graft_messages())

    def on_step(self) -> None:
        """Capture the run for the verdicts that want this step."""
        run = self.run
        for adaptation in self.grafts.values():
            for verdict in [r for r in adaptation.rounds if run.step in r.steps]:
                snapshot = run.save_if_room(
                    f"arm-{verdict.number}", model_only=True, without=f"the verdict on {adaptation.seed} does without"
                )
                if snapshot is None:
                    verdict.steps.remove(run.step)
                else:
                    verdict.arms[run.step] = nursery_pb2.Arm(snapshot=snapshot, grafts=run.graft_messages())

    def capturing(self, seed: SeedId) -> bool:
        """Whether the first of a graft's snapshots has been taken."""
        adaptation = self.grafts.get(seed)
        return adaptation is not None and bool(adaptation.rounds[0].arms)

    def twin_saved(self, job_id: str, snapshots: Iterable[training_pb2.SnapshotReference]) -> None:
        """States of a twin arrived; one that is here already is the same."""
        owner = self._of_twin(job_id)
        for snapshot in snapshots:
            if snapshot.step not in owner.twin:
                owner.twin[snapshot.step] = snapshot
                self.run.spool.hold(Path(snapshot.path), snapshot.size_bytes)

    def twin_steps(self, job_id: str) -> set[int]:
        """Steps at which a twin's state is here."""
        return set(self._of_twin(job_id).twin)

    def submit_verdicts(self) -> None:
        """Send every verdict whose snapshots are complete; against ablation where the twin lags too far."""
        for adaptation in self.grafts.values():
            for verdict in adaptation.rounds:
                complete = not verdict.job_id and len(verdict.arms) == len(verdict.steps)
                if complete and (arms := self._controls(adaptation, verdict)) is not None:
                    verdict.job_id = self._submit_verdict(adaptation, verdict, *arms)

    def _controls(self, adaptation: Adaptation, verdict: Round) -> tuple[list[nursery_pb2.Arm], str] | None:
        """What the arms are held against, and its name; None while the twin may still come."""
        if all(step in adaptation.twin for step in verdict.steps):
            arms = [nursery_pb2.Arm(snapshot=adaptation.twin[s], grafts=adaptation.host) for s in verdict.steps]
            return arms, "twin"
        lag = self.run.step - max(verdict.steps)
        twin_lost = adaptation.twin_job not in self.run.outstanding
        if not twin_lost and lag <= self.run.settings.max_twin_lag_steps:
            return None
        off = write_seed_id(adaptation.seed, self.run.run_id)
        return [
            nursery_pb2.Arm(snapshot=a.snapshot, grafts=a.grafts, off=[off]) for a in verdict.arms.values()
        ], "ablation"

    def _submit_verdict(
        self, adaptation: Adaptation, verdict: Round, controls: list[nursery_pb2.Arm], control: str
    ) -> str:
        work = nursery_pb2.Measure(
            task=self.run.task_message(),
            slice="judge",
            arms=verdict.arms.values(),
            controls=controls,
            label=f"verdict:{adaptation.seed}:{verdict.number}:{control}",
        )
        files = [self.run.spool.hold(Path(arm.snapshot.path)) for arm in [*work.arms, *work.controls]]
        return self.run.submit(nursery_pb2.Job(measure=work, priority=10), self.run.step, files)

    def latest_twin(self, seed: SeedId) -> training_pb2.SnapshotReference | None:
        """The twin's state at the run's step, or the latest before it that is not over `max_twin_lag_steps` old.

        None too where other grafts of the host have come or gone since: the twin's host is not this one then.
        """
        adaptation = self.grafts.get(seed)
        if adaptation is None:
            return None
        steps = [s for s in adaptation.twin if s <= self.run.step]
        others = {_name(g) for g in self.run.graft_messages()} - {(seed.site, seed.slot)}
        if others != {_name(g) for g in adaptation.host}:
            return None
        if not steps or self.run.step - max(steps) > self.run.settings.max_twin_lag_steps:
            return None
        return adaptation.twin[max(steps)]

    def closed(self, seed: SeedId) -> None:
        """The graft has had its last verdict, or is gone: its twin need not go on."""
        adaptation = self.grafts.pop(seed, None)
        if adaptation is not None and adaptation.twin_job in self.run.outstanding:
            self.run.cancel(adaptation.twin_job)
        for path in adaptation.files() if adaptation else []:
            self.run.spool.release(path)

    def forget_gone(self) -> None:
        """Close what no longer lives in the host, and events none of whose seeds is still being tried."""
        table = self.run.executor.table
        for seed in [s for s in self.grafts if table[s].state not in LIVE]:
            self.closed(seed)
        trying = (State.LOADING, State.TRAINING)
        for event in [e for e in self.events.values() if all(table[s].state not in trying for s in e.seeds)]:
            del self.events[event.event_id]

    def _of_twin(self, job_id: str) -> Adaptation:
        return next(a for a in self.grafts.values() if a.twin_job == job_id)


def _name(graft: seed_pb2.Graft) -> tuple[str, int]:
    return graft.seed.site, graft.seed.slot
