"""Each trainer's line: everything safe before it is acknowledged, everything once, one trainer to a run."""

import asyncio

import pytest

from esper.api.common.v1 import training_pb2
from esper.api.kasmina.v1 import control_pb2, nursery_pb2
from esper.api.tolaria.v1 import state_pb2
from esper.api.tolaria.v1 import trainer_pb2 as pb
from esper.errors import Conflict, InvalidRequest, NotFound
from esper.tolaria.checkpoint import CheckpointStore
from esper.tolaria.gateway import Gateway
from tests.tolaria.checkpoints import filled, spool
from tests.tolaria.checkpoints import manifest as checkpoint
from tests.tolaria.outside import Beyond, Trainer, hello


@pytest.fixture
async def beyond():
    return Beyond()


@pytest.fixture
async def gateway(beyond):
    return Gateway(beyond, [b"forge"], [b"evaluation"])


@pytest.fixture
async def attach(gateway):
    """Opens lines and ends them."""
    made = []

    def open_line(**fields):
        made.append(Trainer(gateway.attach))
        made[-1].say(1, hello=hello(**fields))
        return made[-1]

    yield open_line
    for trainer in made:
        await trainer.lose()


async def welcomed(trainer):
    await trainer.until(lambda: trainer.heard or trainer.error)
    return trainer


async def test_a_line_begins_with_hello_and_welcome(gateway, beyond, attach):
    trainer = await welcomed(attach())
    assert list(trainer.heard[0].welcome.forge_keys) == [b"forge"]
    await trainer.until(lambda: trainer.acknowledged() == [1])
    assert [h.run_id for h in beyond.hellos] == ["run-1"]
    run = gateway.desk("run-1").run
    assert (run.state, run.task_name, run.total_steps) == (pb.Run.STATE_TRAINING, "digits", 100)


async def test_a_line_that_does_not_begin_with_hello_is_refused(gateway):
    trainer = Trainer(gateway.attach)
    trainer.say(1, note=pb.Note(text="hi"))
    await trainer.ended()
    assert isinstance(trainer.error, InvalidRequest)
    assert not gateway.desks


async def test_messages_go_where_they_belong(beyond, attach):
    trainer = await welcomed(attach())
    trainer.say(2, job=nursery_pb2.Job(job_id="run-1/twin/1"))
    trainer.say(3, cancelled_job="run-1/twin/1")
    trainer.say(4, note=pb.Note(level="info", text="well"))
    await trainer.until(lambda: trainer.acknowledged() == [1, 2, 3, 4])
    assert [job.job_id for job in beyond.jobs] == ["run-1/twin/1"]
    assert beyond.cancelled == ["run-1/twin/1"]
    assert beyond.kinds() == ["hello", "job", "cancelled_job", "note"]
    assert [key for _, key, _ in beyond.told] == ["one-1", "one-2", "one-3", "one-4"]


async def test_the_same_message_again_acts_once_and_is_acknowledged_again(beyond, attach):
    trainer = await welcomed(attach())
    for _ in range(3):
        trainer.say(2, job=nursery_pb2.Job(job_id="j"))
    await trainer.until(lambda: trainer.acknowledged() == [1, 2, 2, 2])
    assert len(beyond.jobs) == 1


async def test_a_line_that_is_opened_again_goes_on_where_it_was(gateway, beyond, attach):
    first = await welcomed(attach())
    first.say(2, job=nursery_pb2.Job(job_id="j"))
    await first.until(lambda: first.acknowledged() == [1, 2])
    await first.lose()
    assert gateway.desk("run-1").run.state == pb.Run.STATE_DETACHED
    second = await welcomed(attach(last_command_sequence=7))
    second.say(2, job=nursery_pb2.Job(job_id="j"))
    second.say(3, note=pb.Note(text="back"))
    await second.until(lambda: second.acknowledged() == [1, 2, 3])
    assert len(beyond.jobs) == 1
    assert beyond.after == [0, 7]
    assert beyond.kinds() == ["hello", "job", "note"]
    assert gateway.desk("run-1").run.state == pb.Run.STATE_TRAINING


async def test_a_line_that_is_opened_again_before_the_old_one_is_given_up_is_not_closed_with_it(gateway, attach):
    first = await welcomed(attach())
    second = await welcomed(attach())
    await first.lose()
    assert gateway.desk("run-1").run.state == pb.Run.STATE_TRAINING
    intruder = await welcomed(attach(session="two"))
    assert isinstance(intruder.error, Conflict)
    second.say(2, note=pb.Note(text="still here"))
    await second.until(lambda: 2 in second.acknowledged())


async def test_two_processes_cannot_be_the_same_run(attach):
    await welcomed(attach())
    other = await welcomed(attach(session="two"))
    assert isinstance(other.error, Conflict)
    assert "is attached by another process; stop that one, or choose another run id" in str(other.error)


async def test_a_run_that_is_resumed_by_a_new_process_counts_from_one_again(gateway, beyond, attach):
    first = await welcomed(attach())
    first.say(2, note=pb.Note(text="one"))
    await first.until(lambda: 2 in first.acknowledged())
    created = gateway.desk("run-1").run.create_time
    await first.lose()
    second = await welcomed(attach(session="two", resumed=True))
    second.say(2, note=pb.Note(text="two"))
    await second.until(lambda: 2 in second.acknowledged())
    assert [m.note.text for _, _, m in beyond.told if m.HasField("note")] == ["one", "two"]
    assert gateway.desk("run-1").run.create_time == created


