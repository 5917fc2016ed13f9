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
from esper.blueprint.codec import write_interface
from esper.blueprint.interface import Interface
from esper.errors import NotFound
from esper.karn.templates import TEMPLATES
from esper.kasmina.cache import KernelCache, folder_of
from esper.runtime.assortment import Need, chosen, offer_generated, template_request
from esper.runtime.inventory import Catalogue, Inventory, search_for


class Supply(Catalogue, Protocol):
    """What of the library is used here; see esper.urza.port."""

    async def create_blueprint(self, request: pb.CreateBlueprintRequest, /) -> pb.CreateBlueprintResponse: ...

    async def download_kernel(
        self, request: pb.DownloadKernelRequest, /
    ) -> tuple[artifact_pb2.ArtifactManifest, dict[str, bytes]]: ...


class Family(Protocol):
    """What of the library tells of descent; see esper.urza.port."""

    async def get_lineage(self, request: pb.GetLineageRequest, /) -> pb.GetLineageResponse: ...

    async def get_blueprint(self, request: pb.GetBlueprintRequest, /) -> pb.GetBlueprintResponse: ...


LONGEST_WAIT_S, POLL_S = 120.0, 0.2
Submit = Callable[[Iterable[forge_pb2.BlueprintSubmitted]], Awaitable[None]]


async def offer_templates(library: Supply) -> None:
    """Put the template library into the central one; what is there already stays as it is."""
    for template in TEMPLATES.values():
        await library.create_blueprint(template_request(template))


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


async def in_stock(library: Supply, need: Need) -> list[pb.Blueprint]:
    """The blueprints that a run has kernels of for an interface; see esper.runtime.assortment."""
    request = pb.ListBlueprintsRequest(
        interface=write_interface(need.interface), page=resource_pb2.PageRequest(size=1000)
    )
    fitting: list[pb.Blueprint] = []
    while True:
        reply = await library.list_blueprints(request)
        fitting += reply.blueprints
        if not reply.page.next_token:
            return chosen(fitting, need)
        request.page.token = reply.page.next_token


class Stock:
    """Verified kernels in a folder, fetched from the library when they are first needed."""

    def __init__(self, library: Supply, folder: Path, roots: TrustRoots) -> None:
        self.library = library
        self.inventory = Inventory(library)
        self.folder = folder
        self.roots = roots
        self._disk = KernelCache(folder, roots, _not_on_disk)
        self._ordered: set[tuple[Need, int]] = set()
        self._fetching: dict[str, asyncio.Lock] = {}

    async def order(
        self, need: Need, submit: Submit, target: resource_pb2.Target.ValueType = resource_pb2.TARGET_CPU
    ) -> None:
        """Have Karn design for what a run needs, and a kernel made of all in stock that has none; once.

        `target`: of the run's device. What is promoted and was judged of interest has its kernel for it ordered too.
        """
        key = need, target
        if key in self._ordered:
            return
        self._ordered.add(key)
        try:
            await offer_generated(self.library, need)
            await self._order(need, submit, target)
        except BaseException:
            self._ordered.discard(key)
            raise

    async def _order(self, need: Need, submit: Submit, target: resource_pb2.Target.ValueType) -> None:
        interface = write_interface(need.interface)
        stocked = [one.blueprint_id for one in await in_stock(self.library, need)]
        promoted = await self._kernels(need.interface, pb.KERNEL_STATUS_VALIDATED)
        interest = {kernel.blueprint_id: kernel.interest for kernel in promoted}
        orders = [_submitted(one, interface, forge_pb2.PIPELINE_FAST) for one in stocked if one not in interest]
        if target != resource_pb2.TARGET_CPU:
            there = await self._made_for(need.interface, target)
            judged = [one for one in stocked if interest.get(one, 0.0) > 0.0 and one not in there]
            orders += [_submitted(one, interface, forge_pb2.PIPELINE_AUTO, target) for one in judged]
        await submit(orders)

    async def _made_for(self, interface: Interface, target: resource_pb2.Target.ValueType) -> set[str]:
        """Blueprints with a kernel for a device, whatever was said of it."""
        statuses = (pb.KERNEL_STATUS_PENDING_BENCHMARKING, pb.KERNEL_STATUS_VALIDATED, pb.KERNEL_STATUS_REJECTED)
        found = [await self._kernels(interface, status, target) for status in statuses]
        return {kernel.blueprint_id for kernels in found for kernel in kernels}

    async def _kernels(
        self,
        interface: Interface,
        status: pb.KernelStatus.ValueType,
        target: resource_pb2.Target.ValueType = resource_pb2.TARGET_CPU,
    ) -> list[pb.Kernel]:
        reply = await self.library.search_kernels(search_for(interface, status, target))
        return [match.kernel for match in reply.matches]

    async def complete(self, needs: Sequence[Need], limit_s: float = LONGEST_WAIT_S) -> None:
        """Wait until nothing that a run needs is being made any more, at most `limit_s`.

        A blueprint that cannot be compiled is in the making for ever.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while any(one.being_made for one in await self.inventory.look(needs)):
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
