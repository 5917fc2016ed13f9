"""Jobs for pools: what a worker may do well and badly."""

import os
import signal
import sys
import time
from collections.abc import Callable

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
