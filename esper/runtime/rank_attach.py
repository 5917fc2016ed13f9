"""Begin a run on several ranks: the first one attaches to the runtime, the others get from it what they need."""

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from google.protobuf import json_format

from esper.api.tolaria.v1 import trainer_pb2
from esper.artifact import frame
from esper.artifact.bundle import Artifact, from_bytes, to_bytes
from esper.artifact.keys import TrustRoots
from esper.blueprint.interface import Interface
from esper.errors import PreconditionFailed, Unavailable
from esper.host.sites import Site
from esper.kasmina.cache import KernelCache
from esper.kasmina.handle import KernelSource
from esper.kasmina.kernel import Kernel
from esper.kasmina.loader import KernelLoader
from esper.runtime.launch import UsedRuntime
from esper.runtime.rank_line import RankLine
from esper.tolaria.journal import NAME
from esper.tolaria.line import Line
from esper.tolaria.ranks import Ranks
from esper.tolaria.run import Run
from esper.tolaria.tensor_files import joined, split

_WELCOME, _MANIFEST, _TENSORS, _JOURNAL = "welcome", "manifest", "tensors", "journal"


@dataclass(frozen=True, kw_only=True)
class Tie:
    """What ties a run to the outside."""

    line: Line
    loader: KernelLoader
    library: KernelSource  # for kernels loaded by hand
    welcome: trainer_pb2.Welcome
    directory: Path
    checkpoint: tuple[trainer_pb2.CheckpointManifest, Path] | None = None
    used: UsedRuntime | None = None  # where this process is the one that uses it


def tie_of(ranks: Ranks | None, make: Callable[[], Tie]) -> Tie:
    """This process's tie: `make`'s, or on any rank but the first, one to the first."""
    if ranks is None:
        return make()
    return lead(ranks, make) if ranks.first else join(ranks)


def lead(ranks: Ranks, make: Callable[[], Tie]) -> Tie:
    """On the first rank: make its tie and give the others what they need. What `make` raises is raised on all."""
    made: list[Tie] = []

    def begin() -> bytes:
        made.append(make())
        return _write_start(made[0])

    ranks.share(begin)
    tie = made[0]
    return replace(tie, line=RankLine(ranks, tie.line, LoaderKernels(tie.loader)), library=NoLibrary())


def join(ranks: Ranks) -> Tie:
    """On any other rank: a tie to the first one, with a folder of its own that goes with this process."""
    parts = frame.unpack(ranks.share(bytes))
    folder = Path(tempfile.mkdtemp(prefix=f"esper-rank-{ranks.rank}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    welcome = trainer_pb2.Welcome.FromString(parts[_WELCOME])
    checkpoint = None
    if _MANIFEST in parts:
        (folder / NAME).write_bytes(parts[_JOURNAL])
        manifest = json_format.Parse(parts[_MANIFEST], trainer_pb2.CheckpointManifest())
        checkpoint = manifest, split(manifest, parts[_TENSORS], folder / "checkpoint.safetensors")
    loader = KernelLoader(KernelCache(folder / "kernels", roots_of(welcome), not_at_hand))
    return Tie(
        line=RankLine(ranks, None, LoaderKernels(loader)),
        loader=loader,
        library=NoLibrary(),
        welcome=welcome,
        directory=folder,
        checkpoint=checkpoint,
    )


def share_spool(ranks: Ranks, run: Run) -> None:
    """Count the files of the first rank's spool on all ranks, so that it is full for all or for none."""
    sizes = ranks.share(lambda: json.dumps({str(p): size for p, size in run.spool.sizes.items()}).encode())
    run.spool.sizes = {Path(path): size for path, size in json.loads(sizes).items()}


def roots_of(welcome: trainer_pb2.Welcome) -> TrustRoots:
    """Whose signatures let a kernel run."""
    return TrustRoots(tuple(welcome.forge_keys), tuple(welcome.evaluation_keys))


def not_at_hand(artifact_id: str) -> Artifact:
    raise Unavailable(f"kernel {artifact_id} has not been fetched from the library")


@dataclass(frozen=True)
class LoaderKernels:
    """Kernels as signed artifacts; each rank verifies what it gets. Implements RankKernels."""

    loader: KernelLoader

    def pack(self, artifact_id: str) -> bytes:
        return to_bytes(self.loader.cache.obtain(artifact_id).artifact)

    def load(self, artifact_id: str, interface: Interface, data: bytes) -> Kernel:
        self.loader.cache.take(from_bytes(data))
        return self.loader.load(artifact_id, interface).kernel


class NoLibrary:
    """Implements kasmina's KernelSource where nothing is loaded by hand."""

    async def kernel(self, artifact_id: str, site: Site) -> Kernel:
        raise PreconditionFailed(
            f"kernel {artifact_id[:12]} cannot be loaded by hand for {site.name}: the run has several ranks, and only "
            "what arrives at a decision point reaches all of them; use `esper seed germinate`"
        )


def _write_start(tie: Tie) -> bytes:
    parts = {_WELCOME: tie.welcome.SerializeToString()}
    if tie.checkpoint is not None:
        manifest, tensors = tie.checkpoint
        journal = tie.directory / NAME
        parts[_MANIFEST] = json_format.MessageToJson(manifest).encode()
        parts[_TENSORS] = joined(manifest, tensors)
        parts[_JOURNAL] = journal.read_bytes() if journal.exists() else b""
    return frame.pack(parts)
