"""Seccomp filters. Of evaluation children: no sockets, programs, processes, changed files or signals to others.

Of processes that are trusted with all but the network: no sockets.

Written as classic BPF and installed by the seccomp system call, which needs no
privilege once no_new_privs is set. See seccomp(2) and linux/seccomp.h.
"""

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from esper.errors import Unavailable

_PR_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER, _FLAG_ALL_THREADS = 1, 1
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
# Places in struct seccomp_data: the call's number, the machine's, and the low half of the first argument.
_NUMBER_AT, _MACHINE_AT, _ARGUMENT_AT, _ARGUMENT_BYTES = 0, 4, 16, 8
_CLONE_THREAD = 0x00010000
_X32_CALLS = 0x40000000
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class _Machine(NamedTuple):
    """Call numbers of one processor family. `audit`: its own number in audit.h."""

    audit: int
    seccomp: int
    sockets: tuple[int, ...]  # socket, and io_uring_setup, which can make one
    clone: int
    clone3: int
    openat2: int
    opens: dict[int, int]  # call that opens a file -> place of its flags among the arguments
    signals: tuple[int, ...]  # kill and tgkill: allowed on oneself
    refused: tuple[int, ...]


_MACHINES = {
    "x86_64": _Machine(
        audit=0xC000003E,
        seccomp=317,
        sockets=(41, 425),
        clone=56,
        clone3=435,
        openat2=437,
        opens={2: 1, 257: 2},
        signals=(62, 234),
        refused=(
            # socket socketpair vfork fork execve ptrace unshare setns process_vm_writev execveat bpf io_uring_setup
            # pidfd_getfd
            *(41, 53, 58, 57, 59, 101, 272, 308, 311, 322, 321, 425, 438),
            # files: creat rename* mkdir* rmdir link* unlink* symlink* mknod* chmod* chown*;
            # then truncate* utime* setxattr* mount
            *(85, 82, 264, 316, 83, 258, 84, 86, 265, 87, 263, 88, 266, 133, 259, 90, 91, 268, 452, 92, 93, 94, 260),
            *(76, 77, 132, 235, 280, 261, 188, 189, 190, 165),
            # other ways to signal: tkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_send_signal
            *(200, 129, 297, 424),
        ),
    ),
    # the same; fork, vfork and calls on paths without a folder do not exist there
    "aarch64": _Machine(
        audit=0xC00000B7,
        seccomp=277,
        sockets=(198, 425),
        clone=220,
        clone3=435,
        openat2=437,
        opens={56: 2},
        signals=(129, 131),
        refused=(
            *(198, 199, 221, 117, 97, 268, 271, 281, 280, 425, 438),
            *(38, 276, 34, 37, 35, 36, 33, 52, 53, 452, 54, 55, 45, 46, 88, 5, 6, 7, 40),
            *(130, 138, 240, 424),
        ),
    ),
}


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def install() -> None:
    """Filter every thread of this process from here on; there is no way back. Raises Unavailable, saying why."""
    _install(lambda machine: _compile(machine, os.getpid()))


def refuse_network() -> None:
    """No new socket in any thread of this process from here on, nor in what it starts; as `install` otherwise."""
    _install(_compile_no_sockets)


def _install(compiled: Callable[[str], bytes]) -> None:
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _MACHINES:
        written = ", ".join(_MACHINES)
        raise Unavailable(
            f"no system call filter is written for {sys.platform} on {machine}; there is one for {written}"
        )
    code = compiled(machine)
    program = _Program(len(code) // 8, code)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise Unavailable(f"no_new_privs was refused: {os.strerror(ctypes.get_errno())}")
    number = _MACHINES[machine].seccomp
    if libc.syscall(number, _SET_MODE_FILTER, _FLAG_ALL_THREADS, ctypes.byref(program)) != 0:
        raise Unavailable(f"the system call filter was refused: {os.strerror(ctypes.get_errno())}")


def _compile(machine: str, pid: int) -> bytes:
    """BPF: refused calls give EPERM, clone3 and openat2 ENOSYS (libraries fall back to calls whose flags can be seen).

    Threads may be made, files opened for reading, and process `pid` signalled.
    """
    calls = _MACHINES[machine]
    deny, unknown = (_line(_RETURN, _ERRNO | code) for code in (errno.EPERM, errno.ENOSYS))
    lines = [*_head(calls), *_refused(calls.refused)]
    for number in (calls.clone3, calls.openat2):
        lines += [_line(_EQUAL, number, 0, 1), unknown]
    allow = _line(_RETURN, _ALLOW)
    for number, place in calls.opens.items():
        flags = _line(_LOAD, _ARGUMENT_AT + place * _ARGUMENT_BYTES)
        lines += [_line(_EQUAL, number, 0, 4), flags, _line(_ANY_BIT, _WRITES, 0, 1), deny, allow]
    for number in calls.signals:
        lines += [_line(_EQUAL, number, 0, 4), _line(_LOAD, _ARGUMENT_AT), _line(_EQUAL, pid, 1, 0), deny, allow]
    lines += [_line(_EQUAL, calls.clone, 0, 3), _line(_LOAD, _ARGUMENT_AT), _line(_ANY_BIT, _CLONE_THREAD, 1, 0)]
    return b"".join([*lines, deny, allow])


def _compile_no_sockets(machine: str) -> bytes:
    calls = _MACHINES[machine]
    return b"".join([*_head(calls), *_refused(calls.sockets), _line(_RETURN, _ALLOW)])


def _head(calls: _Machine) -> list[bytes]:
    """End a process that calls by another machine's numbers, and refuse x32's; the call's number is loaded then."""
    return [
        _line(_LOAD, _MACHINE_AT),
        _line(_EQUAL, calls.audit, 1, 0),
        _line(_RETURN, _KILL_PROCESS),
        _line(_LOAD, _NUMBER_AT),
        _line(_AT_LEAST, _X32_CALLS, 0, 1),
        _line(_RETURN, _ERRNO | errno.EPERM),
    ]


def _refused(numbers: Sequence[int]) -> list[bytes]:
    deny = _line(_RETURN, _ERRNO | errno.EPERM)
    return [line for number in numbers for line in (_line(_EQUAL, number, 0, 1), deny)]


def _line(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    """struct sock_filter: jumps count lines to skip."""
    return struct.pack("=HBBI", code, then, otherwise, value)
