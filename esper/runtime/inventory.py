"""What the library has for a run's sites, kept in memory and brought up by its ledger at each question.

A decision point asks for every interface of its run. What was read once stays: a question reads which blueprints and
kernels changed since the one before, whoever changed them, and looks up those. A library that was put back to an
earlier state, or one that changed too much to follow, is read anew: its ledger's digests tell one history from another.
So is one that failed in the middle of a question.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

from esper.api.common.v1 import blueprint_pb2, resource_pb2
from esper.api.tolaria.v1 import state_pb2
from esper.api.urza.v1 import library_pb2 as pb
from esper.blueprint.codec import read_graph, write_interface
from esper.blueprint.interface import Interface
from esper.blueprint.matching import match
from esper.runtime.assortment import Need, Sort, best, needs_of, own, sort_of
from esper.tamiyo.codec import interface_key

R = TypeVar("R", bound=Any)  # any reply of library_pb2 with a header: they share no base that says so

SEARCH_LIMIT = 1000  # as many as one search gives
_PAGE = resource_pb2.PageRequest(size=1000)
_MAX_INTERFACES = 128  # that asked for longest ago is let go
_VERDICTS = (pb.KERNEL_STATUS_VALIDATED, pb.KERNEL_STATUS_REJECTED)
_OUT_OF_USE = frozenset((pb.BLUEPRINT_STATUS_INVALID, pb.BLUEPRINT_STATUS_ARCHIVED))


class Catalogue(Protocol):
    """What of the library is used here; see esper.urza.port."""

    async def list_ledger(self, request: pb.ListLedgerRequest, /) -> pb.ListLedgerResponse: ...

    async def list_blueprints(self, request: pb.ListBlueprintsRequest, /) -> pb.ListBlueprintsResponse: ...

    async def get_blueprint(self, request: pb.GetBlueprintRequest, /) -> pb.GetBlueprintResponse: ...

    async def search_kernels(self, request: pb.SearchKernelsRequest, /) -> pb.SearchKernelsResponse: ...

    async def get_kernel(self, request: pb.GetKernelRequest, /) -> pb.GetKernelResponse: ...


class Stocked(NamedTuple):
    """Promoted kernels that run on any device, and how many blueprints in stock have no verdict yet."""

    ready: Sequence[pb.Kernel]
    being_made: int


@dataclass(slots=True)
class _Blueprints:
    """All of the library, whatever they fit."""

    status: dict[Sort, dict[str, int]] = field(default_factory=lambda: {sort: {} for sort in Sort})
    # Of what people put in; written, because a message keeps the whole reply that it came in.
    graphs: dict[str, bytes] = field(default_factory=dict)

    def put(self, blueprint: pb.Blueprint) -> None:
        sort = sort_of(blueprint)
        self.status[sort][blueprint.blueprint_id] = blueprint.status
        if sort is Sort.PEOPLES:
            self.graphs[blueprint.blueprint_id] = blueprint.graph.SerializeToString()

    def in_use(self, sort: Sort, blueprint_id: str) -> bool:
        return self.status[sort].get(blueprint_id, pb.BLUEPRINT_STATUS_ARCHIVED) not in _OUT_OF_USE


@dataclass(slots=True)
class _Kernels:
    """Of one interface, for the CPU: by artifact id, those with a verdict."""

    interface: Interface
    fitting: set[str]  # blueprint ids: what people put in, is in use and fits
    by_status: dict[pb.KernelStatus.ValueType, dict[str, pb.Kernel]] = field(
        default_factory=lambda: {status: {} for status in _VERDICTS}
    )
    unread: set[pb.KernelStatus.ValueType] = field(default_factory=lambda: set(_VERDICTS))

    def put(self, kernel: pb.Kernel) -> None:
        """Take in what a kernel has become. Where a search was full, what comes next in its order is not known here."""
        for status, found in self.by_status.items():
            if len(found) >= SEARCH_LIMIT:
                self.unread.add(status)
            found.pop(kernel.artifact_id, None)
            if kernel.status == status:
                found[kernel.artifact_id] = kernel


class Inventory:
    """One per library; belongs to one event loop."""

    def __init__(self, library: Catalogue) -> None:
        self._library = library
        self._lock = asyncio.Lock()
        self._newest: pb.LedgerEntry | None = None  # what changed up to it is known; None: nothing is
        self._witness: pb.LedgerEntry | None = None  # of the latest state that was read
        self._seen = 0  # the revision of that state
        self._blueprints = _Blueprints()
        self._kernels: OrderedDict[bytes, _Kernels] = OrderedDict()

    async def of_sites(self, sites: Iterable[state_pb2.SiteState], seed: int) -> Mapping[str, Stocked]:
        """By `interface_key`, what a run of this seed with these sites has; see `look`."""
        needs = needs_of(sites, seed)
        found = await self.look(needs)
        keys = (interface_key(write_interface(need.interface)) for need in needs)
        return dict(zip(keys, found, strict=True))

    async def look(self, needs: Sequence[Need]) -> list[Stocked]:
        """For each, what the library has by now, or had at some time since this was called.

        Without what Karn made for runs of another seed: what a run has must not depend on its neighbours. Of each
        verdict at most the 1,000 kernels that a search puts first are known. Raises what the library raises.
        """
        async with self._lock:
            try:
                await self._follow()
                found = [self._stocked(need, await self._at(need.interface)) for need in needs]
                await self._vouch()
            except BaseException:
                self._newest = None
                raise
            return found

    async def _follow(self) -> None:
        if self._newest is None or self._witness is None:
            await self._begin()
            return
        request = pb.ListLedgerRequest(after_revision=self._newest.revision - 1, page=_PAGE)
        reply = self._noted(await self._library.list_ledger(request))
        there = {entry.revision: entry.digest for entry in reply.entries}
        same_history = all(there.get(one.revision) == one.digest for one in (self._newest, self._witness))
        if not same_history or reply.page.next_token:
            await self._begin()
            return
        await self._take_in(reply.entries[1:])
        self._newest = reply.entries[-1]
        self._witness = max(self._witness, self._newest, key=lambda one: one.revision)

    async def _vouch(self) -> None:
        """Note the ledger's entry of the latest state that was read, to know at the next question that it still is."""
        if self._witness is None or self._seen > self._witness.revision:
            self._witness = await self._entry(self._seen)

    async def _entry(self, revision: int) -> pb.LedgerEntry | None:
        """None where the library has not come that far."""
        request = pb.ListLedgerRequest(after_revision=max(revision, 1) - 1, page=resource_pb2.PageRequest(size=1))
        return next(iter((await self._library.list_ledger(request)).entries), None)

    def _noted(self, reply: R) -> R:
        self._seen = max(self._seen, reply.header.revision)
        return reply

    async def _begin(self) -> None:
        """Read all blueprints; kernels are read when an interface is asked for."""
        self._blueprints, self._seen = _Blueprints(), 0
        self._kernels.clear()
        one = resource_pb2.PageRequest(size=1)
        head = self._noted(await self._library.list_ledger(pb.ListLedgerRequest(page=one))).header.revision
        self._newest = self._witness = await self._entry(head)
        for status in (pb.BLUEPRINT_STATUS_UNSPECIFIED, pb.BLUEPRINT_STATUS_ARCHIVED):  # all others, and these
            request = pb.ListBlueprintsRequest(status=status, page=_PAGE)
            while True:
                reply = self._noted(await self._library.list_blueprints(request))
                for blueprint in reply.blueprints:
                    self._blueprints.put(blueprint)
                if not reply.page.next_token:
                    break
                request.page.token = reply.page.next_token
        if self._newest is not None:  # what changed while they were read is in one list and another, or in none
            since = pb.ListLedgerRequest(after_revision=self._newest.revision, page=_PAGE)
            await self._take_in((await self._library.list_ledger(since)).entries)

    async def _take_in(self, entries: Iterable[pb.LedgerEntry]) -> None:
        """Look up, once each, blueprints that changed and kernels that were moved; a new kernel has no verdict."""
        actions = ("blueprint.create", "blueprint.status", "kernel.status")
        names = dict.fromkeys(entry.resource_name for entry in entries if entry.action in actions)
        ids = [name.partition("/")[::2] for name in names]
        blueprints, kernels = await asyncio.gather(
            asyncio.gather(*(self._blueprint(one) for what, one in ids if what == "blueprints")),
            asyncio.gather(*(self._kernel(one) for what, one in ids if what == "kernels")),
        )
        for blueprint in blueprints:
            self._blueprints.put(blueprint)
            self._refit(blueprint.blueprint_id)
        for kernel in kernels:
            at = self._kernels.get(kernel.interface.SerializeToString(deterministic=True))
            if at is not None and kernel.target == resource_pb2.TARGET_CPU:
                at.put(kernel)

    async def _blueprint(self, blueprint_id: str) -> pb.Blueprint:
        request = pb.GetBlueprintRequest(blueprint_id=blueprint_id)
        return self._noted(await self._library.get_blueprint(request)).blueprint

    async def _kernel(self, artifact_id: str) -> pb.Kernel:
        return self._noted(await self._library.get_kernel(pb.GetKernelRequest(artifact_id=artifact_id))).kernel

    def _refit(self, blueprint_id: str) -> None:
        for at in self._kernels.values():
            at.fitting.discard(blueprint_id)
            at.fitting |= _fitting(self._blueprints, [blueprint_id], at.interface)

    async def _at(self, interface: Interface) -> _Kernels:
        key = write_interface(interface).SerializeToString(deterministic=True)
        if key not in self._kernels:
            peoples = list(self._blueprints.graphs)
            # half a millisecond each: not on the loop that serves the others
            fitting = await asyncio.to_thread(_fitting, self._blueprints, peoples, interface)
            self._kernels[key] = _Kernels(interface, fitting)
            if len(self._kernels) > _MAX_INTERFACES:
                self._kernels.popitem(last=False)
        at = self._kernels[key]
        self._kernels.move_to_end(key)
        for status in sorted(at.unread):
            reply = self._noted(await self._library.search_kernels(search_for(interface, status)))
            at.by_status[status] = {one.kernel.artifact_id: one.kernel for one in reply.matches}
            at.unread.remove(status)
        return at

    def _stocked(self, need: Need, at: _Kernels) -> Stocked:
        mine, generated = own(need), self._blueprints.status[Sort.GENERATED]
        promoted, refused = (at.by_status[status] for status in _VERDICTS)
        ready = [one for one in promoted.values() if one.blueprint_id in mine or one.blueprint_id not in generated]
        judged = {one.blueprint_id for one in (*ready, *refused.values())}
        stock = [(Sort.LIBRARY, one) for one in best(need.interface, need.limits)]
        stock += [(Sort.GENERATED, one) for one in mine]
        waiting = sum(one not in judged and self._blueprints.in_use(sort, one) for sort, one in stock)
        return Stocked(ready, waiting + len(at.fitting) - len(at.fitting & judged))


def search_for(
    interface: Interface,
    status: pb.KernelStatus.ValueType,
    target: resource_pb2.Target.ValueType = resource_pb2.TARGET_CPU,
) -> pb.SearchKernelsRequest:
    """Kernels for exactly this interface and target, as many as one search gives."""
    return pb.SearchKernelsRequest(
        interface=write_interface(interface), status=status, target=target, limit=SEARCH_LIMIT
    )


def _fitting(blueprints: _Blueprints, ids: Iterable[str], interface: Interface) -> set[str]:
    """Those of what people put in that are in use and fit."""

    def fits(blueprint_id: str) -> bool:
        graph = blueprint_pb2.Graph.FromString(blueprints.graphs[blueprint_id])
        return match(read_graph(graph), interface)[0]

    return {one for one in ids if blueprints.in_use(Sort.PEOPLES, one) and fits(one)}
