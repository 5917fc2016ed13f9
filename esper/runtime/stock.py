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
    """VALIDATED kernels for exactly this interface that run on any device: the controller's search."""
    return await _kernels(library, interface, pb.KERNEL_STATUS_VALIDATED)


async def _kernels(
    library: Supply,
    interface: interface_pb2.Interface,
    status: pb.KernelStatus.ValueType,
    target: resource_pb2.Target.ValueType = resource_pb2.TARGET_CPU,
) -> Sequence[pb.Kernel]:
    # as many as one search gives: other seeds' designs are among them, and may not push a run's own out
    request = pb.SearchKernelsRequest(interface=interface, status=status, target=target, limit=1000)
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
    judged = {kernel.blueprint_id for kernel in ready}
    judged |= {kernel.blueprint_id for kernel in await _kernels(library, interface, pb.KERNEL_STATUS_REJECTED)}
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
        self._ordered: set[tuple[bytes, int, int]] = set()
        self._fetching: dict[str, asyncio.Lock] = {}

    async def order(
        self,
        interface: interface_pb2.Interface,
        seed: int,
        submit: Submit,
        target: resource_pb2.Target.ValueType = resource_pb2.TARGET_CPU,
    ) -> None:
        """Have Karn design for this interface and run seed, and a kernel made of all in stock that has none; once.

        `target`: of the run's device. What is promoted and was judged of interest has its kernel for it ordered too.
        """
        key = interface.SerializeToString(deterministic=True), seed, target
        if key in self._ordered:
            return
        self._ordered.add(key)
        try:
            await offer_generated(self.library, read_interface(interface), seed, self.assortment)
            await self._order(interface, seed, submit, target)
        except BaseException:
            self._ordered.discard(key)
            raise

    async def _order(
        self,
        interface: interface_pb2.Interface,
        seed: int,
        submit: Submit,
        target: resource_pb2.Target.ValueType,
    ) -> None:
        stocked = [one.blueprint_id for one in await in_stock(self.library, interface, seed, self.assortment)]
        interest = {kernel.blueprint_id: kernel.interest for kernel in await promoted(self.library, interface)}
        orders = [_submitted(one, interface, forge_pb2.PIPELINE_FAST) for one in stocked if one not in interest]
        if target != resource_pb2.TARGET_CPU:
            there = await self._made_for(interface, target)
            judged = [one for one in stocked if interest.get(one, 0.0) > 0.0 and one not in there]
            orders += [_submitted(one, interface, forge_pb2.PIPELINE_AUTO, target) for one in judged]
        await submit(orders)

    async def _made_for(self, interface: interface_pb2.Interface, target: resource_pb2.Target.ValueType) -> set[str]:
        """Blueprints with a kernel for a device, whatever was said of it."""
        statuses = (pb.KERNEL_STATUS_PENDING_BENCHMARKING, pb.KERNEL_STATUS_VALIDATED, pb.KERNEL_STATUS_REJECTED)
        found = [await _kernels(self.library, interface, status, target) for status in statuses]
        return {kernel.blueprint_id for kernels in found for kernel in kernels}

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


def _submitted(
    blueprint_id: str,
    interface: interface_pb2.Interface,
    pipeline: forge_pb2.Pipeline.ValueType,
    target: resource_pb2.Target.ValueType = resource_pb2.TARGET_CPU,
) -> forge_pb2.BlueprintSubmitted:
    return forge_pb2.BlueprintSubmitted(
        blueprint_id=blueprint_id, interfaces=[interface], pipeline=pipeline, submitted_by="runtime", target=target
    )


def _not_on_disk(artifact_id: str) -> Artifact:
    raise NotFound(f"kernel {artifact_id} is not on disk")
