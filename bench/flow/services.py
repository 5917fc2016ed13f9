"""The real services, as `esper demo` starts them, for a bench to train beside."""

import asyncio
import contextlib
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from esper.api.common.v1 import resource_pb2
from esper.api.urza.v1 import library_pb2
from esper.karn.templates import TEMPLATES
from esper.kasmina.handle import ModelHandle
from esper.rpc.client import open_channel
from esper.runtime.attach import attach
from esper.runtime.clients import LibraryClient
from esper.runtime.home import Contact, Home
from esper.runtime.launch import find_or_start_runtime
from esper.runtime.spec import TrainSpec
from esper.runtime.trainer import build
from esper.tolaria.session import Session
from esper.tolaria.step import Parts
from esper.tolaria.task import Task

DIGITS = "esper.tolaria.tasks.digits:task"
QUIET_CORES = 0.1  # a runtime that uses less has nothing left to do
LOOK_EVERY_S = 1.0
TEMPLATES_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime with its processes, in a folder that goes with it."""

    folder: Path
    contact: Contact

    @property
    def home(self) -> Home:
        return Home(self.folder / "home")

    def processes(self) -> list[psutil.Process]:
        """Parents before children."""
        try:
            root = psutil.Process(self.contact.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop every process for a moment; they go on where they were."""
        stopped: list[psutil.Process] = []
        try:
            while fresh := [p for p in self.processes() if p not in stopped]:
                stopped += fresh
                _signal(fresh, signal.SIGSTOP)
            yield
        finally:
            _signal(stopped, signal.SIGCONT)

    def wait_until_quiet(self, limit_s: float) -> bool:
        """Wait until nothing is compiled or evaluated any more. False if that took too long."""
        deadline, before = time.monotonic() + limit_s, self._cpu_s()
        while time.monotonic() < deadline:
            time.sleep(LOOK_EVERY_S)
            now = self._cpu_s()
            if sum(now[pid] - before.get(pid, 0.0) for pid in now) < QUIET_CORES * LOOK_EVERY_S:
                return True
            before = now
        return False

    def _cpu_s(self) -> dict[int, float]:
        spent = {}
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                spent[process.pid] = times.user + times.system
        return spent


def _signal(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


@contextlib.contextmanager
def runtime() -> Iterator[Runtime]:
    """Start all services with nothing in their library; they and their folder are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="esper-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        used = find_or_start_runtime(Home(folder / "home"))
        try:
            asyncio.run(_templates_are_offered(used.contact))
            yield Runtime(folder, used.contact)
        finally:
            used.leave()
            if used.child is not None:  # sessions that are let go of, and not ended, use it still
                used.child.stop()


async def _templates_are_offered(contact: Contact) -> None:
    """The services offer them after they have said that they are up; what asks earlier finds no blueprint."""
    async with open_channel(contact.address, token=contact.token()) as channel, asyncio.timeout(TEMPLATES_LIMIT_S):
        library = LibraryClient(lambda: channel)
        request = library_pb2.ListBlueprintsRequest(page=resource_pb2.PageRequest(size=len(TEMPLATES)))
        while len((await library.list_blueprints(request)).blueprints) < len(TEMPLATES):
            await asyncio.sleep(0.1)


@dataclass(frozen=True, slots=True)
class Attached:
    """A run of the digits task in this process, its session tied to a runtime."""

    task: Task
    parts: Parts
    handle: ModelHandle
    session: Session

    def close(self) -> None:
        """Let go without ending the run in good order: nothing of it is wanted."""
        self.session.reports.goodbye("the measurement is over")
        close_session(self.session)


def close_session(session: Session) -> None:
    """Let go of what a session that is not finished holds."""
    session.run.line.close()
    session.run.spool.close()
    session.arrivals.journal.close()


@contextlib.contextmanager
def attached(services: Runtime, run_id: str, growth: dict[str, Any], total_steps: int = 10**6) -> Iterator[Attached]:
    """Train as `esper demo` does, but for the loop, which the caller writes."""
    run = attach_digits(services, run_id, growth, total_steps)
    try:
        yield run
    finally:
        run.close()


def attach_digits(
    services: Runtime, run_id: str, growth: dict[str, Any], total_steps: int = 10**6, *, resume: bool = False
) -> Attached:
    """As `attached`, to be closed by the caller."""
    spec = TrainSpec(task=DIGITS, run_id=run_id, directory=str(services.folder / run_id), growth=growth)
    task, parts, handle = build(spec)
    session = attach(
        handle,
        parts.optimizer,
        task=task,
        scheduler=parts.scheduler,
        scaler=parts.scaler,
        runtime=services.contact,
        run_id=run_id,
        directory=spec.directory,
        total_steps=total_steps,
        growth=growth,
        resume=resume,
    )
    return Attached(task, parts, handle, session)
