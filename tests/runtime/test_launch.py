"""Finding or starting the runtime of a home, beside others who do the same, and leaving it."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from esper.errors import Conflict, Unavailable
from esper.runtime import launch
from esper.runtime.home import Contact, Home
from esper.runtime.launch import Child, UsedRuntime, find_or_start_runtime, use_runtime
from esper.runtime.use import Use
from tests.runtime.processes import until

# What `esper up` does of what matters here: it holds the home, or is refused, and says where it is after a while.
RUNTIME = """
import os, sys, time
from pathlib import Path
from esper.errors import Conflict
from esper.runtime.home import Contact, Home
home, wait_s, ends = Home(Path(sys.argv[1])), float(sys.argv[2]), len(sys.argv) > 3
try:
    with home.held():
        print("starting", flush=True)
        time.sleep(wait_s)
        if ends:
            sys.exit("it cannot be")
        home.publish(Contact("127.0.0.1:1", str(home.token_file), os.getpid(), "", "0", while_used=True))
        time.sleep(60)
except Conflict as error:
    sys.exit(f"refused: {error}")
"""


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


@pytest.fixture
def started(monkeypatch) -> list[Child]:
    """Have runtimes that are cheap to start; those that were."""
    made: list[Child] = []

    def start(home: Home, *arguments: str) -> Child:
        made.append(Child(["-c", RUNTIME, str(home.root), *(arguments or ["0"])], home.folder("logs") / "runtime.log"))
        return made[-1]

    monkeypatch.setattr(launch, "_start", start)
    return made


def elsewhere(home: Home, *arguments: str) -> subprocess.Popen[bytes]:
    """A runtime that another process started, as far as holding the home."""
    process = subprocess.Popen([sys.executable, "-c", RUNTIME, str(home.root), *arguments], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def test_a_runtime_is_started_where_none_runs_and_ends_with_who_started_it(home, started):
    used = find_or_start_runtime(home)
    assert used.child is started[0] and used.contact.pid == started[0].process.pid
    assert used.is_there()
    used.leave()
    assert not started[0].running
    assert not used.is_there()


def test_one_that_runs_is_used_and_left_as_it_is(home, started):
    other = elsewhere(home, "0")
    try:
        used = find_or_start_runtime(home)
        assert used.contact.pid == other.pid and used.child is None and not started
        used.leave()
        assert other.poll() is None
    finally:
        end(other)


def test_one_that_was_started_here_stays_while_another_process_uses_it(home, started):
    used = find_or_start_runtime(home)
    second = use_runtime(home.contact())
    used.leave()
    assert started[0].running
    runtime = Use(home)
    assert not runtime.alone()
    second.leave()
    assert runtime.alone()
    runtime.close()
    started[0].stop()


def test_one_that_another_process_is_starting_is_waited_for(home, started):
    other = elsewhere(home, "0.5")
    try:
        used = find_or_start_runtime(home)
        assert used.contact.pid == other.pid and not started
        used.leave()
    finally:
        end(other)


def test_who_is_second_to_start_one_uses_the_first_ones(home, started, monkeypatch):
    """Neither saw the other: the lock decides, and the second's own runtime is refused."""
    holder, seen = Home.holder, []

    def blind(self: Home, part: str = "runtime") -> object:
        seen.append(part)
        return None if len(seen) == 1 else holder(self, part)

    monkeypatch.setattr(Home, "holder", blind)
    other = elsewhere(home, "1.0")
    try:
        used = find_or_start_runtime(home)
        assert used.contact.pid == other.pid and used.child is None
        assert len(started) == 1 and started[0].process.returncode == 1
        assert "refused: another process runs the runtime" in started[0].tail()
        used.leave()
    finally:
        end(other)


def test_one_that_does_not_start_shows_the_end_of_its_log_and_no_earlier_ones(home, started):
    (home.folder("logs") / "runtime.log").write_text("an earlier start failed\n")
    with pytest.raises(Unavailable, match=r"did not start; the end of .*runtime\.log:\nstarting\nit cannot be") as said:
        find_or_start_runtime(home, "0", "ends")
    assert "earlier" not in str(said.value)
    assert len(started) == 1
    runtime = Use(home)
    assert runtime.alone()  # what could not be had is not used
    runtime.close()


def test_one_that_is_never_ready_is_named(home, started, monkeypatch):
    monkeypatch.setattr(launch, "START_LIMIT_S", 0.5)
    other = elsewhere(home, "60")
    try:
        with pytest.raises(Unavailable, match=rf"of process {other.pid} in {home.root} was not ready within 0.5 s"):
            find_or_start_runtime(home)
    finally:
        end(other)


def test_a_home_that_a_run_without_services_has_is_not_waited_for(home, started):
    begin = time.monotonic()
    with home.held(serves=False), pytest.raises(Conflict, match=r"a run without services has .* to itself \(process"):
        find_or_start_runtime(home)
    assert time.monotonic() - begin < launch.START_LIMIT_S / 4 and not started


def test_one_that_goes_on_without_users_keeps_no_lock(home):
    with home.held():
        used = use_runtime(Contact("127.0.0.1:1", str(home.token_file), 1, "", "0"))
    assert used.use is None
    used.leave()


def test_the_loss_of_one_says_how_it_ended(home, started):
    used = find_or_start_runtime(home)
    started[0].process.kill()
    until(lambda: not started[0].running, 10)
    assert not used.is_there()
    assert f"(process {used.contact.pid}) was stopped or killed with status -9, see {started[0].log}" in used.loss()
    used.leave()
    assert "was stopped or killed" in UsedRuntime(used.contact, None).loss()


def test_a_child_tells_of_its_own_output_alone(tmp_path):
    log = Path(tmp_path / "log")
    for number in range(2):
        child = Child(["-c", f"print('line {number}')"], log)
        assert child.process.wait(20) == 0
        assert child.tail() == f"line {number}"
    assert log.read_text() == "line 0\nline 1\n"
