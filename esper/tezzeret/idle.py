"""What the forge does while nobody asks for anything: builds anew what is worth it, and marks what that makes obsolete.

Nothing is kept here that a restart would lose but the orders that had no answer.
"""

import asyncio
import logging

from esper.api.common.v1.resource_pb2 import PageRequest
from esper.api.tezzeret.v1 import forge_pb2
from esper.api.urza.v1 import library_pb2 as pb
from esper.artifact.body import Body, read_body
from esper.artifact.bundle import check_id
from esper.blueprint.codec import read_interface, write_interface
from esper.errors import (
    Corrupt,
    DeadlineExceeded,
    EsperError,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    Unavailable,
)
from esper.tezzeret import codec
from esper.tezzeret.attempt import answered
from esper.tezzeret.available import made_for
from esper.tezzeret.compile import toolchain
from esper.tezzeret.forge import Forge
from esper.tezzeret.port import Library
from esper.tezzeret.renewal import Made, Place, Renewal, obsolete, renewals

log = logging.getLogger(__name__)

MAX_LOOKED_AT = 5000  # newest kernels that one look reads
_PAGE = 500
_READ = (pb.KERNEL_STATUS_PENDING_BENCHMARKING, pb.KERNEL_STATUS_VALIDATED, pb.KERNEL_STATUS_REJECTED)


class IdleWork:
    """The idle time of one forge."""

    def __init__(self, forge: Forge, library: Library) -> None:
        self.given = 0
        self.superseded = 0
        self._forge = forge
        self._library = library
        self._bodies: dict[str, Body] = {}  # by artifact id; content never changes
        self._refused: set[Place] = set()  # the library or the static check would say the same again

    @property
    def idle(self) -> bool:
        return not self._forge.queued and not self._forge.busy

    async def run(self, after_s: float) -> None:
        """For good: look every `after_s`, and give orders one by one for as long as no other comes."""
        while True:
            await asyncio.sleep(after_s)
            try:
                if self.idle:
                    await self.look()
            except EsperError as error:
                log.warning("the forge's idle work waits %g s: %s", after_s, error)

    async def look(self) -> None:
        """One look at the library. Raises Unavailable where it is away."""
        made = await self._made()
        for one in obsolete(made):
            await self._supersede(one.artifact_id, one.reason)
        for renewal in renewals(made, self._failed(), toolchain, self.targets()):
            if not self.idle:
                return
            await self._give(renewal)

    async def _give(self, renewal: Renewal) -> None:
        place = renewal.place
        if place in self._refused:
            return
        log.info("blueprints/%s for %s again: %s", place.blueprint_id, place.interface, renewal.reason)
        try:
            await self._forge.compile(
                place.blueprint_id,
                write_interface(place.interface),
                codec.number(place.pipeline),
                target=codec.write_target(place.target),
            )
            self.given += 1
        except (InvalidRequest, NotFound, PreconditionFailed) as error:
            log.info("blueprints/%s is not built again: %s", place.blueprint_id, error)
            self._refused.add(place)

    async def _supersede(self, artifact_id: str, reason: str) -> None:
        status = pb.KERNEL_STATUS_SUPERSEDED
        try:
            await self._library.set_kernel_status(
                pb.SetKernelStatusRequest(artifact_id=artifact_id, status=status, reason=reason)
            )
            self.superseded += 1
        except PreconditionFailed as error:  # somebody else moved it since it was read, and their word stands
            log.info("kernels/%s was not superseded: %s", artifact_id, error)

    async def _made(self) -> list[Made]:
        return [one for kernel in await self._kernels() if (one := await self._read(kernel)) is not None]

    async def _read(self, kernel: pb.Kernel) -> Made | None:
        """None: its body is not what it was; whoever downloads or verifies it deals with that."""
        if kernel.artifact_id not in self._bodies:
            request = pb.GetKernelRequest(artifact_id=kernel.artifact_id, with_manifest=True)
            manifest = (await self._library.get_kernel(request)).manifest
            try:
                check_id(manifest)
                self._bodies[kernel.artifact_id] = read_body(manifest.body)
            except (Corrupt, InvalidRequest) as error:
                log.warning("kernels/%s is passed over: %s", kernel.artifact_id, error)
                return None
        body = self._bodies[kernel.artifact_id]
        return Made(
            artifact_id=kernel.artifact_id,
            place=Place(body.blueprint_id, body.interface, body.target, body.pipeline),
            toolchain=body.toolchain,
            promoted=kernel.status == pb.KERNEL_STATUS_VALIDATED,
            interest=kernel.interest,
            age=kernel.create_time.ToNanoseconds(),
        )

    async def _kernels(self) -> list[pb.Kernel]:
        request = pb.ListKernelsRequest(page=PageRequest(size=_PAGE))
        found: list[pb.Kernel] = []
        while len(found) < MAX_LOOKED_AT:
            reply = await self._library.list_kernels(request)
            found += [kernel for kernel in reply.kernels if kernel.status in _READ]
            request.page.token = reply.page.next_token
            if not request.page.token:
                break
        return found

    def _failed(self) -> list[Place]:
        """Of the orders this process was given, those that no worker answered."""
        return [
            Place(record.blueprint_id, read_interface(record.interface), codec.read_target(record.target), name)
            for _, record in self._forge.records()
            if record.HasField("failure") and not answered(record) and _passes(record) and record.target
            for name in (codec.read_pipeline(record.pipeline),)
        ]

    def targets(self) -> dict[str, tuple[str, ...]]:
        """What each pipeline that can be built here is built for."""
        return made_for(self._forge.options.targets)


def _passes(record: forge_pb2.CompilationRecord) -> bool:
    """Whether the failure need not be there the next time: a worker died, or overran."""
    return isinstance(codec.read_failure(record.failure), Unavailable | DeadlineExceeded)
