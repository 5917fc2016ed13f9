"""The desk: every job is answered once, whatever happens to its worker."""

import asyncio

import pytest

from esper.api.common.v1 import seed_pb2
from esper.api.kasmina.v1 import control_pb2, nursery_pb2
from esper.errors import Exhausted, NotFound, Unavailable
from esper.kasmina.nursery.desk import MAX_KEPT_RESULTS, NurseryDesk, kernels_of


class Workers:
    """Answers each job when told to: with a result, after partial ones, or with an error."""

    def __init__(self):
        self.open = asyncio.Event()
        self.open.set()
        self.errors = []
        self.partial = []
        self.calls = []

    async def run(self, kind, payload, timeout_s, *, priority=0, long=False, on_partial=None):
        self.calls.append((kind, priority, long))
        await self.open.wait()
        if self.errors:
            raise self.errors.pop(0)
        for result in self.partial:
            on_partial(result.SerializeToString())
        job = nursery_pb2.Job.FromString(payload)
        return nursery_pb2.JobResult(job_id=job.job_id, run_id=job.run_id, flops=5.0).SerializeToString()


class Office:
    def __init__(self, **options):
        self.workers, self.provided = Workers(), []
        self.desk = NurseryDesk(self.workers, self.provide, **options)

    async def provide(self, artifact_ids):
        self.provided.append(set(artifact_ids))
        if "unknown" in artifact_ids:
            raise NotFound("no kernel unknown")
        if "cursed" in artifact_ids:
            raise OSError("disk on fire")

    async def answer(self, job_id):
        async with asyncio.timeout(10):
            while True:
                found = self.desk.get(job_id)[1]
                if found is not None:
                    return found
                await asyncio.sleep(0)


def graft(artifact_id, *, folded=False):
    return seed_pb2.Graft(seed=seed_pb2.SeedRef(site="a"), artifact_id=artifact_id, folded=folded)


def job(number=1, *, run_id="run-1", grafts=(), **options):
    work = nursery_pb2.ControlRun(steps=1, grafts=grafts)
    return nursery_pb2.Job(job_id=f"j{number}", run_id=run_id, control_run=work, **options)


async def test_a_job_is_done_and_its_result_kept():
    office = Office()
    assert office.desk.submit(job(priority=7, grafts=[graft("k"), graft("gone", folded=True)])) == 0
    assert office.desk.get("j1")[0].job_id == "j1"
    assert (await office.answer("j1")).flops == 5.0
    assert office.workers.calls == [("nursery", 7, True)] and office.provided == [{"k"}]
    assert (office.desk.done, office.desk.failed, office.desk.flops, office.desk.open_jobs) == (1, 0, 5.0, 0)


async def test_the_same_job_is_done_once():
    office = Office()
    office.workers.open.clear()
    assert [office.desk.submit(job(1)), office.desk.submit(job(2)), office.desk.submit(job(1))] == [0, 1, 0]
    office.workers.open.set()
    await office.answer("j1")
    assert office.desk.submit(job(1)) == 0
    await office.answer("j2")
    assert len(office.workers.calls) == 2


async def test_too_many_open_jobs_are_refused():
    office = Office(max_open=1)
    office.workers.open.clear()
    office.desk.submit(job(1))
    with pytest.raises(Exhausted, match="the nursery has 1 open jobs, the limit"):
        office.desk.submit(job(2))
    await office.desk.close()


async def test_a_worker_that_dies_is_given_one_more_chance():
    office = Office()
    office.workers.errors = [Unavailable("worker died")]
    office.desk.submit(job())
    assert not (await office.answer("j1")).failure.code and len(office.workers.calls) == 2
    office.workers.errors = [Unavailable("worker died")] * 2
    office.desk.submit(job(2))
    assert (await office.answer("j2")).failure.message == "worker died"
    assert office.desk.failed == 1


@pytest.mark.parametrize(
    ("artifact_id", "said"), [("unknown", "no kernel unknown"), ("cursed", "OSError: disk on fire")]
)
async def test_a_kernel_that_cannot_be_had_fails_the_job(artifact_id, said):
    office = Office()
    office.desk.submit(job(grafts=[graft(artifact_id)]))
    result = await office.answer("j1")
    assert result.failure.message == said and result.HasField("control_run")
    assert office.workers.calls == [] and office.desk.open_jobs == 0


