"""One run as Nissa keeps it: its log, what is folded from the log, and the files made of both.

An event is appended to the log first. Everything else is made from the log, from where it
was left, so that it does not matter after which of the writes a process is killed.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from esper.api.nissa.v1 import observability_pb2 as pb
from esper.errors import Exhausted, PreconditionFailed
from esper.nissa.audit import AuditTrail
from esper.nissa.audited import entry_of_event
from esper.nissa.codec import kind_of
from esper.nissa.events import EventLog
from esper.nissa.files import read_text, replace_text
from esper.nissa.jsonl import JsonLines
from esper.nissa.kernels import KnownKernels
from esper.nissa.lineage import Lineage
from esper.nissa.pedigrees import KnownPedigrees
from esper.nissa.report import position_of, write_report
from esper.nissa.run_metrics import RunCounts
from esper.nissa.summary import RunRecord, record_of

log = logging.getLogger(__name__)

EVENTS, LINEAGE, METRICS, REPORT = "events.jsonl", "lineage.json", "metrics.prom", "report.html"
# After goodbye, a report is made anew for every other kind of event.
_UNREPORTED = ("queues", "progress")


class RunBook:
    """`directory`: where the run's files go, instead of where its hello says."""

    def __init__(
        self,
        run_id: str,
        path: Path,
        audit: AuditTrail,
        kernels: KnownKernels,
        pedigrees: KnownPedigrees,
        failed: Callable[[str], None],
        directory: Path | None = None,
    ) -> None:
        """`failed`: told the name of a file that could not be written."""
        self.run_id = run_id
        self.log = EventLog(path)
        self.counts = RunCounts()
        self.lineage = Lineage(run_id)
        self.directory: Path | None = None
        self.failures: dict[str, str] = {}  # files that are behind, and why
        self.summary_heard = False
        self.goodbye: pb.RunEvent | None = None
        self._audit = audit
        self._kernels = kernels
        self._pedigrees = pedigrees
        self._failed = failed
        self._fixed_directory = directory
        self._issuers: dict[str, str] = {}  # of the controller's commands, by command id
        self._folded = 0
        self._heard = datetime.min.replace(tzinfo=UTC)  # time of the last event
        self._reportable = 0  # position of the last event a report would show
        self._reported: int | None = None  # position of the last event in the report; None: look
        self._jsonl: JsonLines | None = None
        self._lineage_written: str | None = None
        self._lineage_changed = True
        self._outdated = False  # the report says less than is known since

    def record(self, event: pb.RunEvent, key: str) -> int:
        """Store one event, once per key, and bring everything up to date with it. Returns its position.

        Raises Exhausted where log or audit trail cannot be written; the same call again
        goes on. A run's files that cannot be written are left behind, and tried again.
        """
        if not event.step and kind_of(event) in ("note", "queues"):
            event.step = self.counts.step
        position, _ = self.log.append(event, key)
        self.catch_up()
        return position

    def catch_up(self) -> None:
        """Fold what the log has and this book has not, then bring the run's files up to date."""
        for event in self.log.after(self._folded):
            self._enter(event)
            self._fold(event)
            self._folded = event.position
        self._write(EVENTS, self._write_lines)
        self._write(LINEAGE, self._write_lineage)

    def over_in_s(self, now: datetime, linger_s: float) -> float | None:
        """Seconds until the run counts as over if nothing comes; None while it goes on, 0 when it is over.

        A run that completed has a summary to come, but not one that nobody compares.
        """
        if self.goodbye is None:
            return None
        if self.summary_heard or not self.goodbye.goodbye.completed:
            return 0.0
        return max(0.0, linger_s - (now - self._heard).total_seconds())

    @property
    def report_is_due(self) -> bool:
        """Whether the run is over and its report lacks something."""
        if self.goodbye is None or self.directory is None:
            return False
        if self._reported is None:
            self._reported = position_of(self.directory)
        return self._outdated or self._reported < self._reportable

    def strangers(self) -> list[str]:
        """Blueprints of the run's fossils whose ancestors are not known yet."""
        return [name for name in self.lineage.blueprints(self._kernels) if name not in self._pedigrees]

    def introduce(self) -> None:
        """Pedigrees were learned: lineage.json and a report that was written before are made again."""
        self._lineage_changed = self._outdated = True
        self._write(LINEAGE, self._write_lineage)

    def whole(self) -> RunRecord:
        """The run as a report shows it, from everything in the log."""
        return record_of(self.run_id, self.log.after(0))

    def finish(self, record: RunRecord, metrics_text: str) -> None:
        """Write metrics.prom and report.html, as far as they can be. It takes seconds and may run in another thread."""
        if self.directory is not None:
            directory, self._outdated = self.directory, False
            self._write(METRICS, lambda: replace_text(directory / METRICS, metrics_text))
            self._write(REPORT, lambda: self.write_report(record))
            self._reported = None
            self._outdated |= REPORT in self.failures

    def write_report(self, record: RunRecord) -> Path:
        """Write report.html and return its path. Raises PreconditionFailed, Exhausted."""
        return write_report(self.directory, record, dict(self._kernels), dict(self._pedigrees))

    def close(self) -> None:
        self.log.close()

    def _enter(self, event: pb.RunEvent) -> None:
        """Into the audit trail, if it belongs there; the trail knows what it has."""
        issuer = self._issuer(event.outcome.command_id) if event.HasField("outcome") else ""
        entry = entry_of_event(event, issuer)
        if entry is not None:
            self._audit.append(f"event/{self.run_id}/{event.position}", entry)

    def _issuer(self, command_id: str) -> str:
        sent = self._audit.get(command_key(self.run_id, command_id))
        return sent.actor if sent is not None else self._issuers.get(command_id, "")

    def _fold(self, event: pb.RunEvent) -> None:
        self._heard = event.time.ToDatetime(UTC)
        self.counts.take(event)
        self._lineage_changed |= self.lineage.take(event)
        if event.HasField("hello"):
            self._begin(event)
        elif event.HasField("goodbye"):
            self.goodbye = event
            self._lineage_changed = True  # it has the final number of transitions
        elif event.HasField("summary"):
            self.summary_heard = True
        for command in event.decision.plan.commands:
            self._issuers[command.command_id] = command.issuer
        if kind_of(event) not in _UNREPORTED:
            self._reportable = event.position

    def _begin(self, event: pb.RunEvent) -> None:
        directory = self._fixed_directory or (Path(event.hello.directory) if event.hello.directory else None)
        if directory is not None and directory != self.directory:
            self.directory, self._jsonl = directory, JsonLines(directory / EVENTS)
            self._lineage_changed, self._reported = True, None
        self.goodbye, self.summary_heard = None, False

    def _write_lines(self) -> None:
        if self._jsonl is not None:
            self._jsonl.bring_up_to_date(self.log)

    def _write_lineage(self) -> None:
        if self.directory is None or not self._lineage_changed:
            return
        text = self.lineage.write(self._kernels, self._pedigrees)
        if read_text(self.directory / LINEAGE) != text:
            replace_text(self.directory / LINEAGE, text)
        self._lineage_changed = False

    def _write(self, name: str, write: Callable[[], object]) -> None:
        """A run's directory is its user's: what goes wrong there must not stop what is recorded of other runs."""
        try:
            write()
        except (Exhausted, PreconditionFailed) as error:
            if name not in self.failures:
                log.error("run %s: %s; its log has everything and the next event tries again", self.run_id, error)
            self.failures[name] = str(error)
            self._failed(name)
        else:
            self.failures.pop(name, None)


def command_key(run_id: str, command_id: str) -> str:
    """Key of a sent command in the audit trail."""
    return f"command/{run_id}/{command_id}"
