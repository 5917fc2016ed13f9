"""Keep kernels in stock: blueprints offered, kernels ordered for a run's sites, verified bytes at hand."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from esper.api.common.v1 import artifact_pb2, interface_pb2, resource_pb2
from esper.api.tezzeret.v1 import forge_pb2
from esper.api.urza.v1 import library_pb2 as pb
from esper.artifact.bundle import Artifact, verify
from esper.artifact.folder import write_folder
from esper.artifact.keys import TrustRoots
from esper.blueprint.codec import read_interface
from esper.errors import NotFound
from esper.karn.templates import TEMPLATES
from esper.kasmina.cache import KernelCache, folder_of
from esper.runtime.assortment import Assortment, chosen, of_another_run, offer_generated, template_request


class Supply(Protocol):
    """What of the library is used here; see esper.urza.port."""

    async def create_blueprint(self, request: pb.CreateBlueprintRequest, /) -> pb.CreateBlueprintResponse: ...

    async def list_blueprints(self, request: pb.ListBlueprintsRequest, /) -> pb.ListBlueprintsResponse: ...

    async def search_kernels(self, request: pb.SearchKernelsRequest, /) -> pb.SearchKernelsResponse: ...

    async def download_kernel(
        self, request: pb.DownloadKernelRequest, /
    ) -> tuple[artifact_pb2.ArtifactManifest, dict[str, bytes]]: ...


class Family(Protocol):
    """What of the library tells of descent; see esper.urza.port."""

    async def get_lineage(self, request: pb.GetLineageRequest, /) -> pb.GetLineageResponse: ...

    async def get_blueprint(self, request: pb.GetBlueprintRequest, /) -> pb.GetBlueprintResponse: ...


ASSORTMENT = Assortment()
LONGEST_WAIT_S, POLL_S = 120.0, 0.2
Submit = Callable[[Iterable[forge_pb2.BlueprintSubmitted]], Awaitable[None]]


async def offer_templates(library: Supply) -> None:
    """Put the template library into the central one; what is there already stays as it is."""
    for template in TEMPLATES.values():
        await library.create_blueprint(template_request(template))


async def promoted(library: Supply, interface: interface_pb2.Interface) -> Sequence[pb.Kernel]:
    """VALIDATED kernels for exactly this interface: the controller's search."""
    # as many as one search gives: other seeds' designs are among them, and may not push a run's own out
    request = pb.SearchKernelsRequest(interface=interface, status=pb.KERNEL_STATUS_VALIDATED, limit=1000)
    return [match.kernel for match in (await library.search_kernels(request)).matches]


async def lineage_of(library: Family, blueprint_id: str) -> Sequence[pb.Blueprint]:
    """A blueprint and all that it descends from, itself first. Raises NotFound."""
    # what two blueprints have in common includes them: in common with itself are itself and its ancestors
    request = pb.GetLineageRequest(
        blueprint_id=blueprint_id,
        common_with_blueprint_id=blueprint_id,
        page=resource_pb2.PageRequest(size=1000),
    )
    found: list[str] = []
    while True:
        reply = await library.get_lineage(request)
        found += [entry.blueprint_id for entry in reply.entries]
        if not reply.page.next_token:
            break
        request.page.token = reply.page.next_token
    return [(await library.get_blueprint(pb.GetBlueprintRequest(blueprint_id=one))).blueprint for one in found]


async def in_stock(
    library: Supply, interface: interface_pb2.Interface, seed: int, limits: Assortment = ASSORTMENT
) -> list[pb.Blueprint]:
    """The blueprints that a run of this seed has kernels of for this interface; see esper.runtime.assortment."""
    return chosen(await _fitting(library, interface), read_interface(interface), seed, limits)


async def _fitting(library: Supply, interface: interface_pb2.Interface) -> list[pb.Blueprint]:
    request = pb.ListBlueprintsRequest(interface=interface, page=resource_pb2.PageRequest(size=1000))
    fitting: list[pb.Blueprint] = []
    while True:
        reply = await library.list_blueprints(request)
        fitting += reply.blueprints
        if not reply.page.next_token:
            return fitting
        request.page.token = reply.page.next_token


