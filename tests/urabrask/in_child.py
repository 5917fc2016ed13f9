"""What tests have children do, in the lab: each is named by a payload, and answers with what it saw."""

import contextlib
import gc
import json
import os
import resource
import signal
import socket
import threading
import time
from pathlib import Path

from esper.errors import Unavailable
from esper.urabrask import jail, job, syscalls
from esper.urabrask.confine import Send, confined
from esper.urabrask.jail import Isolation, Limits

SMALL = Limits(memory_bytes=256 << 20, cpu_s=5, open_files=24)


def _attempt(call: object) -> str:
    try:
        result = call()  # type: ignore[operator]
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return f"worked: {result}"


def _fork() -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return pid


def _thread() -> bool:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    return True


def looks(_payload: bytes, send: Send, isolation: Isolation) -> None:
    """What there is to see and to do from inside."""
    seen = {
        "isolation": isolation.how,
        "files": _descriptors(),
        "stdin": str(Path("/proc/self/fd/0").readlink()),
        "cwd": str(Path("/proc/self/cwd").readlink()),
        "fork": _attempt(_fork),
        "thread": _attempt(_thread),
        "exec": _attempt(lambda: os.execv("/bin/true", ["/bin/true"])),
        "socket": _attempt(lambda: socket.socket(socket.AF_INET)),
        "unix": _attempt(lambda: socket.socket(socket.AF_UNIX)),
        "file": _attempt(lambda: Path("x").write_bytes(b"1")),
        "file_elsewhere": _attempt(lambda: os.write(os.memfd_create("x"), b"1")),
        "memory": _attempt(lambda: len(bytearray(1 << 30))),
        "limits": {n: resource.getrlimit(getattr(resource, f"RLIMIT_{n}")) for n in ("CPU", "NOFILE", "CORE", "NPROC")},
    }
    send(b"s", json.dumps(seen).encode())


def sends_and(how: str) -> object:
    def work(_payload: bytes, send: Send, isolation: Isolation) -> None:
        send(b"1", b"one")
        if how == "raises":
            raise ValueError("no good")
        if how == "kills itself":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "aborts":
            os.abort()
        if how == "exits":
            os._exit(7)
        if how == "hangs":
            time.sleep(60)
        if how == "closes and hangs":
            os.closerange(3, 64)
            time.sleep(60)
        if how == "burns":
            while True:
                pass
        if how == "floods":
            while True:
                send(b"2", b"x" * (1 << 20))
        if how == "half":
            os.write(_pipe(), b"3\x00\x00\x00\xffhalf")
        send(b"2", b"two")

    return work


def _descriptors() -> list[int]:
    """What is open, the listing itself left out."""
    listed = sorted(int(path.name) for path in Path("/proc/self/fd").iterdir())
    return [number for number in listed if Path(f"/proc/self/fd/{number}").exists()]


def _pipe() -> int:
    return max(_descriptors())


def run(payload: bytes) -> bytes:
    """A child that does what `payload` names; its frames and ending."""
    name = payload.decode()
    work = looks if name == "looks" else sends_and(name)
    limits = Limits(256 << 20, 1, 24) if name == "burns" else SMALL
    outcome = confined(work, b"", limits, 1.0 if "hangs" in name else 20.0)  # type: ignore[arg-type]
    frames = [(kind.decode(), body.decode()[:5000]) for kind, body in outcome.frames[:10]]
    return json.dumps({"frames": frames, "ending": outcome.ending, "left": len(_descriptors())}).encode()


def without(payload: bytes) -> bytes:
    """What a worker says where ways of isolation are missing: "namespace", "filter" or both, comma-separated."""
    missing = payload.decode().split(",")
    kept = jail._leave_network, syscalls.install

    def refuses() -> None:
        raise Unavailable("the system call filter was refused: Invalid argument")

    if "namespace" in missing:
        jail._leave_network = lambda: "a user and network namespace was refused: Operation not permitted"
    if "filter" in missing:
        syscalls.install = refuses
    try:
        return job.isolation_job(b"")
    finally:
        jail._leave_network, syscalls.install = kept


def leaking(payload: bytes) -> bytes:
    """What a worker says where isolation claims to be in force and is not."""
    kept = jail._leave_network, syscalls.install
    jail._leave_network, syscalls.install = (lambda: ""), (lambda: None)
    try:
        return job.isolation_job(b"")
    finally:
        jail._leave_network, syscalls.install = kept


def orphaned(payload: bytes) -> bytes:
    """A worker that is killed while its child works: the child's pid, told by the child itself."""
    told, tell = os.pipe()
    worker = os.fork()
    if worker == 0:

        def work(_payload: bytes, send: Send, isolation: Isolation) -> None:
            send(b"p", str(os.getpid()).encode())
            time.sleep(60)

        genuine = os.fork

        def fork() -> int:
            pid = genuine()
            if pid:
                os.write(tell, str(pid).encode())
            return pid

        os.fork = fork
        with contextlib.suppress(BaseException):
            confined(work, b"", SMALL, 60.0)
        os._exit(0)
    child = os.read(told, 64)
    time.sleep(0.3)
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    gc.collect()
    return child


def run_unjailed(_payload: bytes) -> bytes:
    """What there is to see and to do where no isolation is asked for."""
    outcome = confined(looks_around, b"", SMALL, 20.0, shut_off=False)
    return json.dumps({"frames": [(kind.decode(), body.decode()) for kind, body in outcome.frames]}).encode()


def looks_around(_payload: bytes, send: Send, isolation: Isolation) -> None:
    seen = {
        "isolation": isolation.how,
        "socket": _attempt(lambda: socket.socket(socket.AF_INET)),
        "memory": _attempt(lambda: len(bytearray(1 << 30))),
        "limits": {"CPU": resource.getrlimit(resource.RLIMIT_CPU)},
    }
    send(b"s", json.dumps(seen).encode())
