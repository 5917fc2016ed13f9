"""What the evaluator measured, read from the library, and for each target a predictor fitted to it.

Nothing is kept here that a restart would lose: reports are in the library, and a fit is made anew from them.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from google.protobuf.message import DecodeError

from esper.api.common.v1.resource_pb2 import PageReply, PageRequest
from esper.api.urabrask.v1 import evaluation_pb2
from esper.api.urza.v1 import library_pb2 as pb
from esper.blueprint.codec import read_graph
from esper.blueprint.ir import Graph
from esper.errors import InvalidRequest, NotFound, PreconditionFailed
from esper.karn.codec import read_measurement
from esper.karn.predict import Measurement, Predictor, fit

log = logging.getLogger(__name__)

# Artifact id, and what a report says of it; None: nothing that is new.
_Read = tuple[str, Measurement | None]

MOST_REPORTS = 2000  # the newest of the library, which alone are read
_PAGE = 100
_NAMED = 8  # targets that a refusal names


class StoredReport(Protocol):
    """esper.urza.port's."""

    @property
    def name(self) -> str: ...

    @property
    def artifact_id(self) -> str: ...

    @property
    def body(self) -> bytes: ...


class Evaluations(Protocol):
    """What of the library is used here; see esper.urza.port."""

    async def list_reports(
        self, artifact_id: str, page: PageRequest, /
    ) -> tuple[Sequence[StoredReport], PageReply]: ...

    async def get_kernel(self, request: pb.GetKernelRequest, /) -> pb.GetKernelResponse: ...

    async def get_blueprint(self, request: pb.GetBlueprintRequest, /) -> pb.GetBlueprintResponse: ...


class Measurements:
    """Of one library. What was read is not read again, and a target is fitted again only after new measurements."""

    def __init__(self, library: Evaluations) -> None:
        self.fits = 0
        self._library = library
        self._lock = asyncio.Lock()
        self._names: list[str] = []  # of reports, newest first, whole up to the first of them
        self._read: dict[str, _Read] = {}  # by report name
        self._graphs: dict[str, Graph] = {}  # by blueprint id
        self._fitted: dict[str, Predictor] = {}

    async def predictor(self, target: str) -> Predictor:
        """Fitted to all that was measured on `target`.

        Raises PreconditionFailed where that is too little, and what the library raises.
        """
        async with self._lock:
            for one in await self._refresh():
                self._fitted.pop(one, None)
            if target not in self._fitted:
                known = self._known()
                found, reason = await asyncio.to_thread(fit, known, target)
                if found is None:
                    raise PreconditionFailed(_refusal(reason, Counter(m.target for m in known)))
                self.fits += 1
                self._fitted[target] = found
            return self._fitted[target]

    def _known(self) -> list[Measurement]:
        """The newest of each kernel on each target: one that was evaluated again is not two."""
        newest: dict[tuple[str, str], Measurement] = {}
        for artifact_id, one in (self._read[name] for name in self._names):
            if one is not None:
                newest.setdefault((artifact_id, one.target), one)
        return list(newest.values())

    async def _refresh(self) -> set[str]:
        """Read what was stored since the last time; the targets that there is news of."""
        newest, fresh = self._names[:1], list[str]()
        page = PageRequest(size=1)
        while True:
            reports, reply = await self._library.list_reports("", page)
            for one in reports:
                if [one.name] == newest or len(fresh) == MOST_REPORTS:
                    return self._take(fresh)
                if one.name not in self._read:  # it is there already where the last time was interrupted
                    self._read[one.name] = one.artifact_id, await self._measurement(one)
                fresh.append(one.name)
            if not reply.next_token:
                return self._take(fresh)
            page = PageRequest(size=_PAGE, token=reply.next_token)

    def _take(self, fresh: list[str]) -> set[str]:
        names = [*fresh, *self._names]
        self._names, dropped = names[:MOST_REPORTS], names[MOST_REPORTS:]
        changed = [self._read[name] for name in fresh] + [self._read.pop(name) for name in dropped]
        if dropped:
            used = {id(one.graph) for _, one in self._read.values() if one is not None}
            self._graphs = {name: graph for name, graph in self._graphs.items() if id(graph) in used}
        return {one.target for _, one in changed if one is not None}

    async def _measurement(self, stored: StoredReport) -> Measurement | None:
        try:
            report = evaluation_pb2.Report.FromString(stored.body)
            if report.follows_report_id:  # the same figures with other words
                return None
            kernel = (await self._library.get_kernel(pb.GetKernelRequest(artifact_id=stored.artifact_id))).kernel
            return read_measurement(report, kernel, await self._graph(kernel.blueprint_id))
        except (DecodeError, InvalidRequest, NotFound) as error:
            log.warning("%s tells nothing: %s", stored.name, error)
            return None

    async def _graph(self, blueprint_id: str) -> Graph:
        if blueprint_id not in self._graphs:
            reply = await self._library.get_blueprint(pb.GetBlueprintRequest(blueprint_id=blueprint_id))
            self._graphs[blueprint_id] = read_graph(reply.blueprint.graph)
        return self._graphs[blueprint_id]


def _refusal(reason: str, counts: Counter[str]) -> str:
    most = ", ".join(f"{target!r} ({count})" for target, count in counts.most_common(_NAMED))
    return (
        f"budget.target: {reason} before anything is predicted; have more kernels evaluated there, name another "
        f"target, or ask without a budget; measured so far: {most or 'nothing'}"
    )