async def kernel_stock(
    library: Supply, interface: interface_pb2.Interface, seed: int, limits: Assortment = ASSORTMENT
) -> tuple[Sequence[pb.Kernel], int]:
    """Promoted kernels for an interface, and how many blueprints that are in stock for it have no verdict yet.

    Without those of designs that Karn made for runs of another seed: what a run has must not depend on its neighbours.
    """
    where, fitting = read_interface(interface), await _fitting(library, interface)
    foreign = {one.blueprint_id for one in fitting if of_another_run(one, where, seed, limits)}
    ready = [kernel for kernel in await promoted(library, interface) if kernel.blueprint_id not in foreign]
    refused = pb.SearchKernelsRequest(interface=interface, status=pb.KERNEL_STATUS_REJECTED, limit=1000)
    judged = {kernel.blueprint_id for kernel in ready}
    judged |= {match.kernel.blueprint_id for match in (await library.search_kernels(refused)).matches}
    stocked = chosen(fitting, where, seed, limits)
    open_ = [b for b in stocked if b.blueprint_id not in judged and b.status != pb.BLUEPRINT_STATUS_INVALID]
    return ready, len(open_)


class Stock:
    """Verified kernels in a folder, fetched from the library when they are first needed."""

    def __init__(self, library: Supply, folder: Path, roots: TrustRoots, assortment: Assortment = ASSORTMENT) -> None:
        self.assortment = assortment
        self.library = library
        self.folder = folder
        self.roots = roots
        self._disk = KernelCache(folder, roots, _not_on_disk)
        self._ordered: set[tuple[bytes, int]] = set()
        self._fetching: dict[str, asyncio.Lock] = {}

    async def order(self, interface: interface_pb2.Interface, seed: int, submit: Submit) -> None:
        """Have Karn design for this interface and run seed, and a kernel made of all in stock that has none; once."""
        key = interface.SerializeToString(deterministic=True), seed
        if key in self._ordered:
            return
        self._ordered.add(key)
        try:
            await offer_generated(self.library, read_interface(interface), seed, self.assortment)
            await self._order(interface, seed, submit)
        except BaseException:
            self._ordered.discard(key)
            raise

    async def _order(self, interface: interface_pb2.Interface, seed: int, submit: Submit) -> None:
        blueprints = await in_stock(self.library, interface, seed, self.assortment)
        made = {kernel.blueprint_id for kernel in await promoted(self.library, interface)}
        await submit(
            forge_pb2.BlueprintSubmitted(
                blueprint_id=blueprint.blueprint_id,
                interfaces=[interface],
                pipeline=forge_pb2.PIPELINE_FAST,
                submitted_by="runtime",
            )
            for blueprint in blueprints
            if blueprint.blueprint_id not in made
        )

    async def complete(
        self, interfaces: Iterable[interface_pb2.Interface], seed: int, limit_s: float = LONGEST_WAIT_S
    ) -> None:
        """Wait until nothing is being made for these interfaces and this seed any more, at most `limit_s`.

        A blueprint that cannot be compiled is in the making for ever.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                for interface in interfaces:
                    while (await kernel_stock(self.library, interface, seed, self.assortment))[1]:
                        await asyncio.sleep(POLL_S)

    async def provide(self, artifact_ids: Iterable[str]) -> None:
        """Have these kernels in the folder, verified. Raises what the library or the verification raises."""
        await asyncio.gather(*(self._one(artifact_id) for artifact_id in artifact_ids))

    async def _one(self, artifact_id: str) -> None:
        async with self._fetching.setdefault(artifact_id, asyncio.Lock()):
            try:
                self._disk.obtain(artifact_id)  # what is damaged there is put aside, and said
                return
            except NotFound:
                manifest, files = await self.library.download_kernel(pb.DownloadKernelRequest(artifact_id=artifact_id))
            artifact = Artifact(manifest, files)
            verify(artifact, self.roots)
            write_folder(artifact, folder_of(self.folder, artifact_id))


def _not_on_disk(artifact_id: str) -> Artifact:
    raise NotFound(f"kernel {artifact_id} is not on disk")
