"""Tie a wrapped model to a runtime: what `esper.attach` does."""

import asyncio
import atexit
import functools
import secrets
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from esper.api.tolaria.v1 import trainer_pb2
from esper.api.urza.v1 import library_pb2
from esper.artifact.bundle import Artifact
from esper.errors import InvalidConfig
from esper.host.sites import Site, refuse_sharded
from esper.host.surgery import refuse_unfit
from esper.kasmina.cache import KernelCache
from esper.kasmina.handle import ModelHandle
from esper.kasmina.kernel import Kernel
from esper.kasmina.loader import KernelLoader
from esper.kasmina.regrow import device_of
from esper.runtime.clients import LibraryClient
from esper.runtime.courier import MAX_NOTE, START_S, Courier, LoadKernel
from esper.runtime.home import DEFAULT, Contact, Home
from esper.runtime.launch import UsedRuntime, find_or_start_runtime, use_runtime
from esper.runtime.loads import load_over
from esper.runtime.rank_attach import Tie, not_at_hand, roots_of, share_spool, tie_of
from esper.runtime.stock import LONGEST_WAIT_S
from esper.runtime.targets import target_of_device
from esper.tezzeret.codec import write_target
from esper.tolaria.checkpoint import CheckpointStore
from esper.tolaria.codec import write_site, write_task
from esper.tolaria.line import Line
from esper.tolaria.ranks import Ranks, open_ranks
from esper.tolaria.run import Run
from esper.tolaria.session import Session
from esper.tolaria.settings import Budget, GrowthSettings, from_mapping, write_budget, write_growth
from esper.tolaria.shadow import EVERY_STEPS, ShadowNursery, refuse_ranks
from esper.tolaria.spool import Spool
from esper.tolaria.step import Parts, step_flops
from esper.tolaria.task import Task, check_task, load_task

