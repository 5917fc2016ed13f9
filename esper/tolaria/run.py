"""One run as the session holds it: the model's parts, its seeds, its clock, its ties to the outside."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from esper.api.common.v1 import seed_pb2, training_pb2
from esper.api.kasmina.v1 import nursery_pb2
from esper.api.tolaria.v1 import trainer_pb2
from esper.blueprint.infer import infer
from esper.errors import Exhausted, PreconditionFailed
from esper.kasmina.cache import KernelCache
from esper.kasmina.codec import write_graft
from esper.kasmina.executor import Executor
from esper.kasmina.lifecycle import SeedId, State
from esper.tolaria import generators
from esper.tolaria.asked import asked
from esper.tolaria.codec import write_task
from esper.tolaria.journal import Journal
from esper.tolaria.line import Line, Loaded, Message
from esper.tolaria.ranks import Ranks
from esper.tolaria.settings import Budget, GrowthSettings
from esper.tolaria.snapshot import Snapshot, capture, load
from esper.tolaria.spool import Spool
from esper.tolaria.step import Parts
from esper.tolaria.task import Task

if TYPE_CHECKING:
    from esper.tolaria.shadow import ShadowNursery


@dataclass(slots=True)
class Outstanding:
    """A job whose answer has not arrived, and the spool files it reads."""

    job: nursery_pb2.Job
    due_step: int
    files: list[Path]


@dataclass(slots=True)
class Run:
    """State shared by the parts of a session. Only the training thread changes it."""

    run_id: str
    directory: Path
    parts: Parts
    executor: Executor
    line: Line
    spool: Spool
    settings: GrowthSettings
    budget: Budget
    task: Task | None
    journal: Journal | None = None  # of what reached this run from outside
    cache: KernelCache | None = None  # where kernels of this process lie ready
    shadow: "ShadowNursery | None" = None  # does this run's nursery jobs here; None: they go out on the line
    ranks: Ranks | None = None  # that train this model together; None: this process alone
    total_steps: int = 0
    seed: int = 0
    deterministic: bool = False
    step: int = 0
    sequence: int = 0  # decision points
    jobs: int = 0  # jobs ever made, for their ids
    files: int = 0  # snapshots ever spooled for jobs, for their names
    checkpoint_files: int = 0  # and for checkpoints
    loading: int = 0  # kernels asked for and not answered
    refused: list[Loaded] = field(default_factory=list)  # kernels that are not asked for again, and not told yet
    recoveries: dict[str, int] = field(default_factory=dict)  # faults, by what was done about them
    outstanding: dict[str, Outstanding] = field(default_factory=dict)
    muted: bool = False  # a journal is replayed
    train_flops: float = 0.0
    host_step_flops: float = 0.0  # of one training step of the host without grafts
    step_flops: float = 0.0  # of one training step as the model is now
    batch_rows: int = 0  # training examples per step
    nursery_flops: float = 0.0
    initial_parameters: int = 0
    events: int = 0
    insertions: int = 0
    _copies: dict[int, Snapshot] | None = None  # made at this decision point, by the seeds' moves before

    def task_message(self) -> training_pb2.TaskReference:
        """How a worker makes the task; empty where no worker is asked.

        Raises PreconditionFailed where one is, and nothing importable was given.
        """
        if self.shadow is not None:
            return training_pb2.TaskReference()
        if self.task is None or self.task.reference is None:
            raise PreconditionFailed(
                "the nursery needs an importable task to make this model elsewhere; "
                'give esper.Session(task="module:factory"), a callable that returns an esper.Task'
            )
        return write_task(self.task.reference)

    @contextlib.contextmanager
    def sharing_copies(self) -> Iterator[None]:
        """Inside, where no step is taken, one copy of the run serves all who ask until a seed moves."""
        self._copies = {}
        try:
            yield
        finally:
            self._copies = None

    def capture(self, *, model_only: bool = False) -> Snapshot:
        """The run as it is now."""
        if self._copies is None:
            return capture(self.parts, self.step, model_only=model_only)
        moves = self.executor.table.moves
        if moves not in self._copies:
            self._copies[moves] = capture(self.parts, self.step)
        return self._copies[moves].model_only() if model_only else self._copies[moves]

    def save(self, name: str, *, model_only: bool) -> training_pb2.SnapshotReference:
        """Copy the run's state now. The file is written off the training thread, before any message posted later."""
        self.files += 1
        snapshot = self.capture(model_only=model_only)
        return self.spool_snapshot(snapshot, f"{name}-{snapshot.step}-{self.files}.safetensors")

    def write(self, snapshot: Snapshot, name: str) -> training_pb2.SnapshotReference:
        """As `save`, of a state that is captured already and that checkpoints alone name. Raises Exhausted.

        These are counted apart: jobs read the others, and a checkpoint more or less must not give them other names.
        """
        self.checkpoint_files += 1
        return self.spool_snapshot(snapshot, f"{name}-{snapshot.step}-{self.checkpoint_files}.safetensors")

    def save_if_room(self, name: str, *, model_only: bool, without: str) -> training_pb2.SnapshotReference | None:
        """As `save`; where the nursery is so far behind that the spool is full, training goes on `without`."""
        try:
            return self.save(name, model_only=model_only)
        except Exhausted as error:
            self.post_note("warning", f"{error}; {without}")
            return None

    def spool_snapshot(self, snapshot: Snapshot, name: str) -> training_pb2.SnapshotReference:
        """Have a snapshot written to the spool; its first use is counted."""
        path = self.spool.reserve(name, snapshot.size_bytes)
        self.line.post(lambda: snapshot.save(path))
        return training_pb2.SnapshotReference(step=snapshot.step, path=str(path), size_bytes=snapshot.size_bytes)

    def read_snapshot(self, path: Path) -> Snapshot:
        """Load a spooled snapshot. Of several ranks the first one reads it for all, and each keeps its own generators.

        Raises NotFound, Corrupt.
        """
        if self.ranks is None:
            return load(path)
        read: list[Snapshot] = []

        def whole() -> bytes:
            read.append(load(path))
            return path.read_bytes()

        data = self.ranks.share(whole)
        if not self.ranks.first:
            copied = self.directory / "shared.safetensors"
            copied.write_bytes(data)
            read.append(self.with_own_generators(load(copied)))
            copied.unlink()
        return read[0]

    def with_own_generators(self, snapshot: Snapshot) -> Snapshot:
        """Off the first rank, a snapshot of the first one's state goes with this rank's generators as they are.

        They draw for another share of the batch.
        """
        if self.ranks is None or self.ranks.first or snapshot.random is None:
            return snapshot
        return replace(snapshot, random=generators.capture(self.parts.model))

    def graft_messages(self) -> list[seed_pb2.Graft]:
        """The grafts in the host now, oldest first."""
        return [write_graft(spec, self.run_id) for spec in self.executor.specs()]

    def submit(self, job: nursery_pb2.Job, due_step: int, files: Sequence[Path]) -> str:
        """Queue a job for the nursery; a deterministic run waits for its answer at `due_step`.

        Returns its id, which says what it asks, so that an answer to another question is none to it.
        """
        self.jobs += 1
        job.run_id, job.due_step = self.run_id, due_step
        question = asked(job, self.journal.course if self.journal is not None else "")
        job.job_id = f"{self.run_id}/{job.WhichOneof('work')}/{question}/{self.jobs}"
        self.outstanding[job.job_id] = Outstanding(job, due_step, list(files))
        self._send(job)
        return job.job_id

    def post(self, make: Message) -> None:
        """Send a message, unless a replay repeats what was sent before."""
        if not self.muted:
            self.line.post(make)

    def unmute(self) -> None:
        """The replay is over: ask again for what has no answer yet. The nursery takes the same job once."""
        self.muted = False
        for outstanding in self.outstanding.values():
            self._send(outstanding.job)
        self.loading = 0
        for seed in self.executor.table.in_states((State.LOADING,)):
            self.load(seed.id, seed.artifact_id)

    def load(self, seed: SeedId, artifact_id: str) -> None:
        """Ask for a seed's kernel; its answer arrives, or is in the journal that is replayed."""
        self.loading += 1
        if self.muted:
            return
        # several ranks see different faults, and all of them or none must ask
        why = self.executor.breaker.why_open(artifact_id) if self.ranks is None else ""
        if why:
            self.refused.append(Loaded(seed, artifact_id, None, why, refused=True))
        else:
            self.line.load_kernel(seed, artifact_id, self.executor.offered(seed))

    def count_recovery(self, strategy: str, faults: int = 1) -> None:
        """Say how faults were got over: retry, fallback, circuit_breaker, graceful_degradation or escalation."""
        self.recoveries[strategy] = self.recoveries.get(strategy, 0) + faults

    def post_note(self, level: str, text: str) -> None:
        """Say something to people."""
        self.post(lambda: trainer_pb2.AttachRequest(note=trainer_pb2.Note(level=level, source="tolaria", text=text)))

    def _send(self, job: nursery_pb2.Job) -> None:
        if self.shadow is not None:
            if not self.muted:
                self.shadow.submit(job)
            return
        self.post(lambda: trainer_pb2.AttachRequest(job=job))

    def cancel(self, job_id: str) -> None:
        """An answer is not wanted any more; one that is on its way will be dropped."""
        self.settle(job_id)
        if self.shadow is not None:
            self.shadow.cancel(job_id)
        else:
            self.post(lambda: trainer_pb2.AttachRequest(cancelled_job=job_id))

    def settle(self, job_id: str) -> None:
        """The job's answer is here: its files may go."""
        done = self.outstanding.pop(job_id, None)
        for path in done.files if done else []:
            self.spool.release(path)

    def count_flops(self) -> None:
        """Set the cost of a step after grafts came or went: backward is taken to cost twice forward."""
        executor = self.executor
        forward = 0
        for seed, graft in executor.grafts.items():
            cost = infer(graft.body.graph, graft.body.interface, executor.sites[seed.site].positions)
            forward += cost.forward_flops(self.batch_rows, executor.sites[seed.site].positions)
        self.step_flops = self.host_step_flops + 3.0 * forward

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parts.model.parameters())