async def test_an_error_nobody_foresaw_is_an_answer_too():
    office = Office()
    office.workers.errors = [ValueError("out of luck")]
    office.desk.submit(job())
    assert (await office.answer("j1")).failure.message == "ValueError: out of luck"


async def test_a_cancelled_job_says_so():
    office = Office()
    office.workers.open.clear()
    office.desk.submit(job())
    await asyncio.sleep(0)
    office.desk.cancel("j1")
    assert (await office.answer("j1")).failure.message == "the job was cancelled"
    office.desk.cancel("j1")  # done already
    with pytest.raises(NotFound, match="no nursery job 'j9'"):
        office.desk.cancel("j9")


async def test_a_watcher_that_comes_back_hears_what_it_missed_of_an_answer():
    office, heard = Office(), []
    part = nursery_pb2.JobResult(job_id="j1", run_id="run-1", twin=nursery_pb2.TwinResult(partial=True))
    office.workers.partial = [part, part]
    office.desk.submit(job(1))
    await office.answer("j1")
    office.workers.partial = []
    office.desk.submit(job(2, run_id="run-2"))
    await office.answer("j2")
    async with asyncio.timeout(10):
        async for result in office.desk.watch("run-1"):
            heard.append((result.job_id, result.twin.partial))
            if not result.twin.partial:
                break
    assert heard == [("j1", True), ("j1", True), ("j1", False)]


async def test_a_watcher_hears_kept_results_then_partial_and_final_ones_of_its_run():
    office = Office()
    office.desk.submit(job(1))
    await office.answer("j1")
    heard = []

    async def listen():
        async for result in office.desk.watch("run-1"):
            heard.append((result.job_id, result.twin.partial))

    listening = asyncio.ensure_future(listen())
    await asyncio.sleep(0)
    office.workers.partial = [
        nursery_pb2.JobResult(job_id="j2", run_id="run-1", twin=nursery_pb2.TwinResult(partial=True))
    ]
    office.desk.submit(job(2))
    await office.answer("j2")
    office.workers.partial = []
    office.desk.submit(job(3, run_id="run-2"))
    await office.answer("j3")
    await asyncio.sleep(0)
    assert heard == [("j1", False), ("j2", True), ("j2", False)]
    listening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listening
    assert not office.desk._watchers["run-1"]


async def test_results_are_kept_up_to_a_bound():
    office = Office()
    for number in range(3):
        office.desk.submit(job(number))
        await office.answer(f"j{number}")
    office.desk._results.update({f"old{i}": nursery_pb2.JobResult() for i in range(MAX_KEPT_RESULTS - 3)})
    office.desk.submit(job(9))
    await office.answer("j9")
    assert len(office.desk._results) == MAX_KEPT_RESULTS
    with pytest.raises(NotFound):
        office.desk.get("j0")


async def test_closing_answers_what_is_open():
    office = Office()
    office.workers.open.clear()
    office.desk.submit(job())
    await asyncio.sleep(0)
    await office.desk.close()
    assert office.desk.get("j1")[1].failure.code and office.desk.open_jobs == 0


def test_a_job_needs_the_kernels_of_its_candidates_and_grafts():
    point = nursery_pb2.RunPoint(grafts=[graft("g"), graft("folded", folded=True)])
    candidate = control_pb2.Assignment(artifact_id="c")
    arm, control = nursery_pb2.Arm(grafts=[graft("a")]), nursery_pb2.Arm(grafts=[graft("b")])
    needs = {
        "trial": ({"trial": nursery_pb2.Trial(point=point, candidates=[candidate])}, {"c", "g"}),
        "twin": ({"twin": nursery_pb2.Twin(point=point)}, {"g"}),
        "measure": ({"measure": nursery_pb2.Measure(arms=[arm], controls=[control])}, {"a", "b"}),
        "control_run": ({"control_run": nursery_pb2.ControlRun(grafts=[graft("s")])}, {"s"}),
    }
    assert {kind: kernels_of(nursery_pb2.Job(**work)) for kind, (work, _) in needs.items()} == {
        kind: wanted for kind, (_, wanted) in needs.items()
    }