async def test_a_trainer_whose_messages_end_and_whose_call_is_cancelled_at_once_is_gone(gateway, beyond, attach):
    """So a process looks that is killed: its run must not stay taken by nobody."""
    ending = asyncio.Event()

    async def slow_to_end(run_id, after):
        try:
            yield await beyond.for_trainer.get()
        finally:
            ending.set()
            await asyncio.sleep(0.05)

    async def requests():
        yield pb.AttachRequest(sequence=1, hello=hello())
        await welcomed.wait()

    async def serve():
        async for _ in gateway.attach(requests()):
            welcomed.set()

    welcomed = asyncio.Event()
    beyond.commands = slow_to_end
    call = asyncio.create_task(serve())
    await asyncio.wait_for(ending.wait(), 10)
    call.cancel()
    await asyncio.wait([call])
    assert gateway.desk("run-1").session == ""
    assert gateway.desk("run-1").run.state == pb.Run.STATE_DETACHED


async def test_a_run_id_is_not_used_twice(attach):
    first = await welcomed(attach())
    await first.lose()
    refused = (await welcomed(attach(session="two"))).error
    assert isinstance(refused, Conflict)
    assert "run id 'run-1' was used before" in str(refused) and "--resume run-1" in str(refused)


async def test_what_is_for_a_trainer_reaches_it_and_no_other(beyond, attach):
    trainer = await welcomed(attach())
    command = pb.SequencedCommand(sequence=4, command=control_pb2.ControlCommand(command_id="c"))
    await beyond.for_trainer.put(pb.AttachResponse(command=command))
    await beyond.done.put(nursery_pb2.JobResult(job_id="j"))
    await trainer.until(lambda: len(trainer.heard) == 4)
    kinds = [m.WhichOneof("message") for m in trainer.heard[2:]]
    assert sorted(kinds) == ["command", "result"]


async def test_a_state_is_what_lists_show(gateway, attach):
    trainer = await welcomed(attach())
    packet = state_pb2.SystemStatePacket(run_id="run-1", step=40, train_loss=0.5)
    packet.seeds.add(state=9)
    packet.seeds.add(state=10)
    trainer.say(2, state=packet)
    await trainer.until(lambda: 2 in trainer.acknowledged())
    desk = gateway.desk("run-1")
    assert (desk.run.step, desk.run.train_loss, desk.run.fossils) == (40, 0.5, 1)
    assert desk.state == packet


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ({"completed": True}, pb.Run.STATE_COMPLETED),
        ({"error": "lost"}, pb.Run.STATE_FAILED),
        ({"stopped": True}, pb.Run.STATE_STOPPED),
    ],
    ids=str,
)
async def test_goodbye_ends_the_line(gateway, attach, said, state):
    trainer = await welcomed(attach())
    trainer.say(2, goodbye=pb.Goodbye(step=100, **said))
    await trainer.ended()
    assert trainer.error is None
    assert trainer.acknowledged() == [1, 2]
    assert gateway.desk("run-1").run.state == state


async def test_a_checkpoint_is_on_disk_before_it_is_acknowledged(attach, tmp_path):
    trainer = await welcomed(attach(directory=str(tmp_path)))
    spooled = spool(tmp_path, filled(1.0))
    manifest = checkpoint(40, tensors=training_pb2.SnapshotReference(path=str(spooled)))
    trainer.say(2, checkpoint=pb.CheckpointRequest(manifest=manifest))
    await trainer.until(lambda: 2 in trainer.acknowledged())
    assert CheckpointStore(tmp_path / "checkpoints").latest()[0].step == 40


async def test_a_checkpoint_that_cannot_be_written_is_said_and_the_line_goes_on(beyond, attach, tmp_path):
    trainer = await welcomed(attach(directory=str(tmp_path)))
    manifest = checkpoint(40, tensors=training_pb2.SnapshotReference(path="/gone"))
    trainer.say(2, checkpoint=pb.CheckpointRequest(manifest=manifest))
    trainer.say(3, note=pb.Note(text="on"))
    await trainer.until(lambda: 3 in trainer.acknowledged())
    notes = [m.note for _, _, m in beyond.told if m.HasField("note")]
    assert notes[0].level == "error"
    assert notes[0].text.startswith("checkpoint not written: checkpoint of step 40 is not written: its tensors /gone")


async def test_what_beyond_raises_ends_the_line(beyond, attach):
    async def failing(job):
        raise NotFound("no such queue")

    beyond.submit = failing
    trainer = await welcomed(attach())
    trainer.say(2, job=nursery_pb2.Job(job_id="j"))
    await trainer.ended()
    assert isinstance(trainer.error, NotFound)
    assert trainer.acknowledged() == [1]  # so it is sent again


async def test_a_run_nobody_knows_is_not_found(gateway, attach):
    await welcomed(attach())
    await asyncio.sleep(0)
    with pytest.raises(NotFound, match="no run 'run-2' is known to this runtime; known: run-1"):
        gateway.desk("run-2")
