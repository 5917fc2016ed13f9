"""Isolation: what a child can see and do, and that nothing is evaluated where it cannot be had."""

import json
import platform
import time
from pathlib import Path

import pytest

from esper.errors import Unavailable
from esper.urabrask import codec, syscalls
from esper.urabrask.jail import network_reached

DENIED = "PermissionError: [Errno 1] Operation not permitted"
HERE = "tests.urabrask.in_child"


@pytest.fixture(scope="module")
def inside(lab) -> dict:
    reply = json.loads(lab.call(f"{HERE}:run", b"looks"))
    assert reply["ending"] == ""
    return json.loads(reply["frames"][0][1])


def test_no_network_no_programs_no_processes_no_threads(inside):
    for way in ("fork", "exec", "socket", "unix"):
        assert inside[way] == DENIED, way
    assert not inside["thread"].startswith("worked") or inside["limits"]["NPROC"] == [0, 0]


def test_nothing_is_inherited_but_the_pipe(inside):
    assert inside["stdin"] == "/dev/null"
    others = [number for number in inside["files"] if number > 2]
    assert len(others) == 1  # the pipe


def test_a_folder_of_its_own_in_which_nothing_can_be_left_and_no_file_elsewhere(inside):
    assert "/esper-evaluation-" in inside["cwd"]
    assert inside["cwd"].endswith(" (deleted)")
    assert inside["file"].startswith(("FileNotFoundError", "PermissionError"))
    assert inside["file_elsewhere"].startswith("OSError: [Errno 27] File too large")


def test_memory_and_time_are_bounded(inside):
    assert inside["memory"].startswith("MemoryError")
    assert inside["limits"]["CPU"] == [5, 6]
    assert inside["limits"]["NOFILE"] == [24, 24]
    assert inside["limits"]["CORE"] == [0, 0]


def test_the_probe_says_what_is_in_force(lab):
    isolation = codec.read_isolation(lab.call("esper.urabrask.job:isolation_job"))
    assert isolation.in_force
    assert "network namespace" in isolation.how or "system call filter" in isolation.how


@pytest.mark.parametrize(("missing", "left"), [("namespace", "system call filter"), ("filter", "network namespace")])
def test_either_way_alone_holds(lab, missing, left):
    isolation = codec.read_isolation(lab.call(f"{HERE}:without", missing.encode()))
    assert isolation.how == left


def test_where_neither_can_be_had_nothing_is_done_and_both_are_named(lab):
    with pytest.raises(Unavailable, match="candidates cannot be isolated here") as caught:
        codec.read_isolation(lab.call(f"{HERE}:without", b"namespace,filter"))
    words = str(caught.value)
    assert "network namespace was refused: Operation not permitted" in words
    assert "system call filter was refused: Invalid argument" in words
    assert "unprivileged_userns_clone" in words


def test_isolation_that_only_claims_to_hold_is_found_out(lab):
    with pytest.raises(Unavailable, match=r"isolation does not hold: loopback port \d+ accepted a connection"):
        codec.read_isolation(lab.call(f"{HERE}:leaking"))


def test_outside_there_is_a_network_so_that_its_absence_means_something():
    assert network_reached() != ""


def test_a_machine_without_a_filter_is_named(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(Unavailable, match="no system call filter is written for linux on riscv64"):
        syscalls.install()


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_jumps_of_the_filter_stay_inside_it(machine):
    code = syscalls._compile(machine, 1)
    lines = [code[i : i + 8] for i in range(0, len(code), 8)]
    for at, line in enumerate(lines):
        assert at + 1 + max(line[2], line[3]) < len(lines) or line[0] == 0x06
    assert len(lines) < 4096  # the kernel takes no more


def test_a_child_ends_with_its_worker(lab):
    child = lab.call(f"{HERE}:orphaned").decode()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and "Z" not in _state(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _state(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1]
    except FileNotFoundError:
        return "Z"


def test_without_a_jail_there_are_limits_and_no_isolation_is_claimed(lab):
    seen = json.loads(json.loads(lab.call(f"{HERE}:run_unjailed"))["frames"][0][1])
    assert seen["isolation"] == ""
    assert seen["socket"].startswith("worked")
    assert seen["memory"].startswith("MemoryError")
    assert seen["limits"]["CPU"] == [5, 6]
