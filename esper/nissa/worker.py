"""Takes everything that concerns runs from the bus, each subject with a cursor of its own.

The cursor moves after what an envelope caused was written, and everything written knows
what it has, so that an envelope that comes again changes nothing: applied exactly once.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from esper.api.kasmina.v1 import control_pb2, telemetry_pb2
from esper.api.nissa.v1 import observability_pb2 as pb
from esper.api.tamiyo.v1 import controller_pb2
from esper.api.tezzeret.v1 import forge_pb2
from esper.api.tolaria.v1 import state_pb2, trainer_pb2
from esper.api.urabrask.v1 import evaluation_pb2
from esper.api.urza.v1 import library_pb2
from esper.errors import DeadlineExceeded, EsperError, Exhausted, OutOfRange, PreconditionFailed, Unavailable
from esper.nissa.book import REPORT, RunBook
from esper.nissa.recorder import Recorder, check_run
from esper.nissa.translate import event_of_decision, event_of_report
from esper.oona.cursor import Cursor, CursorState, CursorStore, follow
from esper.oona.envelope import Envelope, unpack
from esper.oona.port import Bus
from esper.oona.subjects import Name
from esper.rpc.validation import validate

log = logging.getLogger(__name__)

SUBJECTS = (
    Name.EPOCH,
    Name.MODEL_METRICS,
    Name.ADAPTATION_PROPOSAL,
    Name.FIELD_REPORTS,
    Name.COMMANDS,
    Name.KERNEL_READY,
    Name.KERNEL_CHARACTERIZED,
    Name.SEED_HEALTH,
    Name.LAYER_PERFORMANCE,
)
# Envelopes between two saves of a cursor; after a crash so many come again, and change nothing.
SAVE_EVERY = 32
_LONGEST_RETRY_S = 30.0

# A blueprint and all that it descends from. Raises NotFound, Unavailable.
AskAncestry = Callable[[str], Awaitable[Sequence[library_pb2.Blueprint]]]


class ObservabilityWorker:
    """Feeds a recorder from a bus, and writes the reports of runs that are over."""

    def __init__(
        self,
        bus: Bus,
        recorder: Recorder,
        cursors: CursorStore,
        *,
        retry_s: float = 0.5,
        report_every_s: float = 1.0,
        ask_ancestry: AskAncestry | None = None,
    ) -> None:
        """`retry_s`: first pause while the disk is full. `report_every_s`: between two looks for runs that are over.

        `ask_ancestry`: of the library; without it the genealogy of what fossilised stays unknown, and reports say so.
        """
        self.bus = bus
        self.recorder = recorder
        self.cursors = cursors
        self.retry_s = retry_s
        self.report_every_s = report_every_s
        self.ask_ancestry = ask_ancestry
        self._unanswered: set[str] = set()  # said once in the log
        self._take: dict[type[Any], Callable[[Any, Envelope], object]] = {
            pb.RunEvent: self._event,
            trainer_pb2.Progress: self._progress,
            state_pb2.SystemStatePacket: lambda m, e: recorder.packet(m, e.id, e.send_time),
            controller_pb2.AdaptationProposal: self._decision,
            controller_pb2.FieldReport: self._report,
            control_pb2.ControlCommand: lambda m, e: recorder.command(m, e.id, e.send_time),
            forge_pb2.KernelReady: lambda m, _: recorder.kernel_ready(m),
            evaluation_pb2.KernelCharacterized: lambda m, e: recorder.kernel_characterized(m, e.id, e.send_time),
            telemetry_pb2.HealthBatch: lambda m, _: recorder.health(m),
            telemetry_pb2.LayerPerformance: lambda m, _: recorder.performance(m),
        }

    async def run(self) -> None:
        """Finish what an earlier process left, then work until the bus is closed."""
        self.recorder.recover()
        reporter = asyncio.create_task(self._keep_reporting())
        consumers = [asyncio.create_task(self._consume(name)) for name in SUBJECTS]
        try:
            await asyncio.gather(*consumers)
        finally:
            for task in (reporter, *consumers):
                task.cancel()
            await asyncio.gather(reporter, *consumers, return_exceptions=True)
        await self._ask_for_strangers()
        await self._write_reports()

    async def _consume(self, name: Name) -> None:
        cursor = await Cursor.open(self.cursors, f"nissa/{name}", save_every=SAVE_EVERY)
        while True:
            try:
                return await follow(self.bus, name, cursor, lambda envelope: self._apply(name, envelope))
            except OutOfRange as lost:
                # What is still kept may have been applied; everything written knows what it has.
                self.recorder.metrics.gaps.labels(name).inc()
                log.error("events on %s may be missing: %s", name, lost)
                cursor.move(CursorState())

    async def _apply(self, name: Name, envelope: Envelope) -> None:
        """Write what one envelope causes, waiting while it cannot be; one that breaks its rules is skipped."""
        pause_s = self.retry_s
        while True:
            try:
                return self._dispatch(name, envelope)
            except (Exhausted, PreconditionFailed, Unavailable) as error:
                log.error("envelope %s on %s waits %g s: %s", envelope.id, name, pause_s, error)
            except Exception as error:
                # What cannot be applied now never can, and the others must not wait for it.
                self.recorder.metrics.skipped.labels(name).inc()
                bug = None if isinstance(error, EsperError) else error
                log.error("envelope %s on %s is skipped: %s", envelope.id, name, error, exc_info=bug)
                return None
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_RETRY_S)

    def _dispatch(self, name: Name, envelope: Envelope) -> None:
        message = unpack(name, envelope)
        take = self._take.get(type(message))
        if take is not None:  # the controller's replies travel with commands, and are no news
            validate(message)
            take(message, envelope)

    def _event(self, event: pb.RunEvent, envelope: Envelope) -> None:
        event.run_id = event.run_id or envelope.run_id
        if not event.HasField("time"):
            event.time.CopyFrom(envelope.send_time)
        self._record(event, envelope)

    def _progress(self, progress: trainer_pb2.Progress, envelope: Envelope) -> None:
        event = pb.RunEvent(run_id=envelope.run_id, time=envelope.send_time, step=progress.step, progress=progress)
        self._record(event, envelope)

    def _decision(self, proposal: controller_pb2.AdaptationProposal, envelope: Envelope) -> None:
        self._record(event_of_decision(proposal.decision, envelope.send_time), envelope)

    def _report(self, report: controller_pb2.FieldReport, envelope: Envelope) -> None:
        self._record(event_of_report(report, envelope.send_time), envelope)

    def _record(self, event: pb.RunEvent, envelope: Envelope) -> None:
        check_run(event, envelope.run_id)
        self.recorder.record(event, envelope.id)

    async def _keep_reporting(self) -> None:
        """Look for runs that are over; a report that cannot be written is tried again less often."""
        pause_s = self.report_every_s
        while True:
            await asyncio.sleep(pause_s)
            await self._ask_for_strangers()
            failed = await self._write_reports()
            pause_s = min(2 * pause_s, 60.0) if failed else self.report_every_s

    async def _ask_for_strangers(self) -> None:
        """Learn what fossils descend from. Who does not answer is asked again at the next look."""
        if self.ask_ancestry is None:
            return
        for blueprint_id in self.recorder.strangers():
            try:
                self.recorder.introduce(await self.ask_ancestry(blueprint_id))
            except Exception as error:  # whatever it is, reports do not wait for it
                if blueprint_id not in self._unanswered:
                    bug = None if isinstance(error, EsperError) else error
                    log.warning(
                        "what blueprint %s descends from is not known yet: %s", blueprint_id, error, exc_info=bug
                    )
                self._unanswered.add(blueprint_id)
                if isinstance(error, Unavailable | DeadlineExceeded):
                    return  # nor would it answer for the others

    async def _write_reports(self) -> bool:
        """Write the reports that are due, away from the event loop. Returns whether one could not be written."""
        return any([await self._write_report(book) for book in self.recorder.due()])

    async def _write_report(self, book: RunBook) -> bool:
        try:
            record, text = book.whole(), self.recorder.metrics.text()
            await asyncio.to_thread(book.finish, record, text)
        except Exception:
            log.exception("the report of run %s cannot be made", book.run_id)
            return True
        return REPORT in book.failures