REPORT, LONGEST_REPORT_S = "report.html", 15.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run is, before it has a line to anybody."""

    run_id: str
    directory: Path
    task: Task | None
    settings: GrowthSettings
    budget: Budget
    total_steps: int
    seed: int
    deterministic: bool
    shadow_every_steps: int = EVERY_STEPS  # candidates train on one in so many, where no worker can make the task

    def __post_init__(self) -> None:
        if self.shadow_every_steps < 1:
            raise InvalidConfig(f"shadow_every_steps must be >= 1, got {self.shadow_every_steps}")


def attach(
    handle: ModelHandle,
    optimizer: Optimizer,
    *,
    task: str | Task | None = None,
    scheduler: LRScheduler | None = None,
    scaler: torch.amp.GradScaler | None = None,
    runtime: str | Contact | None = None,
    run_id: str = "",
    directory: str | Path = "",
    total_steps: int = 0,
    seed: int = 0,
    growth: Mapping[str, Any] | None = None,
    budget: Mapping[str, Any] | None = None,
    deterministic: bool = False,
    resume: bool = False,
    shadow_every_steps: int = EVERY_STEPS,
) -> Session:
    """Tie a wrapped model and its optimiser to a runtime and return the session of the run.

    `task`: "module:callable" that makes the same model, loss, optimiser and data elsewhere;
    without it nothing can be tried, so nothing grows. A task that no worker can import, such as an
    esper.Task of a notebook's, is tried inside the session's calls, on every `shadow_every_steps`-th step
    (docs/notebook.md); a warning says so. `runtime`: the folder of a running
    runtime (`esper up --home`); None: that of ".esper", started where none runs. One that a run
    started ends with the last process that is attached to it. `growth` and `budget`: settings by name.
    `resume`: go on from the newest checkpoint of `run_id`.

    Under a process group of several ranks every rank calls it alike, with a model that it then wraps in
    DistributedDataParallel. The first rank attaches; what decides there takes effect on all (docs/ddp.md).

    Raises NotFound where no runtime runs, InvalidConfig for a task or setting that does not
    work, InvalidRequest for an optimiser that newborn parameters do not fit, Conflict where
    the run is attached already.
    """
    refuse_sharded(handle.model)  # it may have been sharded since it was wrapped
    known = _task(task)
    _prove(handle, known)
    if known is not None:  # without a task nothing grows
        refuse_unfit(optimizer)
    run_id = run_id or f"{known.name if known else 'run'}-{secrets.token_hex(3)}"
    ranks = open_ranks(device_of(handle.model))
    if ranks is not None:
        run_id = ranks.share(run_id.encode).decode()
        refuse_ranks(known)
    folder = Path(directory or Path("runs") / run_id).absolute()
    plan = Plan(
        run_id=run_id,
        directory=folder,
        task=known,
        settings=from_mapping(GrowthSettings, {**(known.growth if known else {}), **(growth or {})}, "growth"),
        budget=from_mapping(Budget, budget or {}, "budget"),
        total_steps=total_steps,
        seed=seed,
        deterministic=deterministic,
        shadow_every_steps=shadow_every_steps,
    )
    parts = Parts(handle.model, optimizer, scheduler, scaler)
    tie = tie_of(ranks, lambda: _tie(handle, plan, runtime, resume))
    handle.kernels = tie.library
    session = open_session(handle, _tied_run(handle, parts, plan, tie, ranks), tie.checkpoint)
    if session.run.shadow is not None:
        warnings.warn(session.run.shadow.notice, stacklevel=2)
        session.run.post_note("warning", session.run.shadow.notice)
    if tie.used is not None:
        # a process that hands its own contact on uses that runtime too, and sees to the report
        reports = tie.used.contact.while_used and not isinstance(runtime, Contact)
        atexit.register(_leave, tie.used, session if reports else None)
    return session


def _tied_run(handle: ModelHandle, parts: Parts, plan: Plan, tie: Tie, ranks: Ranks | None) -> Run:
    run = make_run(handle, parts, replace(plan, directory=tie.directory), tie.line)
    run.cache, run.ranks = tie.loader.cache, ranks
    if ranks is not None:
        share_spool(ranks, run)
    return run


def _tie(handle: ModelHandle, plan: Plan, runtime: str | Contact | None, resume: bool) -> Tie:
    """The open line to a runtime, and the checkpoint to go on from."""
    folder = plan.directory
    passed_over: list[str] = []
    checkpoint = CheckpointStore(folder / "checkpoints", warn=passed_over.append).latest() if resume else None
    hello = hello_of(handle, plan)
    if checkpoint is not None:
        hello.resumed = True
        hello.last_command_sequence = checkpoint[0].last_command_sequence
    folder.mkdir(parents=True, exist_ok=True)
    used = _use(runtime)  # what can be wrong with the arguments is known by now
    try:
        courier, loader = _connect(used.contact, hello)
    except BaseException:
        used.leave()
        raise
    assert courier.welcome is not None
    for text in passed_over:
        courier.post(functools.partial(warning, text))
    return Tie(
        line=courier,
        loader=loader,
        library=_Library(courier, _load_over(loader, courier)),
        welcome=courier.welcome,
        directory=folder,
        checkpoint=checkpoint,
        used=used,
    )


def warning(text: str) -> trainer_pb2.AttachRequest:
    """A note for people, of what was found before the run has a session to say it."""
    return trainer_pb2.AttachRequest(note=trainer_pb2.Note(level="warning", source="tolaria", text=text[:MAX_NOTE]))


def _use(runtime: str | Contact | None) -> UsedRuntime:
    if runtime is None:
        return find_or_start_runtime(Home(DEFAULT))
    return use_runtime(runtime if isinstance(runtime, Contact) else Home(Path(runtime)).contact())


def _connect(contact: Contact, hello: trainer_pb2.Hello) -> tuple[Courier, KernelLoader]:
    """The open line to a runtime, and what loads kernels that its keys vouch for."""
    courier = Courier(contact.address, contact.token(), hello)
    courier.start(START_S + (LONGEST_WAIT_S if hello.deterministic else 0.0))
    assert courier.welcome is not None
    loader = _loader(contact, courier.welcome)
    courier.load = _load_over(loader, courier)
    return courier, loader


def _leave(used: UsedRuntime, session: Session | None) -> None:
    """Use the runtime no longer; one that may end for it writes the report of a run that ended first."""
    if session is not None and session.ended:
        report, deadline = session.run.directory / REPORT, time.monotonic() + LONGEST_REPORT_S
        while used.is_there() and not report.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
    used.leave()


@dataclass(frozen=True)
class _Library:
    """Where a handle gets kernels from by hand; implements kasmina's KernelSource."""

    courier: Courier
    load: LoadKernel

    async def kernel(self, artifact_id: str, site: Site) -> Kernel:
        return await asyncio.wrap_future(self.courier.call(self.load(artifact_id, site.interface)))


