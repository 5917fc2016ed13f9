"""Takes field reports from the bus into the replay store: each once, whatever is delivered again."""

import asyncio
import logging

from esper.api.tamiyo.v1 import controller_pb2
from esper.errors import Exhausted, InvalidRequest, OutOfRange, Unavailable
from esper.oona.cursor import Cursor, CursorState, CursorStore, follow
from esper.oona.envelope import Envelope, open_as
from esper.oona.port import Bus
from esper.oona.subjects import Name
from esper.rpc.validation import validate
from esper.simic.store import ReplayStore

log = logging.getLogger(__name__)

CURSOR = "simic/field_reports"


class ReplayWorker:
    """One consumer of innovation.field_reports. `retry_s`: pause while the disk is full."""

    def __init__(self, bus: Bus, store: ReplayStore, cursors: CursorStore, *, retry_s: float = 1.0) -> None:
        self.bus = bus
        self.store = store
        self.cursors = cursors
        self.retry_s = retry_s
        self.refused = 0
        self.gaps = 0

    async def run(self) -> None:
        """Work until the bus is closed."""
        cursor = await Cursor.open(self.cursors, CURSOR)
        while True:
            try:
                return await follow(self.bus, Name.FIELD_REPORTS, cursor, self._take)
            except OutOfRange as lost:
                # The store tells repeats by report id, so that beginning with the oldest kept is safe.
                self.gaps += 1
                log.error("field reports may be missing: %s", lost)
                cursor.move(CursorState())

    async def _take(self, envelope: Envelope) -> None:
        try:
            report = open_as(envelope, controller_pb2.FieldReport)
            validate(report)
        except InvalidRequest as error:
            self.refused += 1
            log.error("a field report is skipped: %s", error)
            return
        while True:
            try:
                self.store.add(report)
                return
            except (Exhausted, Unavailable) as error:
                log.warning("field report %s waits: %s", report.report_id[:12], error)
                await asyncio.sleep(self.retry_s)
