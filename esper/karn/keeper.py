"""Keep the archive up with what was tried: a design's worth is the mean gain of its grafts.

Nothing is kept here that a restart would lose: what a cell has is in the library, what grafts gained is with Simic.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Protocol

from esper.api.simic.v1 import replay_pb2
from esper.api.urza.v1 import library_pb2 as pb
from esper.blueprint.codec import read_interface
from esper.blueprint.interface import Kind
from esper.blueprint.ir import Graph
from esper.errors import EsperError, NotFound
from esper.karn.archive import Archive, Candidate
from esper.karn.shelf import Shelf, fetch, keep, restore

log = logging.getLogger(__name__)

# What grafts gained, each kernel's apart, and Simic's position.
Gains = Callable[[], Awaitable[replay_pb2.SummariseExperiencesResponse]]
_Design = tuple[str, Kind]  # blueprint id, and the kind of interface it was grafted at


class Library(Shelf, Protocol):
    """What of the library is used here; see esper.urza.port."""

    async def get_kernel(self, request: pb.GetKernelRequest, /) -> pb.GetKernelResponse: ...


class ArchiveKeeper:
    """The archive of one library. `update` is for one caller at a time."""

    def __init__(self, library: Library, gains: Gains) -> None:
        self._library = library
        self._gains = gains
        self._archive: Archive | None = None
        self._position = -1  # of Simic's, that the archive is up with
        self._of_kernel: dict[str, _Design | None] = {}  # by artifact id; None: it is not in the library
        self._candidates: dict[_Design, Candidate | None] = {}  # None: nothing can be bred from it
        self._said = ""

    @property
    def archive(self) -> Archive:
        """As of the last `update`."""
        return self._archive or {}

    def parents(self, kind: Kind) -> dict[str, Graph]:
        """The designs of the cells of a kind, by blueprint id."""
        here = [elite.blueprint_id for cell, elite in self.archive.items() if cell.kind == kind.value]
        found = [self._candidates[name, kind] for name in here]
        return {one.blueprint_id: one.graph for one in found if one is not None}

    async def run(self, every_s: float) -> None:
        """For good: look every `every_s`. A library or a replay store that does not answer is asked again then."""
        while True:
            await self.catch_up()
            await asyncio.sleep(every_s)

    async def catch_up(self) -> None:
        """`update`; what library or replay store raises is said, once."""
        try:
            await self.update()
            self._said = ""
        except EsperError as error:
            if str(error) != self._said:
                log.warning("the archive waits: %s", error)
            self._said = str(error)

    async def update(self) -> None:
        """Look up what is new, and insert. Raises what library and replay store raise; what was looked up is kept."""
        if self._archive is None:
            found = await restore(self._library)
            self._candidates |= {(one.blueprint_id, Kind(cell.kind)): one for cell, one in found.items()}
            self._archive = {cell: one.elite(None) for cell, one in found.items()}
        reply = await self._gains()
        if reply.header.revision == self._position:
            return
        tried = [one for one in reply.summaries if one.judged and one.artifact_id]
        for name in dict.fromkeys(one.artifact_id for one in tried):
            if name not in self._of_kernel:
                self._of_kernel[name] = await self._design(name)
        worth = mean_gains(tried, self._of_kernel)
        for design in worth:
            if design not in self._candidates:
                await self._look_up(design)
        await self._insert(worth)
        self._position = reply.header.revision

    async def _design(self, artifact_id: str) -> _Design | None:
        try:
            kernel = (await self._library.get_kernel(pb.GetKernelRequest(artifact_id=artifact_id))).kernel
        except NotFound as error:
            log.warning("grafts of it do not count: %s", error)
            return None
        return kernel.blueprint_id, read_interface(kernel.interface).kind

    async def _look_up(self, design: _Design) -> None:
        self._candidates[design], reason = await fetch(self._library, *design)
        if self._candidates[design] is None:
            log.info("blueprints/%s is in no cell: %s", design[0], reason)

    async def _insert(self, worth: Mapping[_Design, float]) -> None:
        """What is there is read anew first, so that what it was better than can take its place."""
        there = {elite.blueprint_id for elite in self.archive.values()}
        for design in sorted(worth, key=lambda one: (one[0] not in there, one[0], one[1].value)):
            one = self._candidates[design]
            if one is None:
                continue
            before = self.archive.get(one.cell)
            self._archive, _, reason = await keep(self._library, self.archive, one.cell, one.elite(worth[design]))
            if before is None or before.blueprint_id != self._archive[one.cell].blueprint_id:
                log.info("%s: %s", one.cell.alias, reason)


def mean_gains(tried: Iterable[replay_pb2.Summary], of_kernel: Mapping[str, _Design | None]) -> dict[_Design, float]:
    """Mean gain of the judged grafts of each design, whatever the task and the kernel."""
    sums: dict[_Design, tuple[int, float]] = {}
    for one in tried:
        design = of_kernel.get(one.artifact_id)
        if design is not None:
            count, total = sums.get(design, (0, 0.0))
            sums[design] = count + one.judged, total + one.judged * one.mean_gain
    return {design: total / count for design, (count, total) in sums.items()}
