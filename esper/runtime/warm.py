"""The warm process of a worker pool: imports what jobs need once, then forks a child per job.

Started as `python -m esper.runtime.warm SOCKET KIND=MODULE:FUNCTION ...`. Reads commands
from standard input, one JSON object a line: {"fork": n, "generation": g} forks children,
{"preload": [module:function, argument]} calls something whose result later children inherit. A child
connects to SOCKET, takes one job, answers and exits; so no job sees another's leavings. It leads a
process group and keeps temporary files in a folder of its own, by which its pool removes what it leaves.
The process runs no thread of its own, which is what makes forking it sound.
"""

import contextlib
import ctypes
import importlib
import json
import os
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

Job = Callable[[bytes, Callable[[bytes], None]], bytes]
PARTIAL, DONE, FAILED = b"P", b"D", b"F"
_HEADER = struct.Struct("!cI")
_PR_SET_PDEATHSIG = 1


def main() -> None:
    path, *kinds = sys.argv[1:]
    die_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are reaped by the kernel
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's business
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    jobs = {name: _resolve(target) for name, _, target in (kind.partition("=") for kind in kinds)}
    import torch
    import torch._dynamo  # torch's optimisers import it at their first step, which takes a second

    torch.set_num_threads(1)
    for line in sys.stdin:
        command = json.loads(line)
        if "preload" in command:
            target, argument = command["preload"]
            _preload(target, argument)
        for _ in range(command.get("fork", 0)):
            if os.fork() == 0:
                _serve(path, jobs, command["generation"])


def die_with_parent() -> None:
    """Have the kernel end this process when its parent ends. Linux only; elsewhere a closed socket does it later."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def send(connection: socket.socket, kind: bytes, body: bytes) -> None:
    """One frame: kind, length, body."""
    connection.sendall(_HEADER.pack(kind, len(body)) + body)


def receive(connection: socket.socket) -> tuple[bytes, bytes]:
    """One frame. Raises EOFError when the other end is gone."""
    kind, size = _HEADER.unpack(_exactly(connection, _HEADER.size))
    return kind, _exactly(connection, size)


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(min(size - len(parts), 1 << 20))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)


def _resolve(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _preload(target: str, argument: Any) -> None:
    """A preload that fails is reported when a job needs what it was to load; the pool goes on."""
    try:
        _resolve(target)(argument)
    except Exception as error:
        print(f"preload {target} {argument!r}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


def _serve(path: str, jobs: dict[str, Job], generation: int) -> None:
    """Life of one child: connect, take a job, answer, exit."""
    status = 1
    try:
        die_with_parent()
        os.setpgid(0, 0)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a job waits for what it starts, and is told how that ended
        os.nice(19)
        os.close(0)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            send(connection, DONE, f"{os.getpid()} {generation}".encode())
            _, kind = receive(connection)
            _, payload = receive(connection)
            _keep_temporary_files_in(folder_of(Path(path).parent, os.getpid()))
            _answer(connection, jobs[kind.decode()], payload)
        status = 0
    except EOFError:
        status = 0  # the pool closed: this spare is not needed any more
    finally:
        os._exit(status)


def folder_of(pool: Path, pid: int) -> Path:
    """Where a worker keeps temporary files, below its pool's folder."""
    return pool / str(pid)


def _keep_temporary_files_in(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    os.environ["TMPDIR"] = str(folder)
    tempfile.tempdir = None  # have it look again


def _answer(connection: socket.socket, job: Job, payload: bytes) -> None:
    try:
        reply = job(payload, lambda part: send(connection, PARTIAL, part))
        send(connection, DONE, reply)
    except Exception as error:
        send(connection, FAILED, f"{type(error).__name__}: {error}".encode())


if __name__ == "__main__":
    main()
