"""Python callables that attack the jail, run in the evaluator's child by tests; no request can name one.

In the lab: `run` is told a name and, behind a zero byte, an argument; it answers with frames and ending.
"""

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

from esper.urabrask.confine import Send, confined
from esper.urabrask.jail import Isolation, Limits

LIMITS = Limits(memory_bytes=256 << 20, cpu_s=2, open_files=24)
TIMEOUT_S = 10.0


def _sleep(_argument: str) -> None:
    time.sleep(60)


def _burn(_argument: str) -> None:
    while True:
        pass


def _fork_bomb(_argument: str) -> None:
    while True:
        os.fork()


def _connect(port: str) -> None:
    socket.create_connection(("127.0.0.1", int(port)), 2)


def _memory(_argument: str) -> None:
    kept = []
    while True:
        kept.append(bytearray(16 << 20))


def _create(path: str) -> None:
    os.open(f"{path}.new", os.O_CREAT | os.O_WRONLY)


def _overwrite(path: str) -> None:
    os.open(path, os.O_RDWR)


def _truncate(path: str) -> None:
    os.truncate(path, 0)


def _unlink(path: str) -> None:
    Path(path).unlink()


def _rename(path: str) -> None:
    Path(path).rename(f"{path}.gone")


def _chmod(path: str) -> None:
    Path(path).chmod(0o777)


def _mkdir(path: str) -> None:
    Path(f"{path}.folder").mkdir()


def _symlink(path: str) -> None:
    Path(f"{path}.link").symlink_to(path)


def _kill_worker(_argument: str) -> None:
    os.kill(os.getppid(), signal.SIGKILL)


def _kill_group(_argument: str) -> None:
    os.killpg(0, signal.SIGKILL)


def _open_many(_argument: str) -> None:
    kept = []
    while True:
        kept.append(os.open("/dev/null", os.O_RDONLY))


ATTACKS: dict[str, Callable[[str], None]] = {
    name.removeprefix("_").replace("_", " "): call
    for name, call in list(globals().items())
    if name.startswith("_") and not name.startswith("__") and callable(call)
}


def run(payload: bytes) -> bytes:
    """One attack in a child of the lab's process."""
    name, _, argument = payload.decode().partition("\0")

    def work(_payload: bytes, send: Send, _isolation: Isolation) -> None:
        ATTACKS[name](argument)
        send(b"d", b"it was done")

    outcome = confined(work, b"", LIMITS, 1.0 if name == "sleep" else TIMEOUT_S)
    return json.dumps({"done": bool(outcome.frames), "ending": outcome.ending}).encode()
