"""A forge worker's job, kept from the network and within limits; the compilers it starts inherit both.

Blueprints are data, and of a design nothing runs but its operators: this bounds what a fault of a compiler can cost.
"""

import functools
import resource
import sys
from collections.abc import Callable

from esper.errors import Unavailable
from esper.tezzeret.job import compile_job
from esper.urabrask import syscalls
from esper.urabrask.jail import bound

# Data and not address space: a CUDA context reserves far more addresses than the memory it takes.
MEMORY_BYTES = 8 << 30
FILE_BYTES = 1 << 30
OPEN_FILES = 256
CPU_S = 120  # twice an order's deadline, of each process: for one that outlives whoever would have ended it


def compile_confined(payload: bytes, emit: Callable[[bytes], None]) -> bytes:
    """`compile_job`, in a process that may use no network from here on, for good.

    Where the system has no way to keep a process from it, that is said in the pool's log, and the order is done.
    """
    return confined(functools.partial(compile_job, payload, emit))


def confined(work: Callable[[], bytes]) -> bytes:
    """`work()`, under the limits above; over them it gets MemoryError, OSError or a signal."""
    bound(
        {
            resource.RLIMIT_DATA: MEMORY_BYTES,
            resource.RLIMIT_FSIZE: FILE_BYTES,
            resource.RLIMIT_NOFILE: OPEN_FILES,
            resource.RLIMIT_CPU: CPU_S,
            resource.RLIMIT_CORE: 0,
        }
    )
    try:
        syscalls.refuse_network()
    except Unavailable as error:
        print(f"a compilation is not kept from the network: {error}", file=sys.stderr, flush=True)
    return work()
