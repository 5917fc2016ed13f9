"""Decision points from the bus: each answered once, in order, over restarts and repetitions."""

import asyncio
import contextlib

import pytest

from esper.api.kasmina.v1 import control_pb2
from esper.api.tamiyo.v1 import controller_pb2 as pb
from esper.api.tolaria.v1 import trainer_pb2
from esper.errors import Unavailable
from esper.oona.cursor import Cursor, FileCursorStore, MemoryCursorStore
from esper.oona.envelope import Sender, unpack
from esper.oona.memory import MemoryBus
from esper.oona.subjects import Name
from esper.tamiyo.memory import load
from esper.tamiyo.service import answer_log, decision_log
from esper.tamiyo.worker import ControllerWorker

from .scenes import answer, controller, memory, packet, ref, seed, tracked


@pytest.fixture
def logs(tmp_path):
    opened = answer_log(tmp_path / "answers.sqlite"), decision_log(tmp_path / "decisions.sqlite")
    yield opened
    for log in opened:
        log.close()


async def until(condition, timeout_s=20.0):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.002)


async def no_advice(packet):
    return ()


@contextlib.asynccontextmanager
async def working(bus, logs, *, cursors=None, advise=no_advice, made=None):
    cursor = await Cursor.open(cursors or MemoryCursorStore(), "tamiyo")
    worker = ControllerWorker(bus, cursor, made or controller(), *logs, advise)
    task = asyncio.create_task(worker.run())
    yield worker
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class Ear:
    """What a worker publishes, by name, in order."""

    def __init__(self, bus):
        self.bus, self.heard, self.envelopes = bus, {}, {}

    async def __aenter__(self):
        names = (Name.COMMANDS, Name.ADAPTATION_PROPOSAL, Name.FIELD_REPORTS)
        self.heard = {name: [] for name in names}
        self.envelopes = {name: [] for name in names}
        self.tasks = [asyncio.create_task(self._listen(name)) for name in names]
        return self

    async def __aexit__(self, *error):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _listen(self, name):
        async for delivery in self.bus.subscribe(name):
            self.envelopes[name].append(delivery.envelope)
            self.heard[name].append(unpack(name, delivery.envelope))

    def replies(self):
        return [m for m in self.heard[Name.COMMANDS] if isinstance(m, trainer_pb2.DecisionReply)]

    def commands(self):
        return [m for m in self.heard[Name.COMMANDS] if isinstance(m, control_pb2.ControlCommand)]

    async def replied(self, count):
        await until(lambda: len(self.replies()) >= count)


async def tell(bus, *packets, sender=None):
    sender = sender or Sender("tolaria/0")
    for state in packets:
        await bus.publish(Name.EPOCH, sender.seal(state, run_id=state.run_id))


async def test_an_answer_is_published_whole_and_ends_with_the_reply(logs):
    bus = MemoryBus()
    ended = packet(
        seeds=[seed("fc1", 0, "CULLED"), seed("fc1", 1), seed("fc2", 0)],
        controller_state=memory(tracked=[tracked("fc1", 0)]),
    )
    async with Ear(bus) as ear, working(bus, logs):
        await tell(bus, ended)
        await ear.replied(1)
    expected = answer(ended)
    (decision,) = expected.decisions
    assert ear.commands() == list(decision.plan.commands)
    assert isinstance(ear.heard[Name.COMMANDS][-1], trainer_pb2.DecisionReply)
    (reply,) = ear.replies()
    assert (reply.sequence, reply.decision_id) == (10, "run-1/10/1")
    assert reply.controller_state == expected.controller_state
    assert list(reply.command_ids) == [c.command_id for c in decision.plan.commands]
    assert reply.summary == decision.reason
    (proposal,) = ear.heard[Name.ADAPTATION_PROPOSAL]
    assert (proposal.decision, proposal.apply_at_step) == (decision, 1000)
    assert ear.heard[Name.FIELD_REPORTS] == list(expected.field_reports)
    assert logs[1].get("run-1/10/1") == decision


async def test_everything_published_names_its_cause_and_its_run(logs):
    bus, sender = MemoryBus(), Sender("tolaria/0")
    asked = sender.seal(packet(), run_id="run-1", trace_parent="00-trace-01")
    async with Ear(bus) as ear, working(bus, logs):
        await bus.publish(Name.EPOCH, asked)
        await ear.replied(1)
    for envelope in (e for envelopes in ear.envelopes.values() for e in envelopes):
        assert (envelope.causation_id, envelope.trace_parent) == (asked.id, "00-trace-01")
        assert (envelope.run_id, envelope.sender) == ("run-1", "tamiyo")


