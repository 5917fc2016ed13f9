"""Builds each component's service on a platform: its core, its ports to others, its shell, its consumers."""

import functools
import os
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime

from esper.api.common.v1 import operation_pb2_grpc, resource_pb2
from esper.api.emrakul.v1 import sculptor_pb2_grpc
from esper.api.karn.v1 import architect_pb2_grpc
from esper.api.kasmina.v1 import execution_pb2_grpc, nursery_pb2_grpc
from esper.api.oona.v1 import bus_pb2_grpc
from esper.api.simic.v1 import replay_pb2_grpc
from esper.api.tamiyo.v1 import controller_pb2_grpc
from esper.api.tezzeret.v1 import forge_pb2, forge_pb2_grpc
from esper.api.tolaria.v1 import trainer_pb2, trainer_pb2_grpc
from esper.api.urabrask.v1 import evaluation_pb2, evaluation_pb2_grpc
from esper.api.urza.v1 import library_pb2_grpc
from esper.emrakul.advice import Sculptor, finding_log
from esper.emrakul.service import SculptorServicer
from esper.karn.keeper import ArchiveKeeper
from esper.karn.measured import Measurements
from esper.karn.service import ArchitectServicer
from esper.kasmina.nursery.desk import NurseryDesk
from esper.kasmina.service import ExecutionServicer, NurseryServicer, SeedBoard
from esper.kasmina.worker import CommandPublisher, keep_board
from esper.oona.cursor import FileCursorStore
from esper.oona.envelope import Sender
from esper.oona.port import Envelope
from esper.oona.service import BusServicer
from esper.oona.subjects import Name, name_for
from esper.rpc.operation_service import OperationServicer
from esper.rpc.operations import Operations
from esper.runtime.assortment import needs_of
from esper.runtime.clients import ExecutionClient, LibraryClient, NurseryClient, ReplayClient, SculptorClient
from esper.runtime.inventory import Inventory
from esper.runtime.jobs import KERNELS, TRUST
from esper.runtime.platform import Platform, now
from esper.runtime.stock import Stock, offer_templates
from esper.simic.service import ReplayServicer
from esper.simic.store import ReplayStore
from esper.simic.worker import ReplayWorker
from esper.tamiyo.answer import Controller
from esper.tamiyo.service import ControllerServicer, answer_log, decision_log
from esper.tamiyo.worker import ControllerWorker
from esper.tezzeret.codec import write_target
from esper.tezzeret.forge import Forge, ForgeOptions
from esper.tezzeret.idle import IdleWork
from esper.tezzeret.service import ForgeServicer
from esper.tezzeret.worker import consume as consume_blueprints
from esper.tolaria.gateway import Gateway
from esper.tolaria.service import TrainerServicer
from esper.tolaria.worker import BusOutside
from esper.urabrask.evaluator import Evaluator, EvaluatorOptions
from esper.urabrask.service import EvaluationServicer
from esper.urabrask.worker import consume as consume_kernels
from esper.urza.events import OutboxEvent
from esper.urza.library import CentralLibrary
from esper.urza.service import LibraryServicer, open_library
from esper.urza.sweep import keep_swept

Build = Callable[[Platform], Awaitable[None]]

WORKSHOP = {
    "compile": "esper.runtime.compile_worker:compile_confined",
    "evaluate": "esper.urabrask.job:evaluate_job",
    "isolation": "esper.urabrask.job:isolation_job",
    "usefulness": "esper.urabrask.job:usefulness_job",
}
# What each compilation would otherwise pay for, done once in the process that workers are forked from.
WARM_UP = ("esper.tezzeret.job:warm_up", None)
WARM_UP_FOR_DEVICES = ("esper.tezzeret.job:warm_up_standard", None)
# How often the library removes what belongs to nobody, first how long after its start, and what age spares. A request
# id and the upload of a kernel are good for that age.
SWEEP_EVERY_S, SWEEP_FIRST_AFTER_S, SWEEP_AGE_S = 86_400.0, 900.0, 86_400.0
# How often an idle forge looks for what to build again.
FORGE_IDLE_S = 60.0

# How often the architect looks for grafts that were judged.
ARCHIVE_S = 60.0
# How often an idle evaluator looks for promoted kernels to try further.
SECOND_PASS_AFTER_S = 180.0
# How often it looks for kernels that were left without a verdict, and how long one may be on its way over the bus.
BACKLOG_AFTER_S = 180.0


async def build_oona(platform: Platform) -> None:
    platform.mount(bus_pb2_grpc.add_BusServiceServicer_to_server, BusServicer(platform.bus))


async def build_urza(platform: Platform) -> None:
    home = platform.home
    home.folder("db")
    url = f"sqlite+aiosqlite:///{home.database('urza').absolute()}"
    library = await open_library(url, home.folder("blobs").absolute().as_uri(), platform.roots)
    platform.stack.push_async_callback(library.close)
    platform.mount(library_pb2_grpc.add_LibraryServiceServicer_to_server, LibraryServicer(library))
    platform.task("urza/outbox", functools.partial(_drain, platform, library))
    platform.task(
        "urza/sweep", functools.partial(keep_swept, library.sweep, SWEEP_FIRST_AFTER_S, SWEEP_EVERY_S, SWEEP_AGE_S)
    )


