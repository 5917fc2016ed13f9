"""The shells: read, call, write; and the board of seeds they read."""

import asyncio

import pytest

from esper.api.common.v1 import seed_pb2
from esper.api.kasmina.v1 import control_pb2, execution_pb2, nursery_pb2, telemetry_pb2
from esper.api.nissa.v1 import observability_pb2
from esper.api.tolaria.v1 import state_pb2
from esper.errors import NotFound, PreconditionFailed
from esper.kasmina.nursery.desk import NurseryDesk
from esper.kasmina.service import ExecutionServicer, NurseryServicer, SeedBoard
from esper.kasmina.worker import CommandPublisher, keep_board
from esper.oona.envelope import Sender, open_as
from esper.oona.memory import MemoryBus
from esper.oona.subjects import Name

RUN = "run-1"


def status(site="conv1", slot=0, state=seed_pb2.SEED_STATE_DORMANT):
    return telemetry_pb2.SeedStatus(seed=seed_pb2.SeedRef(run_id=RUN, site=site, slot=slot), state=state)


def board(*seeds, over=False):
    made = SeedBoard()
    made.show(RUN, 40, list(seeds) or [status()], over=over)
    return made


def command(**action):
    return control_pb2.ControlCommand(command_id="c1", run_id=RUN, issuer="operator", reason="because", **action)


def cull(site="conv1", slot=0):
    return command(cull=control_pb2.Cull(seed=seed_pb2.SeedRef(run_id=RUN, site=site, slot=slot)))


class Published(list):
    async def __call__(self, message):
        self.append(message)


async def test_seeds_are_listed_as_of_the_last_decision_point():
    culled = status(slot=1, state=seed_pb2.SEED_STATE_CULLED)
    servicer = ExecutionServicer(board(status(), culled), Published())
    everything = await servicer.ListSeeds(execution_pb2.ListSeedsRequest(run_id=RUN), None)
    assert (list(everything.seeds), everything.step) == ([status(), culled], 40)
    some = await servicer.ListSeeds(execution_pb2.ListSeedsRequest(run_id=RUN, state=seed_pb2.SEED_STATE_CULLED), None)
    assert list(some.seeds) == [culled]


async def test_a_command_is_checked_and_published():
    published = Published()
    servicer = ExecutionServicer(board(), published)
    for message in (cull(), command(pause=control_pb2.Pause(paused=True))):
        await servicer.SendCommand(execution_pb2.SendCommandRequest(command=message), None)
    assert published == [cull(), command(pause=control_pb2.Pause(paused=True))]


@pytest.mark.parametrize(
    ("made", "message", "error", "said"),
    [
        (SeedBoard(), cull(), NotFound, "no run 'run-1' has reached a decision point here; runs: none"),
        (board(), cull("conv9"), NotFound, "no seed conv9/0 in run 'run-1'; sites: conv1"),
        (board(), cull(slot=3), NotFound, "no seed conv1/3 in run 'run-1'"),
        (board(over=True), cull(), PreconditionFailed, "run 'run-1' is over"),
    ],
)
async def test_a_command_that_cannot_arrive_is_refused_and_not_published(made, message, error, said):
    published = Published()
    with pytest.raises(error, match=said):
        await ExecutionServicer(made, published).SendCommand(execution_pb2.SendCommandRequest(command=message), None)
    assert not published


async def test_the_board_follows_the_runs_packets():
    bus, made = MemoryBus(), SeedBoard()
    sender = Sender("tolaria/0")
    packet = state_pb2.SystemStatePacket(run_id=RUN, step=7, seeds=[status()], final=True)
    await bus.publish(Name.EPOCH, sender.seal(packet, run_id=RUN))
    following = asyncio.ensure_future(keep_board(bus, made))
    async with asyncio.timeout(10):
        while True:
            try:
                step, seeds = made.seeds(RUN)
                break
            except NotFound:
                await asyncio.sleep(0)
    assert (step, list(seeds)) == (7, [status()])
    with pytest.raises(PreconditionFailed):
        made.check(cull())
    await bus.close()
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


