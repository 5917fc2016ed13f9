"""Where kernels are kept near the model: ready ones in memory, verified bytes on disk, all others at the library.

L1 holds kernels by artifact id, least recently used out first. L2 is a folder of
artifact folders; what is read from it is verified again, because a disk can change
what it holds. L3 is whatever `fetch` asks.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from esper.artifact.body import Body
from esper.artifact.bundle import Artifact, verify
from esper.artifact.folder import read_folder, write_folder
from esper.artifact.keys import TrustRoots
from esper.errors import Corrupt, Exhausted, InvalidRequest, NotFound, Untrusted
from esper.kasmina.kernel import Kernel

log = logging.getLogger(__name__)

Fetch = Callable[[str], Artifact]  # raises NotFound, Unavailable, PreconditionFailed
Report = Callable[[str, str], None]  # artifact id, what was wrong

MEMORY, DISK, LIBRARY = "memory", "disk", "library"
_QUARANTINE = "quarantine"


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """Of L1. A kernel counts with the bytes of its artifact; one that is larger than `size_bytes` is not kept."""

    count: int = 256
    size_bytes: int = 256 << 20


@dataclass(slots=True)
class CacheCounts:
    """How often each place had what was asked for, and how often something was wrong with L2."""

    memory_hits: int = 0
    memory_misses: int = 0
    disk_hits: int = 0
    fetched: int = 0
    quarantined: int = 0
    retried: int = 0  # kernels that were had at a second or later try

    @property
    def hit_rate(self) -> float:
        """Of requests for a ready kernel."""
        asked = self.memory_hits + self.memory_misses
        return self.memory_hits / asked if asked else 0.0


@dataclass(frozen=True, slots=True)
class Obtained:
    """A verified artifact, where it was, and what getting it took."""

    artifact: Artifact
    body: Body
    source: str
    fetch_ms: float
    verify_ms: float


def folder_of(root: Path, artifact_id: str) -> Path:
    """Where L2 below `root` keeps an artifact."""
    return root / artifact_id[:2] / artifact_id


def _log_report(artifact_id: str, reason: str) -> None:
    log.warning("kernel %s: %s", artifact_id, reason)


class KernelCache:
    """One process's kernels; any thread may ask.

    `fetch` gets what is not here from the library; `roots` says whose signatures let a kernel run;
    `report` hears of bytes that were not what they should be.
    """

    def __init__(
        self,
        folder: Path,
        roots: TrustRoots,
        fetch: Fetch,
        limits: CacheLimits = CacheLimits(),  # noqa: B008  frozen
        report: Report = _log_report,
    ) -> None:
        self.limits = limits
        self.counts = CacheCounts()
        self.size_bytes = 0
        self._folder = folder
        self._roots = roots
        self._fetch = fetch
        self._report = report
        self._ready: OrderedDict[str, tuple[Kernel, int]] = OrderedDict()
        self._lock = threading.Lock()

    def ready(self, artifact_id: str) -> Kernel | None:
        """The kernel, if it is ready to run."""
        with self._lock:
            found = self._ready.get(artifact_id)
            if found is None:
                self.counts.memory_misses += 1
                return None
            self._ready.move_to_end(artifact_id)
            self.counts.memory_hits += 1
            return found[0]

    def keep(self, kernel: Kernel, size_bytes: int) -> None:
        """Have `kernel` ready from now on; those used longest ago make room."""
        with self._lock:
            self._drop(kernel.artifact_id)
            if size_bytes > self.limits.size_bytes:
                return
            self._ready[kernel.artifact_id] = (kernel, size_bytes)
            self.size_bytes += size_bytes
            while len(self._ready) > self.limits.count or self.size_bytes > self.limits.size_bytes:
                self._drop(next(iter(self._ready)))

    def evict(self, artifact_id: str) -> None:
        """Forget a ready kernel, e.g. one that failed; its bytes stay."""
        with self._lock:
            self._drop(artifact_id)

    def __contains__(self, artifact_id: str) -> bool:
        """Whether the kernel is ready; not counted."""
        return artifact_id in self._ready

    def __len__(self) -> int:
        return len(self._ready)

    def obtain(self, artifact_id: str) -> Obtained:
        """A kernel's verified bytes: from disk, or from the library and then on disk as well.

        Raises Corrupt, Untrusted and InvalidRequest for what the library sent, and what `fetch` raises.
        """
        began = time.perf_counter()
        found = self._from_disk(artifact_id, began)
        if found is not None:
            self.counts.disk_hits += 1
            return found
        artifact = self._fetch(artifact_id)
        fetched = time.perf_counter()
        if artifact.artifact_id != artifact_id:
            raise Corrupt(f"kernel {artifact_id} was asked for; the library sent {artifact.artifact_id[:64]!r}")
        body = verify(artifact, self._roots)
        verified = time.perf_counter()
        self.counts.fetched += 1
        self._to_disk(artifact)
        return Obtained(artifact, body, LIBRARY, (fetched - began) * 1e3, (verified - fetched) * 1e3)

    def take(self, artifact: Artifact) -> None:
        """Keep verified bytes on disk that somebody else fetched. Raises Corrupt, Untrusted and InvalidRequest."""
        verify(artifact, self._roots)
        self._to_disk(artifact)

    def _from_disk(self, artifact_id: str, began: float) -> Obtained | None:
        path = folder_of(self._folder, artifact_id)
        try:
            artifact = read_folder(path)
            read = time.perf_counter()
            body = verify(artifact, self._roots)
        except NotFound:
            return None
        except (Corrupt, Untrusted, InvalidRequest) as error:
            self._quarantine(artifact_id, path, error)
            return None
        return Obtained(artifact, body, DISK, (read - began) * 1e3, (time.perf_counter() - read) * 1e3)

    def _to_disk(self, artifact: Artifact) -> None:
        """A disk that is full costs the next start a fetch, and this load nothing."""
        try:
            write_folder(artifact, folder_of(self._folder, artifact.artifact_id))
        except (Exhausted, OSError) as error:
            self._report(artifact.artifact_id, f"it could not be kept on disk: {error}")

    def _quarantine(self, artifact_id: str, path: Path, error: Exception) -> None:
        """Put a folder aside, for people to look at; never under a name that is read."""
        self.counts.quarantined += 1
        aside = self._folder / _QUARANTINE / f"{artifact_id}.{time.time_ns()}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.rename(aside)
        except FileNotFoundError:  # another process was faster
            aside = aside.parent
        self._report(artifact_id, f"its folder was put aside as {aside}: {error}")

    def _drop(self, artifact_id: str) -> None:
        _, size_bytes = self._ready.pop(artifact_id, (None, 0))
        self.size_bytes -= size_bytes