async def _drain(platform: Platform, library: CentralLibrary) -> None:
    """Publish what the library has stored, in order, each at least once and under one id."""
    sender = Sender("urza", nonce="")

    async def publish(event: OutboxEvent) -> None:
        envelope = Envelope(
            id=f"_/{sender.name}/{event.event_id}",
            sender=sender.name,
            payload_type=event.event.payload_type,
            payload=event.event.payload,
        )
        envelope.send_time.FromNanoseconds(event.time_ns)
        await platform.bus.publish(name_for(event.event.payload_type), envelope)

    revision = 0
    while True:
        await library.drain(publish)
        revision = await library.wait(revision, 30.0)


async def build_karn(platform: Platform) -> None:
    library, replay = LibraryClient(platform.channel_to("urza")), ReplayClient(platform.channel_to("simic"))
    keeper = ArchiveKeeper(library, replay.gains_by_kernel)
    servicer = ArchitectServicer(Measurements(library), keeper.parents)
    platform.mount(architect_pb2_grpc.add_ArchitectServiceServicer_to_server, servicer)
    # a run that comes before its blueprints would order no kernels; a library elsewhere is not waited for
    first = "urza" in platform.components
    platform.task("karn/templates", functools.partial(offer_templates, library), first=first)
    platform.task("karn/archive", functools.partial(keeper.run, ARCHIVE_S))


async def _workshop(platform: Platform) -> None:
    """One pool for forge and evaluator: both want short jobs with torch loaded."""
    if "workshop" not in platform.pools:
        pool = await platform.pool("workshop", WORKSHOP, platform.workers)
        await pool.preload(*(WARM_UP_FOR_DEVICES if _for_devices(platform) else WARM_UP))


def _for_devices(platform: Platform) -> bool:
    """Whether the forge here makes kernels for anything but the CPU."""
    return any(target != "cpu" for target in platform.forge_targets)


async def build_tezzeret(platform: Platform) -> None:
    await _workshop(platform)
    sender = Sender("tezzeret")

    async def publish(message: forge_pb2.KernelReady) -> None:
        """The library tells of kernels that are stored; what is left to tell is failure."""
        if not message.artifact_id:
            await platform.bus.publish(Name.KERNEL_READY, sender.seal(message))

    library = LibraryClient(platform.channel_to("urza"))
    options = ForgeOptions(workers=platform.workers, targets=platform.forge_targets)
    forge = Forge(library, platform.pools["workshop"], platform.key("forge"), publish, clock, options)
    await platform.stack.enter_async_context(forge)
    platform.mount(forge_pb2_grpc.add_ForgeServiceServicer_to_server, ForgeServicer(forge, _operations(platform)))
    for number in range(platform.workers):
        platform.task(f"tezzeret/{number}", functools.partial(consume_blueprints, platform.bus, forge))
    platform.task("tezzeret/idle", functools.partial(IdleWork(forge, library).run, FORGE_IDLE_S))


async def build_urabrask(platform: Platform) -> None:
    await _workshop(platform)

    async def publish(_message: evaluation_pb2.KernelCharacterized) -> None:
        """The library tells of verdicts when it stores them."""

    library = LibraryClient(platform.channel_to("urza"))
    evaluator = Evaluator(
        library,
        library,
        platform.pools["workshop"],
        platform.key("evaluation"),
        platform.roots,
        publish,
        clock,
        EvaluatorOptions(
            workers=platform.workers, jailed=not platform.unsafe_no_jail, second_pass_after_s=SECOND_PASS_AFTER_S
        ),
    )
    await platform.stack.enter_async_context(evaluator)
    servicer = EvaluationServicer(evaluator, _operations(platform))
    platform.mount(evaluation_pb2_grpc.add_EvaluationServiceServicer_to_server, servicer)
    for number in range(platform.workers):
        platform.task(f"urabrask/{number}", functools.partial(consume_kernels, platform.bus, evaluator))
    if not evaluator.unpromotable:
        platform.task("urabrask/backlog", functools.partial(evaluator.backlog.run, BACKLOG_AFTER_S))


def _operations(platform: Platform) -> Operations:
    """One registry of slow work per process, with its service."""
    if platform.operations is None:
        platform.operations = Operations()
        servicer = OperationServicer(platform.operations)
        platform.mount(operation_pb2_grpc.add_OperationServiceServicer_to_server, servicer)
    return platform.operations


