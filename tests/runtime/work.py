"""Jobs for pools: what a worker may do well and badly."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

Emit = Callable[[bytes], None]
SEEN: list[bytes] = []
PREPARED: list[object] = []


def echo(payload: bytes, emit: Emit) -> bytes:
    return payload


def pid(payload: bytes, emit: Emit) -> bytes:
    return str(os.getpid()).encode()


def remember(payload: bytes, emit: Emit) -> bytes:
    """What this process was given before, and `payload`."""
    SEEN.append(payload)
    return b",".join(SEEN)


def nap(payload: bytes, emit: Emit) -> bytes:
    """Say which process this is, then sleep for as many seconds as the payload says."""
    emit(str(os.getpid()).encode())
    time.sleep(float(payload))
    return b"rested"


def count(payload: bytes, emit: Emit) -> bytes:
    for number in range(int(payload)):
        emit(str(number).encode())
    return b"done"


def refuse(payload: bytes, emit: Emit) -> bytes:
    raise ValueError(f"not {payload.decode()}")


def leave(payload: bytes, emit: Emit) -> bytes:
    os._exit(3)


def die(payload: bytes, emit: Emit) -> bytes:
    os.kill(os.getpid(), signal.SIGKILL)
    return b"unreachable"


def child_status(payload: bytes, emit: Emit) -> bytes:
    """What a child that ends with `payload` is seen to end with."""
    return str(
        subprocess.run([sys.executable, "-c", f"raise SystemExit({int(payload)})"], check=False).returncode
    ).encode()


def start_and_nap(payload: bytes, emit: Emit) -> bytes:
    """Start a process that outlasts the job, keep a file, say where both are, and sleep."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    file = Path(tempfile.mkstemp()[1])
    emit(f"{child.pid} {file}".encode())
    time.sleep(float(payload))
    return b"rested"


def confined_attempt(payload: bytes, emit: Emit) -> bytes:
    """What comes of something that a forge worker may not do, or may, by name."""
    from esper.runtime.compile_worker import FILE_BYTES, MEMORY_BYTES, confined

    attempts = {
        "memory": lambda: bytearray(MEMORY_BYTES + (1 << 20)),
        "file": lambda: os.truncate(tempfile.mkstemp()[1], FILE_BYTES + 1),
        "files": lambda: [os.open(os.devnull, os.O_RDONLY) for _ in range(300)],
        "socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
        "unix socket": lambda: socket.socket(socket.AF_UNIX),
        "program": lambda: subprocess.run([sys.executable, "-c", "import socket; socket.socket()"], check=True),
        "work": lambda: subprocess.run([sys.executable, "-c", "print(1)"], check=True, stdout=subprocess.DEVNULL),
    }

    def work() -> bytes:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            attempts[payload.decode()]()
        except (OSError, MemoryError, subprocess.CalledProcessError) as error:
            return f"{type(error).__name__}: {error}".encode()
        return b"done"

    return confined(work)


def prepare(argument: object) -> None:
    PREPARED.append(argument)


def fail_to_prepare(argument: object) -> None:
    raise RuntimeError(f"no {argument}")


def prepared(payload: bytes, emit: Emit) -> bytes:
    return repr(PREPARED).encode()


def state(payload: bytes, emit: Emit) -> bytes:
    """Priority, threads, and whether torch was here before the job."""
    import torch

    return f"{os.nice(0)} {torch.get_num_threads()} {'torch' in sys.modules}".encode()
