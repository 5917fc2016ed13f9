"""All components in one process, called directly: what a run with `--no-services` is tied to.

Two kinds of child process remain: kernels are compiled and evaluated in workers, since an
evaluator that shares a process with its candidate could not be believed.
"""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from esper.api.common.v1 import resource_pb2
from esper.api.kasmina.v1 import control_pb2, nursery_pb2
from esper.api.simic.v1 import replay_pb2
from esper.api.tamiyo.v1 import controller_pb2
from esper.api.tezzeret.v1 import forge_pb2
from esper.api.tolaria.v1 import state_pb2, trainer_pb2
from esper.api.urza.v1 import library_pb2
from esper.artifact.folder import read_folder
from esper.artifact.keys import load_or_create_key
from esper.blueprint.interface import Interface
from esper.emrakul.advice import Sculptor, finding_log
from esper.karn.keeper import ArchiveKeeper
from esper.kasmina.cache import folder_of
from esper.kasmina.kernel import Kernel
from esper.kasmina.loader import parse
from esper.kasmina.nursery.desk import kernels_of
from esper.kasmina.nursery.worker import NurseryWorker
from esper.nissa.sink import RunSink
from esper.runtime.assortment import needs_of
from esper.runtime.cores import usual_workers
from esper.runtime.home import Home
from esper.runtime.local import LocalLine, Packet
from esper.runtime.platform import now, trust_of
from esper.runtime.pool import Pool
from esper.runtime.services import SWEEP_AGE_S, WARM_UP, WORKSHOP, clock
from esper.runtime.stock import Stock, lineage_of, offer_templates
from esper.simic.store import ReplayStore
from esper.tamiyo.answer import Controller, SearchKernels
from esper.tamiyo.service import decision_log
from esper.tezzeret.forge import Forge, ForgeOptions
from esper.tolaria.checkpoint import CheckpointStore
from esper.tolaria.replay import make_run
from esper.urabrask.evaluator import Evaluator, EvaluatorOptions
from esper.urza.service import open_library
from esper.urza.sweep import sweep_once


