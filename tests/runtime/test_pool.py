"""Worker pools: a job has a process of its own, and whatever it does there costs that job only."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from esper.errors import DeadlineExceeded, Exhausted, KernelFault, Unavailable
from esper.runtime.pool import MAX_FAILED_STARTS, Pool

KINDS = (
    *("echo", "pid", "remember", "nap", "count", "refuse", "leave", "die", "prepared", "state"),
    *("child_status", "start_and_nap", "confined_attempt"),
)
LIMIT_S = 60.0

# One pool for most tests, and so one event loop: a pool takes as long to start as torch takes to import.
pytestmark = pytest.mark.asyncio(loop_scope="module")


def made(size: int = 2, **options: object) -> Pool:
    return Pool("test", {kind: f"tests.runtime.work:{kind}" for kind in KINDS}, size=size, **options)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pool]:
    started = made(log=tmp_path_factory.mktemp("pool") / "pool.log")
    await started.start()
    yield started
    await started.stop()


@pytest.fixture
def pool(shared: Pool) -> Pool:
    """Two places, both free."""
    assert (shared.busy, shared.queued) == (0, 0)
    return shared


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def narrow() -> AsyncIterator[Pool]:
    """One place, and room for four to wait."""
    started = made(size=1, max_queued=4)
    await started.start()
    yield started
    await started.stop()


def warm_process(pool: Pool) -> psutil.Process:
    return next(p for p in psutil.Process().children() if str(pool._folder) in " ".join(p.cmdline()))


async def napping(pool: Pool, seconds: float = 60.0, **options: object) -> tuple[asyncio.Task[bytes], int]:
    """A job under way, and the process it is in."""
    began: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    job = asyncio.create_task(
        pool.run("nap", str(seconds).encode(), LIMIT_S, on_partial=lambda said: began.set_result(int(said)), **options)
    )
    return job, await asyncio.wait_for(began, LIMIT_S)


async def ends(pid: int) -> None:
    """A killed process needs a moment, at the lowest priority on a busy machine."""
    async with asyncio.timeout(20):
        with contextlib.suppress(psutil.NoSuchProcess):
            while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                await asyncio.sleep(0.02)


async def test_jobs_are_answered_in_processes_of_their_own(pool):
    pids = [await pool.run("pid", b"", LIMIT_S) for _ in range(3)]
    assert len({*pids, str(os.getpid()).encode()}) == 4
    assert await pool.run("echo", bytes(3 << 20), LIMIT_S) == bytes(3 << 20)


async def test_no_job_sees_what_an_earlier_one_left(pool):
    assert [await pool.run("remember", word, LIMIT_S) for word in (b"a", b"b")] == [b"a", b"b"]


async def test_workers_have_one_thread_and_the_lowest_priority(pool):
    assert await pool.run("state", b"", LIMIT_S) == b"19 1 True"


async def test_what_a_job_raises_is_its_error_and_the_next_one_is_done(pool):
    with pytest.raises(KernelFault, match="ValueError: not today"):
        await pool.run("refuse", b"today", LIMIT_S)
    assert await pool.run("echo", b"on", LIMIT_S) == b"on"


@pytest.mark.parametrize("how", ["die", "leave"])
async def test_a_worker_that_dies_costs_its_own_job_only(pool, how):
    other, _ = await napping(pool, 0.3)
    with pytest.raises(Unavailable, match=f"worker of a {how} job died"):
        await pool.run(how, b"", LIMIT_S)
    assert await other == b"rested"
    assert (pool.busy, pool.queued) == (0, 0)


async def test_a_worker_killed_from_outside_costs_its_job_only(pool):
    job, worker = await napping(pool)
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(Unavailable, match="died"):
        await job
    assert await pool.run("echo", b"on", LIMIT_S) == b"on"


async def test_a_job_over_its_limit_is_ended_with_its_worker(pool):
    said: list[bytes] = []
    with pytest.raises(DeadlineExceeded, match=r"nap job was still at work after 0\.3 s"):
        await pool.run("nap", b"60", 0.3, on_partial=said.append)
    assert await pool.run("echo", b"on", LIMIT_S) == b"on"
    await ends(int(said[0]))


async def test_a_job_whose_caller_goes_away_is_ended_with_its_worker_and_all_it_started(pool):
    said: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    job = asyncio.create_task(pool.run("start_and_nap", b"60", LIMIT_S, on_partial=said.set_result))
    started, file = (await asyncio.wait_for(said, LIMIT_S)).decode().split()
    worker = psutil.Process(int(started)).ppid()
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    for pid in (worker, int(started)):
        await ends(pid)
    assert not Path(file).parent.exists()
    assert (pool.busy, pool.queued) == (0, 0)
    assert await pool.run("echo", b"on", LIMIT_S) == b"on"


async def test_a_job_whose_caller_goes_away_while_it_waits_never_begins(narrow):
    first, _ = await napping(narrow, 0.3)
    said: list[bytes] = []
    waiting = asyncio.create_task(narrow.run("nap", b"0", LIMIT_S, on_partial=said.append))
    await asyncio.sleep(0)
    waiting.cancel()
    assert await narrow.run("echo", b"on", LIMIT_S) == b"on"
    assert await first == b"rested"
    assert waiting.cancelled()
    assert not said


async def test_a_job_whose_caller_goes_away_before_a_worker_has_come_is_given_to_none(narrow):
    async with asyncio.timeout(LIMIT_S):
        while narrow._idle.qsize() < narrow.size + narrow.spare:
            await asyncio.sleep(0.02)
    warm = warm_process(narrow)
    os.kill(warm.pid, signal.SIGSTOP)  # it forks nobody while it stands still
    said: list[bytes] = []
    try:
        for _ in range(narrow._idle.qsize()):
            await narrow.run("echo", b"x", LIMIT_S)
        job = asyncio.create_task(narrow.run("nap", b"60", LIMIT_S, on_partial=said.append))
        await asyncio.sleep(0.05)
        assert narrow.busy == 1
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
    finally:
        os.kill(warm.pid, signal.SIGCONT)
    assert await narrow.run("echo", b"on", LIMIT_S) == b"on"
    assert not said


@pytest.mark.parametrize("status", [0, 3])
async def test_a_job_is_told_how_what_it_started_ended(pool, status):
    assert await pool.run("child_status", str(status).encode(), LIMIT_S) == str(status).encode()


@pytest.mark.parametrize(("nap_s", "limit_s"), [(0, LIMIT_S), (60, 2)], ids=["done", "over its limit"])
async def test_what_a_job_started_ends_with_it_and_its_files_are_removed(pool, nap_s, limit_s):
    said: list[bytes] = []
    with contextlib.suppress(DeadlineExceeded):
        await pool.run("start_and_nap", str(nap_s).encode(), limit_s, on_partial=said.append)
    started, file = said[0].decode().split()
    await ends(int(started))
    assert Path(file).is_relative_to(pool._folder)
    assert not Path(file).parent.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="there is no system call filter elsewhere")
@pytest.mark.parametrize(
    ("what", "comes"),
    [
        ("memory", "MemoryError: "),
        ("file", "OSError: [Errno 27] File too large"),
        ("files", "OSError: [Errno 24] Too many open files: '/dev/null'"),
        ("socket", "PermissionError: [Errno 1] Operation not permitted"),
        ("unix socket", "PermissionError: [Errno 1] Operation not permitted"),
        ("program", "CalledProcessError: Command "),
        ("work", "done"),
    ],
)
async def test_a_forge_worker_has_limits_and_no_network_and_neither_has_what_it_starts(pool, what, comes):
    assert (await pool.run("confined_attempt", what.encode(), LIMIT_S)).decode().startswith(comes)
    assert await pool.run("echo", b"on", LIMIT_S) == b"on"


async def test_partial_answers_come_in_order_before_the_last(pool):
    said: list[bytes] = []
    assert await pool.run("count", b"200", LIMIT_S, on_partial=said.append) == b"done"
    assert said == [str(number).encode() for number in range(200)]


async def test_more_jobs_than_places_wait_best_first(narrow):
    order: list[int] = []
    first, _ = await napping(narrow, 0.3)

    async def one(priority: int) -> None:
        await narrow.run("echo", b"", LIMIT_S, priority=priority)
        order.append(priority)

    waiting = [asyncio.create_task(one(priority)) for priority in (1, 3, 2)]
    await asyncio.sleep(0)
    assert narrow.queued == 3
    await asyncio.gather(first, *waiting)
    assert order == [3, 2, 1]


async def test_long_jobs_leave_a_place_for_short_ones(pool):
    long, _ = await napping(pool, 0.5, long=True)
    other = asyncio.create_task(pool.run("nap", b"0.1", LIMIT_S, long=True))
    assert await pool.run("echo", b"short", LIMIT_S) == b"short"
    assert (pool.busy, pool.queued) == (1, 1)
    assert await asyncio.gather(long, other) == [b"rested", b"rested"]


async def test_a_full_queue_refuses_and_says_so(narrow):
    first, _ = await napping(narrow, 0.5)
    waiting = [asyncio.create_task(narrow.run("echo", b"", LIMIT_S)) for _ in range(4)]
    await asyncio.sleep(0)
    with pytest.raises(Exhausted, match="test queue holds 4 jobs, the limit"):
        await narrow.run("echo", b"", LIMIT_S)
    await asyncio.gather(first, *waiting)


async def test_a_job_whose_caller_has_gone_is_not_begun(narrow):
    first, _ = await napping(narrow, 0.3)
    gone = asyncio.create_task(narrow.run("nap", b"60", LIMIT_S))
    await asyncio.sleep(0)
    gone.cancel()
    assert await first == b"rested"
    assert await narrow.run("echo", b"next", LIMIT_S) == b"next"


async def test_a_preload_is_there_for_every_job_after_it(pool):
    await pool.preload("tests.runtime.work:prepare", "data")
    assert [await pool.run("prepared", b"", LIMIT_S) for _ in range(4)] == [b"['data']"] * 4


async def test_a_preload_that_fails_is_logged_and_the_pool_goes_on(pool):
    await pool.preload("tests.runtime.work:fail_to_prepare", "data")
    assert await pool.run("echo", b"on", LIMIT_S) == b"on"
    assert "RuntimeError: no data" in pool.log.read_text()


async def test_a_killed_warm_process_costs_the_jobs_under_way_and_is_started_again(pool):
    await pool.preload("tests.runtime.work:prepare", "more")
    job, worker = await napping(pool)
    before = warm_process(pool)
    before.kill()
    with pytest.raises(Unavailable, match="died; the job may be sent again"):
        await job
    assert b"more" in await pool.run("prepared", b"", LIMIT_S)
    await ends(worker)
    assert warm_process(pool).pid != before.pid


async def test_jobs_that_wait_while_the_warm_process_is_killed_are_done(pool):
    first = warm_process(pool)
    os.kill(first.pid, signal.SIGSTOP)  # it forks nobody while it stands still
    jobs = [asyncio.create_task(pool.run("echo", b"x", LIMIT_S)) for _ in range(8)]
    await asyncio.sleep(0.1)
    first.kill()
    answers = await asyncio.gather(*jobs, return_exceptions=True)
    assert {a for a in answers if isinstance(a, bytes)} == {b"x"}
    assert all(a == b"x" or isinstance(a, Unavailable) for a in answers)


async def test_a_pool_that_cannot_start_fails_its_jobs_with_the_way_out(tmp_path):
    log = tmp_path / "pool.log"
    pool = Pool("broken", {"job": "tests.runtime.no_such_module:job"}, size=2, log=log)
    await pool.start()
    try:
        jobs = [asyncio.create_task(pool.run("job", b"", LIMIT_S)) for _ in range(3)]
        for job in jobs:
            with pytest.raises(Unavailable, match=rf"broken pool.*{log}.*restart the runtime"):
                await job
        with pytest.raises(Unavailable, match="restart the runtime"):
            await pool.run("job", b"", LIMIT_S)
    finally:
        await pool.stop()
    assert log.read_text().count("no_such_module") > MAX_FAILED_STARTS


async def test_stopping_ends_every_process_fails_what_waits_and_removes_the_socket():
    pool = made(size=1)
    await pool.start()
    job, worker = await napping(pool)
    waiting = asyncio.create_task(pool.run("echo", b"", LIMIT_S))
    await asyncio.sleep(0)
    family = [warm_process(pool), *warm_process(pool).children()]
    folder = pool._folder
    await pool.stop()
    for task in (job, waiting):
        with pytest.raises(Unavailable, match="stopping"):
            await task
    for pid in [worker, *(p.pid for p in family)]:
        await ends(pid)
    assert not folder.exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends children with their parent on Linux only")
async def test_a_pool_whose_owner_is_killed_leaves_nobody(tmp_path: Path):
    program = (
        "import asyncio; from esper.runtime.pool import Pool\n"
        "async def main():\n"
        "    pool = Pool('orphan', {'nap': 'tests.runtime.work:nap'}, size=1)\n"
        "    await pool.start()\n"
        "    await pool.run('nap', b'60', 60, on_partial=lambda pid: print(int(pid), flush=True))\n"
        "asyncio.run(main())"
    )
    owner = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    assert owner.stdout is not None
    worker = int(await owner.stdout.readline())
    family = psutil.Process(owner.pid).children(recursive=True)
    assert worker in {p.pid for p in family}
    owner.kill()
    await owner.wait()
    _, alive = await asyncio.to_thread(psutil.wait_procs, family, 10)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
