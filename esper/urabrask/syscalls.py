"""A seccomp filter for evaluation children: no new sockets, programs, processes or ways around the filter.

Written as classic BPF and installed by the seccomp system call, which needs no
privilege once no_new_privs is set. See seccomp(2) and linux/seccomp.h.
"""

import ctypes
import errno
import os
import platform
import struct

from esper.errors import Unavailable

_PR_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER, _FLAG_ALL_THREADS = 1, 1
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
# Places in struct seccomp_data: the call's number, the machine's, and the low half of the first argument.
_NUMBER_AT, _MACHINE_AT, _ARGUMENT_AT = 0, 4, 16
_CLONE_THREAD = 0x00010000
_X32_CALLS = 0x40000000

# machine -> (its number in audit.h, the number of seccomp, of clone, of clone3, numbers that are refused)
_MACHINES = {
    # socket socketpair vfork fork execve ptrace unshare setns process_vm_writev execveat bpf io_uring_setup pidfd_getfd
    "x86_64": (0xC000003E, 317, 56, 435, (41, 53, 58, 57, 59, 101, 272, 308, 311, 322, 321, 425, 438)),
    # the same; fork and vfork do not exist there
    "aarch64": (0xC00000B7, 277, 220, 435, (198, 199, 221, 117, 97, 268, 271, 281, 280, 425, 438)),
}


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def install() -> None:
    """Filter every thread of this process from here on; there is no way back. Raises Unavailable, saying why."""
    machine = platform.machine()
    if machine not in _MACHINES:
        raise Unavailable(f"no system call filter is written for {machine}; there is one for {', '.join(_MACHINES)}")
    code = _compile(machine)
    program = _Program(len(code) // 8, code)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise Unavailable(f"no_new_privs was refused: {os.strerror(ctypes.get_errno())}")
    number = _MACHINES[machine][1]
    if libc.syscall(number, _SET_MODE_FILTER, _FLAG_ALL_THREADS, ctypes.byref(program)) != 0:
        raise Unavailable(f"the system call filter was refused: {os.strerror(ctypes.get_errno())}")


def _compile(machine: str) -> bytes:
    """BPF: refused calls give EPERM, clone3 ENOSYS (libraries fall back to clone, whose flags can be seen)."""
    audit, _, clone, clone3, refused = _MACHINES[machine]
    deny = _ERRNO | errno.EPERM
    lines = [
        _line(_LOAD, _MACHINE_AT),
        _line(_EQUAL, audit, 1, 0),
        _line(_RETURN, _KILL_PROCESS),
        _line(_LOAD, _NUMBER_AT),
        _line(_AT_LEAST, _X32_CALLS, 0, 1),
        _line(_RETURN, deny),
    ]
    for number in refused:
        lines += [_line(_EQUAL, number, 0, 1), _line(_RETURN, deny)]
    lines += [_line(_EQUAL, clone3, 0, 1), _line(_RETURN, _ERRNO | errno.ENOSYS)]
    lines += [
        _line(_EQUAL, clone, 0, 3),
        _line(_LOAD, _ARGUMENT_AT),
        _line(_ANY_BIT, _CLONE_THREAD, 1, 0),
        _line(_RETURN, deny),
        _line(_RETURN, _ALLOW),
    ]
    return b"".join(lines)


def _line(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    """struct sock_filter: jumps count lines to skip."""
    return struct.pack("=HBBI", code, then, otherwise, value)
