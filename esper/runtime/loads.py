"""Get a kernel ready from wherever it is: memory, disk, or the library, which is asked again where that may help."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

from esper.artifact.bundle import Artifact
from esper.blueprint.interface import Interface
from esper.errors import Corrupt, DeadlineExceeded, NotFound, Unavailable
from esper.kasmina.kernel import Kernel
from esper.kasmina.loader import KernelLoader
from esper.runtime.courier import LoadKernel

Download = Callable[[str], Awaitable[Artifact]]  # raises Unavailable, NotFound, Corrupt

PAUSES_S = (0.1, 0.4, 1.6)  # before each further try; each is drawn between half and one and a half of this
_PASSING = (Unavailable, DeadlineExceeded, Corrupt)  # bytes may be damaged on the way


def load_over(loader: KernelLoader, download: Download, pauses_s: Sequence[float] = PAUSES_S) -> LoadKernel:
    """What loads kernels through `loader`; one that is neither in memory nor sound on disk is downloaded.

    A download that fails in passing is tried again after each of `pauses_s`. What is had only then, or in place
    of a damaged copy on disk, counts as `retried`. The last failure is raised.
    """
    jitter = random.Random()  # not the process's own, which may be part of what a run must repeat

    async def load(artifact_id: str, interface: Interface) -> Kernel:
        counts = loader.cache.counts
        damaged = counts.quarantined
        try:
            return loader.load(artifact_id, interface).kernel
        except (Unavailable, NotFound):
            again = counts.quarantined > damaged
        for pause_s in pauses_s:
            try:
                loader.cache.take(await download(artifact_id))
                break
            except _PASSING:
                again = True
                await asyncio.sleep(pause_s * jitter.uniform(0.5, 1.5))
        else:
            loader.cache.take(await download(artifact_id))
        kernel = loader.load(artifact_id, interface).kernel
        counts.retried += again
        return kernel

    return load