async def build_kasmina(platform: Platform) -> None:
    home = platform.home
    os.environ[KERNELS] = str(home.folder("kernels").absolute())
    os.environ[TRUST] = str(home.trust_file.absolute())
    # a pool keeps one place for short questions; beside it, as many trials, twins and controls as there are workers
    pool = await platform.pool("nursery", {"nursery": "esper.runtime.jobs:nursery"}, platform.workers + 1)
    stock = Stock(LibraryClient(platform.channel_to("urza")), home.kernels, platform.roots)
    desk = NurseryDesk(pool, stock.provide)
    platform.stack.push_async_callback(desk.close)
    workers = NurseryServicer(desk, lambda: (pool.queued, pool.busy, pool.size))
    platform.mount(nursery_pb2_grpc.add_NurseryServiceServicer_to_server, workers)
    board = SeedBoard()
    execution = ExecutionServicer(board, CommandPublisher(platform.bus))
    platform.mount(execution_pb2_grpc.add_ExecutionServiceServicer_to_server, execution)
    platform.task("kasmina/board", functools.partial(keep_board, platform.bus, board))


async def build_tolaria(platform: Platform) -> None:
    nursery = NurseryClient(platform.channel_to("kasmina"))
    stock = Stock(LibraryClient(platform.channel_to("urza")), platform.home.kernels, platform.roots)
    submit = functools.partial(_submit_blueprints, platform)

    async def prepare(hello: trainer_pb2.Hello) -> None:
        """Kernels for the run's sites are made, and its task is imported, before either is asked for."""
        needs = needs_of(hello.sites, hello.random_seed)
        for need in needs:
            await stock.order(need, submit, _ordered_for(platform, hello.target))
        if hello.deterministic:  # what kernels there are must not depend on how fast they were made
            await stock.complete(needs)
        if "nursery" in platform.pools and hello.HasField("task"):
            reference = hello.task.SerializeToString().hex()
            await platform.pools["nursery"].preload("esper.runtime.jobs:preload_task", [reference])

    outside = BusOutside(platform.bus, nursery.submit, nursery.cancel, nursery.results, prepare)
    gateway = Gateway(outside, list(platform.roots.forge), list(platform.roots.evaluation))
    platform.mount(trainer_pb2_grpc.add_TrainerServiceServicer_to_server, TrainerServicer(gateway))


def _ordered_for(platform: Platform, target: int) -> resource_pb2.Target.ValueType:
    """The target that a run's kernels are ordered for: its device's, or the CPU's where the forge here has no such."""
    known = {write_target(name) for name in platform.forge_targets}
    unsaid = target == resource_pb2.TARGET_UNSPECIFIED
    if unsaid or ("tezzeret" in platform.components and target not in known):
        return resource_pb2.TARGET_CPU
    return resource_pb2.Target.ValueType(target)


async def _submit_blueprints(platform: Platform, orders: Iterable[forge_pb2.BlueprintSubmitted]) -> None:
    sender = Sender("tolaria/stock")
    for order in orders:
        await platform.bus.publish(Name.BLUEPRINT_SUBMITTED, sender.seal(order))


async def build_simic(platform: Platform) -> None:
    store = ReplayStore(platform.home.database("simic"), now)
    platform.stack.callback(store.close)
    platform.mount(replay_pb2_grpc.add_ReplayServiceServicer_to_server, ReplayServicer(store))
    cursors = FileCursorStore(platform.home.folder("cursors"))
    platform.task("simic", ReplayWorker(platform.bus, store, cursors).run)


async def build_emrakul(platform: Platform) -> None:
    findings = finding_log(platform.home.database("emrakul"))
    platform.stack.callback(findings.close)
    execution = ExecutionClient(platform.channel_to("kasmina"))
    servicer = SculptorServicer(Sculptor(findings, now), execution.send, execution.probe)
    platform.mount(sculptor_pb2_grpc.add_SculptorServiceServicer_to_server, servicer)


async def build_tamiyo(platform: Platform) -> None:
    home = platform.home
    library, replay = LibraryClient(platform.channel_to("urza")), ReplayClient(platform.channel_to("simic"))
    sculptor = SculptorClient(platform.channel_to("emrakul"))
    controller = Controller(Inventory(library).of_sites, replay.summarise, now)
    decisions, answers = decision_log(home.database("decisions")), answer_log(home.database("answers"))
    platform.stack.callback(decisions.close)
    platform.stack.callback(answers.close)
    platform.mount(
        controller_pb2_grpc.add_ControllerServiceServicer_to_server, ControllerServicer(controller, decisions)
    )

    async def work() -> None:
        cursor = await platform.cursor("tamiyo")
        await ControllerWorker(platform.bus, cursor, controller, answers, decisions, sculptor.advise).run()

    platform.task("tamiyo", work)


def clock() -> datetime:
    """The time, for those who sign it."""
    return datetime.now(UTC)


BUILDERS: dict[str, Build] = {
    "oona": build_oona,
    "urza": build_urza,
    "karn": build_karn,
    "tezzeret": build_tezzeret,
    "urabrask": build_urabrask,
    "kasmina": build_kasmina,
    "simic": build_simic,
    "emrakul": build_emrakul,
    "tamiyo": build_tamiyo,
    "tolaria": build_tolaria,
}
