"""Builds Nissa's service: what it records, how it asks the others, how long queues are."""

import asyncio
import functools
from collections.abc import Sequence
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from esper.api.kasmina.v1 import nursery_pb2, nursery_pb2_grpc
from esper.api.nissa.v1 import observability_pb2, observability_pb2_grpc
from esper.api.tezzeret.v1 import forge_pb2, forge_pb2_grpc
from esper.api.tolaria.v1 import trainer_pb2, trainer_pb2_grpc
from esper.api.urabrask.v1 import evaluation_pb2, evaluation_pb2_grpc
from esper.errors import EsperError
from esper.nissa.recorder import Recorder
from esper.nissa.service import ObservabilityServicer
from esper.nissa.worker import ObservabilityWorker
from esper.oona.cursor import FileCursorStore
from esper.oona.envelope import Sender
from esper.oona.subjects import Name
from esper.runtime.clients import LibraryClient
from esper.runtime.platform import Platform, now
from esper.runtime.stock import lineage_of

SERVICES = {
    "oona": "esper.api.oona.v1.BusService",
    "urza": "esper.api.urza.v1.LibraryService",
    "karn": "esper.api.karn.v1.ArchitectService",
    "tezzeret": "esper.api.tezzeret.v1.ForgeService",
    "urabrask": "esper.api.urabrask.v1.EvaluationService",
    "kasmina": "esper.api.kasmina.v1.NurseryService",
    "tolaria": "esper.api.tolaria.v1.TrainerService",
    "tamiyo": "esper.api.tamiyo.v1.ControllerService",
    "simic": "esper.api.simic.v1.ReplayService",
    "emrakul": "esper.api.emrakul.v1.SculptorService",
}
CHECK_S = 2.0
QUEUES_EVERY_S = 1.0


async def build_nissa(platform: Platform) -> None:
    """Everything concerning runs is taken from the bus; health and queues are asked for."""
    assert platform.metrics is not None
    recorder = Recorder(platform.home.folder("nissa"), platform.metrics)
    platform.stack.callback(recorder.close)
    servicer = ObservabilityServicer(recorder, functools.partial(check_services, platform))
    platform.mount(observability_pb2_grpc.add_ObservabilityServiceServicer_to_server, servicer)
    cursors = FileCursorStore(platform.home.folder("cursors"))
    ask_ancestry = functools.partial(lineage_of, LibraryClient(platform.channel_to("urza")))
    worker = ObservabilityWorker(platform.bus, recorder, cursors, ask_ancestry=ask_ancestry)
    platform.task("nissa/record", worker.run)
    platform.task("nissa/queues", functools.partial(tell_queues, platform))


async def check_services(platform: Platform) -> Sequence[observability_pb2.ServiceHealth]:
    """Ask every component's service whether it serves."""
    return await asyncio.gather(*(_check(platform, component, name) for component, name in SERVICES.items()))


async def _check(platform: Platform, component: str, name: str) -> observability_pb2.ServiceHealth:
    row = observability_pb2.ServiceHealth(component=component)
    try:
        stub: Any = health_pb2_grpc.HealthStub(platform.channel_to(component)())
        reply = await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=CHECK_S)
        row.serving = reply.status == health_pb2.HealthCheckResponse.SERVING
        row.detail = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
    except EsperError as error:
        row.detail = str(error)
    return row


async def tell_queues(platform: Platform) -> None:
    """Publish how much waits, as an event of every run in training, whenever it has changed."""
    sender = Sender("nissa")
    told: dict[str, observability_pb2.Queues] = {}
    while True:
        await asyncio.sleep(QUEUES_EVERY_S)
        running = await _running(platform)
        queues = await _queues(platform) if running else observability_pb2.Queues()
        for run in (run for run in running if told.get(run.run_id) != queues):
            event = observability_pb2.RunEvent(run_id=run.run_id, time=now(), step=run.step, queues=queues)
            await platform.bus.publish(Name.EPOCH, sender.seal(event, run_id=run.run_id))
        told = {run.run_id: queues for run in running}


async def _running(platform: Platform) -> list[trainer_pb2.Run]:
    trainers: Any = trainer_pb2_grpc.TrainerServiceStub(platform.channel_to("tolaria")())
    reply: trainer_pb2.ListRunsResponse = await trainers.ListRuns(trainer_pb2.ListRunsRequest())
    return [run for run in reply.runs if run.state == trainer_pb2.Run.STATE_TRAINING]


async def _queues(platform: Platform) -> observability_pb2.Queues:
    forge: Any = forge_pb2_grpc.ForgeServiceStub(platform.channel_to("tezzeret")())
    evaluator: Any = evaluation_pb2_grpc.EvaluationServiceStub(platform.channel_to("urabrask")())
    nursery: Any = nursery_pb2_grpc.NurseryServiceStub(platform.channel_to("kasmina")())
    compiling, evaluating, trying = await asyncio.gather(
        forge.GetForgeStatus(forge_pb2.GetForgeStatusRequest()),
        evaluator.GetEvaluationStatus(evaluation_pb2.GetEvaluationStatusRequest()),
        nursery.GetNurseryStatus(nursery_pb2.GetNurseryStatusRequest()),
    )
    return observability_pb2.Queues(
        compiling=compiling.queued + compiling.busy_workers,
        evaluating=evaluating.queued + evaluating.busy_workers,
        nursery=trying.queued + trying.busy_workers,
    )
