"""The trainer service over a wire: Esper's own server and channel."""

import pytest

from esper.api.common.v1.resource_pb2 import PageRequest
from esper.api.tolaria.v1 import state_pb2, trainer_pb2_grpc
from esper.api.tolaria.v1 import trainer_pb2 as pb
from esper.errors import Conflict, InvalidRequest, NotFound
from esper.rpc.client import open_channel
from esper.rpc.server import Server
from esper.tolaria.checkpoint import CheckpointStore
from esper.tolaria.gateway import Gateway
from esper.tolaria.service import TrainerServicer
from tests.tolaria.checkpoints import filled, write
from tests.tolaria.outside import Beyond, Trainer, hello


@pytest.fixture
async def stub():
    server = Server(tokens=None)
    gateway = Gateway(Beyond(), [], [])
    server.mount(trainer_pb2_grpc.add_TrainerServiceServicer_to_server, TrainerServicer(gateway))
    port = await server.start("127.0.0.1:0")
    channel = open_channel(f"127.0.0.1:{port}", token=None)
    try:
        yield trainer_pb2_grpc.TrainerServiceStub(channel)
    finally:
        await channel.close()
        await server.stop(grace_s=0)


async def attached(stub, **fields):
    trainer = Trainer(stub.Attach)
    trainer.say(1, hello=hello(**fields))
    await trainer.until(lambda: trainer.acknowledged() or trainer.error)
    return trainer


async def test_a_line_over_a_wire(stub):
    trainer = await attached(stub)
    trainer.say(2, state=state_pb2.SystemStatePacket(run_id="run-1", sequence=1, step=10))
    await trainer.until(lambda: trainer.acknowledged() == [1, 2])
    reply = await stub.GetRun(pb.GetRunRequest(run_id="run-1"))
    assert (reply.run.run_id, reply.run.step, reply.state.step) == ("run-1", 10, 10)
    assert reply.header.revision == 2
    trainer.say(3, goodbye=pb.Goodbye(step=10, completed=True))
    await trainer.ended()
    assert trainer.error is None
    reply = await stub.GetRun(pb.GetRunRequest(run_id="run-1"))
    assert reply.run.state == pb.Run.STATE_COMPLETED


async def test_a_second_process_gets_the_status_of_a_conflict(stub):
    first = await attached(stub)
    second = await attached(stub, session="two")
    assert isinstance(second.error, Conflict)
    await first.lose()
    await second.lose()


@pytest.mark.parametrize(
    "first",
    [
        {"note": pb.Note(level="info", source="x", text="hi")},
        {"hello": pb.Hello(run_id="Not A Run Id", session="s")},
        {"hello": pb.Hello(run_id="run-1")},
    ],
    ids=["no hello", "a wrong id", "no session"],
)
async def test_a_wrong_first_message_is_invalid(stub, first):
    trainer = Trainer(stub.Attach)
    trainer.say(1, **first)
    await trainer.until(lambda: trainer.error)
    assert isinstance(trainer.error, InvalidRequest)
    await trainer.lose()


async def test_runs_are_listed_newest_first_and_in_pages(stub):
    trainers = [await attached(stub, run_id=f"run-{n}") for n in range(3)]
    reply = await stub.ListRuns(pb.ListRunsRequest(page=PageRequest(size=2)))
    assert [run.run_id for run in reply.runs] == ["run-2", "run-1"]
    page = PageRequest(size=2, token=reply.page.next_token)
    rest = await stub.ListRuns(pb.ListRunsRequest(page=page))
    assert [run.run_id for run in rest.runs] == ["run-0"]
    assert not rest.page.next_token
    for trainer in trainers:
        await trainer.lose()


@pytest.mark.parametrize("call", ["GetRun", "ListCheckpoints"])
async def test_a_run_nobody_knows_is_not_found(stub, call):
    with pytest.raises(NotFound, match="no run 'run-9' is known"):
        await getattr(stub, call)(getattr(pb, f"{call}Request")(run_id="run-9"))


async def test_checkpoints_are_listed_newest_first_without_damaged_ones(stub, tmp_path):
    trainer = await attached(stub, directory=str(tmp_path))
    store = CheckpointStore(tmp_path / "checkpoints")
    for step in (10, 20, 30):
        write(store, step, filled(step))
    (tmp_path / "checkpoints" / "step-000000020" / "tensors.safetensors").write_bytes(b"tampered")
    reply = await stub.ListCheckpoints(pb.ListCheckpointsRequest(run_id="run-1"))
    assert [manifest.step for manifest in reply.checkpoints] == [30, 10]
    await trainer.lose()


async def test_a_run_without_checkpoints_has_none(stub, tmp_path):
    trainer = await attached(stub, directory=str(tmp_path))
    reply = await stub.ListCheckpoints(pb.ListCheckpointsRequest(run_id="run-1"))
    assert not reply.checkpoints
    await trainer.lose()
