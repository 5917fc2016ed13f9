"""Run something in a child that is shut off, and report how it ended whatever it did.

The child answers in frames over a pipe. What arrived before its end counts; the child
itself is never believed about how it ended.
"""

import contextlib
import os
import select
import signal
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from esper.errors import EsperError, Unavailable
from esper.urabrask.jail import Isolation, Limits, enter

Send = Callable[[bytes, bytes], None]
Work = Callable[[bytes, Send, Isolation], None]

_FRAME = struct.Struct("!cI")
_RAISED, _NO_JAIL = b"!", b"?"
MAX_ANSWER_BYTES = 8 << 20


@dataclass(slots=True)
class Outcome:
    """`frames`: kind, one byte, and body, in order. `ending`: why the child did not end well; empty: it did."""

    frames: list[tuple[bytes, bytes]] = field(default_factory=list)
    ending: str = ""


def confined(
    work: Work,
    payload: bytes,
    limits: Limits,
    timeout_s: float,
    prepare: Callable[[], None] = lambda: None,
    shut_off: bool = True,
) -> Outcome:
    """`work(payload, send, isolation)` in a child of its own; without `shut_off` it has limits only.

    The calling process must have one thread. Raises Unavailable where no isolation can be had here.
    """
    deadline = time.monotonic() + timeout_s
    read, write = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        _live(work, payload, write, lambda: enter(limits, write, parent, prepare, shut_off))
    os.close(write)
    try:
        outcome = _listen(read, deadline)
    finally:
        os.close(read)
        status, late = _end(child, deadline)
    outcome.ending = _ending(outcome, status, late, limits, timeout_s)
    if reasons := [body for kind, body in outcome.frames if kind == _NO_JAIL]:
        raise Unavailable(reasons[0].decode(errors="replace"))
    outcome.frames = [(kind, body) for kind, body in outcome.frames if kind != _RAISED]
    return outcome


def _live(work: Work, payload: bytes, pipe: int, enter_jail: Callable[[], Isolation]) -> None:
    """The child's whole life; it does not return."""
    status = 1
    try:

        def send(kind: bytes, body: bytes) -> None:
            frame = memoryview(_FRAME.pack(kind, len(body)) + body)
            while frame:
                frame = frame[os.write(pipe, frame) :]

        try:
            isolation = enter_jail()
        except Unavailable as error:
            send(_NO_JAIL, str(error).encode())
            raise
        try:
            work(payload, send, isolation)
            status = 0
        except BaseException as error:
            text = str(error) if isinstance(error, EsperError) else f"{type(error).__name__}: {error}"
            send(_RAISED, text.encode(errors="replace")[:2000])
    finally:
        os._exit(status)


def _listen(pipe: int, deadline: float) -> Outcome:
    """Frames until the child closes its end, says too much, or the time is over."""
    outcome, received = Outcome(), bytearray()
    poll = select.poll()
    poll.register(pipe, select.POLLIN | select.POLLHUP)
    while len(received) <= MAX_ANSWER_BYTES:
        left_ms = (deadline - time.monotonic()) * 1e3
        if left_ms <= 0 or not poll.poll(left_ms):
            break
        part = os.read(pipe, 1 << 16)
        if not part:
            break
        received += part
    else:
        outcome.ending = f"sent over {MAX_ANSWER_BYTES} bytes"
    outcome.frames.extend(_frames(bytes(received)))
    return outcome


def _frames(received: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Whole frames; what a killed child left unfinished is dropped."""
    at = 0
    while at + _FRAME.size <= len(received):
        kind, size = _FRAME.unpack_from(received, at)
        body = received[at + _FRAME.size : at + _FRAME.size + size]
        if len(body) < size:
            return
        yield kind, body
        at += _FRAME.size + size


def _end(child: int, deadline: float) -> tuple[int, bool]:
    """The child's wait status, and whether it was late: one that closed its pipe has until the deadline to end."""
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status, False
        time.sleep(0.001)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1], True


def _ending(outcome: Outcome, status: int, late: bool, limits: Limits, timeout_s: float) -> str:
    """Why the child did not end well, by what the kernel says first and what the child says last; empty: it did."""
    raised = [body.decode(errors="replace") for kind, body in outcome.frames if kind == _RAISED]
    code = os.waitstatus_to_exitcode(status)
    if late:
        return f"was still at work after {timeout_s:g} s and was ended"
    if outcome.ending:
        return outcome.ending
    if code == -signal.SIGXCPU:
        return f"used {limits.cpu_s} s of processor time, the limit"
    if code == -signal.SIGKILL:
        return "was killed (SIGKILL); the machine may be out of memory"
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    if raised:
        return f"raised {raised[0]}"
    return f"ended with status {code}" if code else ""
