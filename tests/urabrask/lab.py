"""A process of one thread that forks: where tests evaluate. As a worker of the runtime is, without its pool.

`Lab` starts it and sends it jobs; run as a module it reads jobs from standard input:
length, "module:function", and length, payload; it answers with status, length, reply.
"""

import importlib
import struct
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, BinaryIO

ROOT = Path(__file__).resolve().parents[2]
_LENGTH = struct.Struct("!I")


class JobRaised(Exception):
    """The job raised; the message is its traceback."""


class Lab:
    """The process, warm. One job at a time; `call` may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.urabrask.lab"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )

    def call(self, target: str, payload: bytes = b"") -> bytes:
        """`module:function` of `payload` in the lab."""
        with self._lock:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            _write(self._process.stdin, target.encode())
            _write(self._process.stdin, payload)
            self._process.stdin.flush()
            ok = self._process.stdout.read(1) == b"1"
            reply = _read(self._process.stdout)
        if not ok:
            raise JobRaised(reply.decode())
        return reply

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


def main() -> None:
    import torch

    torch.set_num_threads(1)
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    while target := source.read(_LENGTH.size):
        (size,) = _LENGTH.unpack(target)
        module, _, name = source.read(size).decode().partition(":")
        payload = _read(source)
        try:
            job: Any = getattr(importlib.import_module(module), name)
            ok, reply = b"1", job(payload)
        except Exception:
            ok, reply = b"0", traceback.format_exc().encode()
        sink.write(ok)
        _write(sink, reply)
        sink.flush()


def _write(pipe: BinaryIO, data: bytes) -> None:
    pipe.write(_LENGTH.pack(len(data)) + data)


def _read(pipe: BinaryIO) -> bytes:
    (size,) = _LENGTH.unpack(pipe.read(_LENGTH.size))
    return pipe.read(size)


if __name__ == "__main__":
    main()
