"""A session whose line leads to a test: what it posts is kept, what arrives is put in by hand."""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path

from esper.errors import DeadlineExceeded
from esper.kasmina.wrap import wrap
from esper.tolaria.checkpoint import CheckpointStore
from esper.tolaria.line import Loaded
from esper.tolaria.run import Run
from esper.tolaria.session import Session
from esper.tolaria.settings import Budget, GrowthSettings
from esper.tolaria.snapshot import capture
from esper.tolaria.spool import Spool
from esper.tolaria.step import build_parts, train_step
from esper.tolaria.task import load_task
from tests import builders
from tests.flow.local import QUICK

ARTIFACT = builders.ARTIFACT


@dataclass
class QuietLine:
    """A Line without another end."""

    posted: list = field(default_factory=list)
    loads: list = field(default_factory=list)
    inbox: list = field(default_factory=list)

    def post(self, make):
        message = make()
        if message is not None:
            self.posted.append(message)

    def together(self):
        return contextlib.nullcontext()

    def load_kernel(self, seed, artifact_id, interface):
        self.loads.append((seed, artifact_id))

    def collect(self):
        taken, self.inbox = self.inbox, []
        return taken

    def wait(self, done, limit_s=600.0):
        if not done():
            raise DeadlineExceeded("nobody answers here")

    def close(self, timeout_s=10.0):
        pass

    def said(self, kind):
        return [getattr(message, kind) for message in self.posted if message.HasField(kind)]


def session_of(directory: Path, *, task="tests.tolaria.tasks:regression", deterministic=False, **options) -> Session:
    """A session of the regression task (site "2", two seeds), or without a task."""
    known = load_task("tests.tolaria.tasks:regression")
    directory.mkdir(parents=True, exist_ok=True)
    parts = build_parts(known)
    batch = known.micro_batches(0)[0]
    handle = wrap(parts.model, "2", 2, run=lambda m: known.forward(m, batch))
    run = Run(
        run_id="quiet",
        directory=directory,
        parts=parts,
        executor=handle.executor,
        line=QuietLine(),
        spool=Spool(directory / "spool", **options),
        settings=GrowthSettings(**QUICK),
        budget=Budget(),
        task=load_task(task) if task else None,
        total_steps=200,
        deterministic=deterministic,
        batch_rows=16,
    )
    return Session(run)


def keep_checkpoint(session: Session) -> None:
    """Take a checkpoint and write it, as a runtime would."""
    session.decide()
    session.checkpoint()
    manifest = session.run.line.said("checkpoint")[-1].manifest
    CheckpointStore(session.run.directory / "checkpoints").write(manifest, Path(manifest.tensors.path))


def begin_again(directory: Path, *, session: Session | None = None, checkpoints: Path | None = None) -> Session:
    """The run that died in `directory`, gone on from its newest checkpoint; its kernel is the builders' own.

    `session`: one that is to go on, made there; `checkpoints`: another rank's folder.
    """
    again = session or session_of(directory)
    executor, line = again.run.executor, again.run.line
    line.load_kernel = lambda seed, artifact_id, interface: line.inbox.append(
        Loaded(seed, artifact_id, builders.kernel_for(executor, seed))
    )
    again.resume(*CheckpointStore((checkpoints or directory) / "checkpoints").latest())
    return again


def train(session: Session, steps: int) -> None:
    """Steps without decision points."""
    task = load_task("tests.tolaria.tasks:regression")
    for _ in range(steps):
        batches = task.micro_batches(session.steps_done)
        session.step(batches[0], train_step(session.run.parts, task, batches))


def seed_in(session: Session, state, *, slot=0, **options):
    """A seed brought to `state`, as the executor alone would bring it there."""
    executor = session.run.executor
    seed = builders.first_seed(executor, slot)
    return builders.lead(executor, state, session.run.parts.optimizer, seed=seed, **options)


def everything(session: Session) -> str:
    """All a refused command must leave alone."""
    run = session.run
    snapshot = capture(run.parts, run.step)
    tensors = {name: tensor.tolist() for name, tensor in snapshot.all_tensors().items()}
    table = [[getattr(seed, name) for name in type(seed).__dataclass_fields__] for seed in run.executor.table]
    counters = (run.step, run.events, run.insertions, run.loading, sorted(run.outstanding), run.jobs)
    grafts, events = sorted(map(str, run.executor.grafts)), sorted(session.adaptations.events)
    return repr((tensors, snapshot.scalars, table, counters, grafts, events, sorted(session.adaptations.grafts)))