def moved(slot, to, step=9):
    before, seed = seed_pb2.SEED_STATE_TRAINING, seed_pb2.SeedRef(run_id=RUN, site="conv1", slot=slot)
    return seed_pb2.SeedTransition(**{"seed": seed, "from": before, "to": to, "step": step, "reason": "the run ended"})


async def test_the_board_has_the_moves_that_the_end_of_a_run_made_after_its_last_packet():
    bus, made, sender = MemoryBus(), SeedBoard(), Sender("tolaria/0")
    seeds = [status(slot=slot, state=seed_pb2.SEED_STATE_TRAINING) for slot in range(2)]
    packet = state_pb2.SystemStatePacket(run_id=RUN, step=7, seeds=seeds, final=True)
    await bus.publish(Name.EPOCH, sender.seal(packet, run_id=RUN))
    event = observability_pb2.RunEvent(run_id=RUN, transition=moved(1, seed_pb2.SEED_STATE_CANCELLED))
    await bus.publish(Name.EPOCH, sender.seal(event, run_id=RUN))
    following = asyncio.ensure_future(keep_board(bus, made))
    async with asyncio.timeout(10):
        while made._latest.get(RUN, (0,))[0] != 9:
            await asyncio.sleep(0)
    _, (first, second) = made.seeds(RUN)
    assert first == seeds[0]
    assert (second.state, second.state_step, second.reason) == (seed_pb2.SEED_STATE_CANCELLED, 9, "the run ended")
    await bus.close()
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


def test_the_alpha_of_a_graft_that_the_end_kept_or_took_out_is_what_it_is_then():
    seeds = [status(slot=slot, state=seed_pb2.SEED_STATE_FINE_TUNING) for slot in range(2)]
    made = board(*seeds, over=True)
    made.move(RUN, moved(0, seed_pb2.SEED_STATE_FOSSILIZED))
    seeds[1].alpha = 0.5
    made.move(RUN, moved(1, seed_pb2.SEED_STATE_CULLED))
    assert [seed.alpha for seed in made.seeds(RUN)[1]] == [1.0, 0.0]


def test_a_move_in_mid_run_waits_for_the_packet_that_has_all_of_it():
    made = board()
    made.move(RUN, moved(0, seed_pb2.SEED_STATE_CULLED, step=50))
    made.move("another", moved(0, seed_pb2.SEED_STATE_CULLED))
    assert made.seeds(RUN) == (40, [status()])


async def test_an_operators_command_goes_on_the_bus_under_its_own_id():
    bus = MemoryBus()
    publish = CommandPublisher(bus)
    await publish(cull())
    await publish(cull())
    seen = []
    async for delivery in bus.subscribe(Name.COMMANDS):
        seen.append(open_as(delivery.envelope, control_pb2.ControlCommand))
        break
    assert seen == [cull()]
    await bus.close()


class Idle:
    async def run(self, kind, payload, timeout_s, *, priority=0, long=False, on_partial=None):
        job = nursery_pb2.Job.FromString(payload)
        return nursery_pb2.JobResult(job_id=job.job_id, run_id=job.run_id, flops=2.0).SerializeToString()


async def provide(_artifact_ids):
    return None


async def test_the_nursery_service_is_the_desks_shell():
    servicer = NurseryServicer(NurseryDesk(Idle(), provide), lambda: (3, 2, 4))
    job = nursery_pb2.Job(job_id="j1", run_id=RUN, control_run=nursery_pb2.ControlRun(steps=1))
    assert (await servicer.CreateJob(nursery_pb2.CreateJobRequest(job=job), None)).ahead == 0
    async for told in servicer.WatchResults(nursery_pb2.WatchResultsRequest(run_id=RUN), None):
        assert told.result.job_id == "j1"
        break
    found = await servicer.GetJob(nursery_pb2.GetJobRequest(job_id="j1"), None)
    assert found.result.flops == 2.0 and not found.HasField("job")
    await servicer.CancelJob(nursery_pb2.CancelJobRequest(job_id="j1"), None)
    seen = await servicer.GetNurseryStatus(nursery_pb2.GetNurseryStatusRequest(), None)
    assert (seen.queued, seen.busy_workers, seen.workers, seen.done, seen.failed, seen.flops) == (3, 2, 4, 1, 0, 2.0)