async def test_a_packet_that_comes_again_gets_the_same_answer_and_acts_once(logs, tmp_path):
    bus = MemoryBus()
    async with Ear(bus) as ear:
        async with working(bus, logs):
            await tell(bus, packet())
            await ear.replied(1)
        # the process died before its place was saved; the library has moved on since
        async with working(bus, logs, made=controller([])):
            await tell(bus, packet(sequence=11, paused=True))
            await ear.replied(2)
    assert [reply.sequence for reply in ear.replies()] == [10, 11]
    assert len(ear.commands()) == 1
    assert len(ear.heard[Name.ADAPTATION_PROPOSAL]) == 2


async def test_work_goes_on_where_it_was_left(logs, tmp_path):
    bus, cursors = MemoryBus(), FileCursorStore(tmp_path / "cursors")
    asked = []

    async def advise(state):
        asked.append(state.sequence)
        return ()

    async with Ear(bus) as ear:
        for sequence in (1, 2, 3):
            async with working(bus, logs, cursors=cursors, advise=advise):
                await tell(bus, packet(sequence=sequence))
                await ear.replied(sequence)
                await until(lambda expected=sequence: len(asked) == expected)
                await asyncio.sleep(0.05)  # the place is saved after the reply
    assert asked == [1, 2, 3]


async def test_a_decision_point_that_cannot_be_answered_keeps_the_runs_memory(logs):
    bus = MemoryBus()
    kept = memory(turn=3)
    async with Ear(bus) as ear, working(bus, logs):
        await tell(bus, packet("gnn", controller_state=kept), packet("never", sequence=11))
        await ear.replied(2)
    failed, answered = ear.replies()
    assert failed.controller_state == kept
    assert failed.summary.startswith("not answered: policy 'gnn' is not in this release")
    assert not failed.decision_id
    assert answered.decision_id == "run-1/11/1"


async def test_a_memory_nobody_wrote_does_not_stop_the_worker(logs):
    bus = MemoryBus()
    async with Ear(bus) as ear, working(bus, logs):
        await tell(bus, packet(controller_state=b"\xff"), packet("never", sequence=11))
        await ear.replied(2)
    assert "not what a controller wrote" in ear.replies()[0].summary


async def test_the_sculptors_commands_come_before_the_controllers(logs):
    bus = MemoryBus()
    removal = control_pb2.ControlCommand(
        command_id="run-1/remove/10", run_id="run-1", issuer="emrakul", reason="no use", remove={"seed": ref("fc1")}
    )

    async def advise(state):
        return [removal]

    async with Ear(bus) as ear, working(bus, logs, advise=advise):
        await tell(bus, packet())
        await ear.replied(1)
    assert [c.issuer for c in ear.commands()] == ["emrakul", "tamiyo"]


async def test_growth_goes_on_without_the_sculptor(logs, caplog):
    async def gone(state):
        raise Unavailable("no sculptor here")

    bus = MemoryBus()
    async with Ear(bus) as ear, working(bus, logs, advise=gone):
        await tell(bus, packet())
        await ear.replied(1)
    assert len(ear.commands()) == 1
    assert "no advice for run-1/10: no sculptor here" in caplog.text


async def test_a_run_that_is_ahead_of_its_answers_loses_no_memory(logs):
    """The next packet left before the answer to this one came, so it carries the memory from before."""
    bus = MemoryBus()
    async with Ear(bus) as ear, working(bus, logs):
        await tell(bus, packet(), packet(sequence=11, step=1100))
        await ear.replied(2)
    assert len(ear.commands()) == 1
    first, second = (load(reply.controller_state) for reply in ear.replies())
    assert first.events == second.events == 1
    assert second.tracked == first.tracked


async def test_two_runs_do_not_share_a_memory(logs):
    bus = MemoryBus()
    async with Ear(bus) as ear, working(bus, logs):
        await tell(bus, packet(), packet(run_id="run-2", sequence=11))
        await ear.replied(2)
    assert [c.run_id for c in ear.commands()] == ["run-1", "run-2"]
    assert isinstance(logs[0].get("run-2/11"), pb.DecideResponse)