def _prove(handle: ModelHandle, task: Task | None) -> None:
    """Sites that wait for a batch take the task's first one."""
    if task is None:
        handle.prove()
    else:
        handle.prove(lambda model: task.forward(model, task.micro_batches(0)[0]))


def make_run(handle: ModelHandle, parts: Parts, plan: Plan, line: Line) -> Run:
    """The state of a run that is about to begin."""
    flops, rows = step_flops(parts, plan.task) if plan.task is not None else (0.0, 0)
    handle.executor.run_seed = plan.seed
    handle.executor.embargo_steps = plan.settings.embargo_steps
    handle.executor.use_compiled_forms = not plan.deterministic
    run = Run(
        run_id=plan.run_id,
        directory=plan.directory,
        parts=parts,
        executor=handle.executor,
        line=line,
        spool=Spool(plan.directory / "spool"),
        settings=plan.settings,
        budget=plan.budget,
        task=plan.task,
        total_steps=plan.total_steps,
        seed=plan.seed,
        deterministic=plan.deterministic,
        host_step_flops=flops,
        batch_rows=rows,
    )
    if plan.task is not None and plan.task.reference is None:
        run.shadow = ShadowNursery(run, plan.task, plan.shadow_every_steps)
    return run


def open_session(
    handle: ModelHandle, run: Run, checkpoint: tuple[trainer_pb2.CheckpointManifest, Path] | None
) -> Session:
    """The session of a run, new or put to its checkpoint; the handle learns of optimiser and readings."""
    heard = run.ranks is None or run.ranks.first  # the others' readings would go nowhere
    session = Session(run, telemetry=handle.telemetry_enabled and heard)
    if checkpoint is not None:
        session.resume(*checkpoint)
    handle.optimizer = run.parts.optimizer
    handle.health = session.reports.health
    handle.steps_done = lambda: session.steps_done
    return session


def _task(task: str | Task | None) -> Task | None:
    known = load_task(task, None, (str(Path.cwd()),)) if isinstance(task, str) else task
    if known is None:
        return None
    if known.reference is not None and known.reference.factory.partition(":")[0] == "__main__":
        known = replace(known, reference=None)  # in a worker that is another module
    check_task(known)
    return known


def hello_of(handle: ModelHandle, plan: Plan) -> trainer_pb2.Hello:
    """What the trainer of a run says first."""
    table, task = handle.executor.table, plan.task
    return trainer_pb2.Hello(
        run_id=plan.run_id,
        task=write_task(task.reference) if task is not None and task.reference is not None else None,
        task_name=task.name if task is not None else "",
        directory=str(plan.directory),
        sites=[write_site(site, len(table.of_site(name))) for name, site in handle.executor.sites.items()],
        settings=write_growth(plan.settings, plan.total_steps),
        budget=write_budget(plan.budget),
        total_steps=plan.total_steps,
        random_seed=plan.seed,
        versions={"torch": torch.__version__},
        deterministic=plan.deterministic,
        session=secrets.token_hex(8),
        # that of its first parameter, where it is on several devices
        target=write_target(target_of_device(device_of(handle.model))),
    )


def _loader(contact: Contact, welcome: trainer_pb2.Welcome) -> KernelLoader:
    home = Path(contact.token_file).parent
    return KernelLoader(KernelCache(Home(home).kernels, roots_of(welcome), not_at_hand))


def _load_over(loader: KernelLoader, courier: Courier) -> LoadKernel:
    """Load kernels on the courier's thread, those that are not at hand from the library at its other end."""

    async def download(artifact_id: str) -> Artifact:
        request = library_pb2.DownloadKernelRequest(artifact_id=artifact_id)
        return Artifact(*await LibraryClient(courier.channel).download_kernel(request))

    return load_over(loader, download)