class Components:
    """Everything but the trainer, in a home that this process holds. A context manager."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self._kernels: dict[str, Kernel] = {}

    def __enter__(self) -> Self:
        try:
            self._runner.run(self._open())
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.run(self._stack.aclose())
        self._runner.close()

    def make_kernels(self, sites: Iterable[state_pb2.SiteState], seed: int) -> None:
        """Have every blueprint in stock for a run's sites compiled, evaluated and, if it passes, promoted.

        `seed`: the run's, from which Karn's designs are made.
        """
        for need in needs_of(sites, seed):
            self._runner.run(self._stock.order(need, self._make))

    def line(self, sink: RunSink, checkpoints: CheckpointStore) -> LocalLine:
        """What a run talks to. `sink` records it; checkpoints are written as they are asked for."""

        def heard(request: trainer_pb2.AttachRequest) -> None:
            if request.HasField("checkpoint"):
                note = checkpoints.write_spooled(request.checkpoint.manifest)
                if note is not None:
                    sink.request(trainer_pb2.AttachRequest(note=note))
            else:
                sink.request(request)

        def answered(response: controller_pb2.DecideResponse) -> None:
            for decision in response.decisions:
                self._decisions.append(decision)
            for report in response.field_reports:
                self._replay.add(report)
            sink.response(response)

        return LocalLine(self._decide, self._nursery, self._load, heard, answered, self._advise)

    def do(self, job: nursery_pb2.Job) -> nursery_pb2.JobResult:
        """Do one nursery job here and now."""
        results: list[nursery_pb2.JobResult] = []
        self._runner.run(self._stock.provide(kernels_of(job)))
        self._nursery.do(job, results.append)
        return results[-1]

    def ancestry(self, blueprint_id: str) -> Sequence[library_pb2.Blueprint]:
        """A blueprint and all that it descends from. Raises NotFound."""
        return self._runner.run(lineage_of(self._library, blueprint_id))

    async def _open(self) -> None:
        home, stack = self.home, self._stack
        home.folder("db")
        roots = trust_of(home, ("tezzeret", "urabrask"))
        url = f"sqlite+aiosqlite:///{home.database('urza').absolute()}"
        library = await open_library(url, home.folder("blobs").absolute().as_uri(), roots)
        stack.push_async_callback(library.close)
        stack.push_async_callback(sweep_once, library.sweep, SWEEP_AGE_S)  # no loop runs between the trainer's calls
        self._library = library
        workers = usual_workers()
        pool = Pool("workshop", WORKSHOP, size=workers, log=home.folder("logs") / "workshop.log")
        await pool.start()
        stack.push_async_callback(pool.stop)
        await pool.preload(*WARM_UP)
        forge_key, evaluation_key = (load_or_create_key(home.key(name)) for name in ("forge", "evaluation"))
        forge = Forge(library, pool, forge_key, _to_nobody, clock, ForgeOptions(workers=workers))
        self._forge = await stack.enter_async_context(forge)
        options = EvaluatorOptions(workers=workers)
        evaluator = Evaluator(library, library, pool, evaluation_key, roots, _to_nobody, clock, options)
        self._evaluator = await stack.enter_async_context(evaluator)
        await offer_templates(library)
        self._stock = Stock(library, home.kernels, roots)
        self._open_records(self._stock.inventory.of_sites)
        stack.push_async_callback(ArchiveKeeper(library, self._gains).catch_up)
        self._roots = roots

    def _open_records(self, search: SearchKernels) -> None:
        home = self.home
        self._replay = ReplayStore(home.database("simic"), now)
        self._decisions = decision_log(home.database("decisions"))
        findings = finding_log(home.database("emrakul"))
        for store in (self._replay, self._decisions, findings):
            self._stack.callback(store.close)
        self._sculptor = Sculptor(findings, now)
        self._controller = Controller(search, self._summarise, now)
        self._nursery = NurseryWorker(make_run, self._kernel, home.folder("nursery"))

    async def _make(self, orders: Iterable[forge_pb2.BlueprintSubmitted]) -> None:
        await asyncio.gather(*(self._make_one(order) for order in orders))

    async def _make_one(self, order: forge_pb2.BlueprintSubmitted) -> None:
        for record in await self._forge.compile_submitted(order):
            ready = forge_pb2.KernelReady(artifact_id=record.artifact_id, blueprint_id=record.blueprint_id)
            await self._evaluator.kernel_ready(ready)  # one that has a verdict, as of an earlier run, is left with it

    async def _summarise(self, task_name: str) -> Sequence[replay_pb2.Summary]:
        return self._replay.summaries(replay_pb2.Filter(task_name=task_name))

    async def _gains(self) -> replay_pb2.SummariseExperiencesResponse:
        return replay_pb2.SummariseExperiencesResponse(
            header=resource_pb2.ReplyHeader(revision=self._replay.last_position),
            summaries=self._replay.summaries(replay_pb2.Filter(only_judged=True), by_kernel=True),
        )

    def _decide(self, packet: Packet) -> controller_pb2.DecideResponse:
        return self._runner.run(self._controller.answer(packet))

    def _advise(self, packet: Packet) -> Sequence[control_pb2.ControlCommand]:
        return self._runner.run(self._sculptor.advise(packet)).commands

    def _load(self, artifact_id: str, _interface: Interface) -> Kernel:
        return self._kernel(artifact_id)

    def _kernel(self, artifact_id: str) -> Kernel:
        """A promoted kernel, verified. Raises what the library and the verification raise."""
        if artifact_id not in self._kernels:
            self._runner.run(self._stock.provide([artifact_id]))
            folder = folder_of(self.home.kernels, artifact_id)
            self._kernels[artifact_id] = parse(read_folder(folder), self._roots)
        return self._kernels[artifact_id]


async def _to_nobody(_message: object) -> None:
    """The library has it; nobody listens for news of it."""
