"""Shut a process off before it looks at a candidate: no network, no other programs, bounded memory and time.

Two ways keep it from the network, and either is enough: a user and network namespace of
its own, in which there is no interface, and a system call filter that refuses sockets.
Hosts differ in what they allow; where neither can be had nothing is evaluated.
"""

import ctypes
import os
import resource
import signal
import socket
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from esper.errors import Unavailable
from esper.urabrask import syscalls

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_PDEATHSIG = 1
NAMESPACE, FILTER = "network namespace", "system call filter"
UNSAFE = "--unsafe-no-jail"
_REMEDY = (
    "allow unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces above 0; "
    "in a container a seccomp profile that permits unshare), or run on x86_64 or aarch64 with seccomp; "
    "`esper serve urabrask --unsafe-no-jail` evaluates without isolation, and "
    "promotes nothing"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a child may use. `memory_bytes`: on top of what it had mapped when it was shut off."""

    memory_bytes: int = 4 << 30
    cpu_s: int = 120
    open_files: int = 32
    file_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Isolation:
    """What keeps a child in. `how` is empty where nothing does, and `missing` says what would have to be there."""

    how: str
    missing: str = ""

    @property
    def in_force(self) -> bool:
        return bool(self.how)


def enter(
    limits: Limits, keep: int, parent: int, prepare: Callable[[], None] = lambda: None, shut_off: bool = True
) -> Isolation:
    """Shut this process off, for good. It must have one thread, and be a child of `parent`.

    `keep`: the one descriptor that stays open. `prepare`: called when there is no network any more but
    threads may still be started. Without `shut_off` there are limits only. Raises Unavailable where no
    isolation can be had; the process must then end.
    """
    _die_with(parent)
    _close_all_but(keep)
    _go_nowhere()
    if not shut_off:
        prepare()
        _limit(limits)
        return Isolation("", f"not asked for: {UNSAFE}")
    missing = {NAMESPACE: _leave_network()}
    prepare()
    _limit(limits)
    missing[FILTER] = _refuse_calls()
    ways = [way for way, reason in missing.items() if not reason]
    if not ways:
        raise Unavailable(f"candidates cannot be isolated here: {'; '.join(missing.values())}; {_REMEDY}")
    return Isolation(" and ".join(ways), "; ".join(filter(None, missing.values())))


def network_reached(port: int = 9) -> str:
    """What a connection to the loopback interface got; empty: there is no network to reach."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            probe.connect(("127.0.0.1", port))
    except PermissionError:
        return ""  # the filter
    except ConnectionRefusedError:
        return f"loopback port {port} answered with a refusal, so there is an interface"
    except OSError:
        return ""  # network is unreachable
    return f"loopback port {port} accepted a connection"


def _die_with(parent: int) -> None:
    """Have the kernel end this process when its parent ends, also if it has ended already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _go_nowhere() -> None:
    """Work in a folder of our own that is gone already: nothing can be put into it, nothing is left of it."""
    folder = tempfile.mkdtemp(prefix="esper-evaluation-")
    os.chdir(folder)
    Path(folder).rmdir()


def _close_all_but(keep: int) -> None:
    """Standard input, output and error lead nowhere; nothing else is inherited but `keep`."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.closerange(3, keep)
    os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))


def _leave_network() -> str:
    """Why there is no namespace of our own; empty: there is, and it was tried."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return f"a user and network namespace was refused: {os.strerror(ctypes.get_errno())}"
    leak = network_reached()
    return f"the network namespace does not hold: {leak}" if leak else ""


def _refuse_calls() -> str:
    """Why there is no system call filter; empty: there is, and it was tried."""
    try:
        syscalls.install()
    except Unavailable as error:
        return str(error)
    leak = network_reached()
    return f"the system call filter does not hold: {leak}" if leak else ""


def bound(bounds: Mapping[int, int]) -> None:
    """Lower this process's limits for good, by kind of resource; a hard limit that is lower stays."""
    for kind, most in bounds.items():
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        # at the soft limit of processor time the process gets SIGXCPU, by which its end is known
        resource.setrlimit(kind, (most, most + 1 if kind == resource.RLIMIT_CPU and most != hard else most))


def _limit(limits: Limits) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    bound(
        {
            resource.RLIMIT_AS: pages * os.sysconf("SC_PAGE_SIZE") + limits.memory_bytes,
            resource.RLIMIT_CPU: limits.cpu_s,
            resource.RLIMIT_NOFILE: limits.open_files,
            resource.RLIMIT_FSIZE: limits.file_bytes,
            resource.RLIMIT_NPROC: 0,
            resource.RLIMIT_CORE: 0,
        }
    )
