"""Where everything that is heard is written down: the runs' books, the audit trail, the metrics.

One object for all wirings: a worker feeds it from the bus, a sink from direct calls.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path

from google.protobuf.timestamp_pb2 import Timestamp

from esper.api.kasmina.v1 import control_pb2, telemetry_pb2
from esper.api.nissa.v1 import observability_pb2 as pb
from esper.api.tezzeret.v1 import forge_pb2
from esper.api.tolaria.v1 import state_pb2
from esper.api.urabrask.v1 import evaluation_pb2
from esper.api.urza.v1 import library_pb2
from esper.errors import Corrupt, InvalidRequest, NotFound
from esper.nissa.audit import AuditTrail
from esper.nissa.audited import entry_of_command, entry_of_kernel
from esper.nissa.book import RunBook, command_key
from esper.nissa.codec import check_time, key_of
from esper.nissa.events import log_path
from esper.nissa.kernels import KnownKernels
from esper.nissa.metrics import Metrics
from esper.nissa.pedigrees import KnownPedigrees
from esper.nissa.translate import event_of_packet

log = logging.getLogger(__name__)

MAX_OPEN = 64


class Recorder:
    """Everything under `folder`. Used from one thread, by one process.

    `directory`: of the one run that is recorded, whatever its hello says. `listen`: told of
    every event that is new, with its position.
    """

    def __init__(
        self,
        folder: Path,
        metrics: Metrics,
        *,
        directory: Path | None = None,
        listen: Callable[[pb.RunEvent], None] | None = None,
        max_open: int = MAX_OPEN,
    ) -> None:
        """Raises PreconditionFailed where the folder cannot be written, Corrupt where a file in it is damaged."""
        self.folder = folder
        self.metrics = metrics
        self.audit = AuditTrail(folder / "audit.sqlite")
        self.kernels = KnownKernels(folder / "kernels.sqlite")
        self.pedigrees = KnownPedigrees(folder / "pedigrees.sqlite")
        self._runs = folder / "runs"
        self._directory = directory
        self._listen = listen
        self._max_open = max_open
        self._books: OrderedDict[str, RunBook] = OrderedDict()
        self._validated: dict[str, tuple[int, float]] = {}  # the last validation heard in packets, by run

    def record(self, event: pb.RunEvent, key: str) -> int:
        """Store one event of a run, once; `key` is its envelope's id. Returns its position in the run.

        Raises InvalidRequest for an event that cannot be one, and what RunBook.record raises.
        """
        check_time(event)
        once = key_of(event, key)
        heard = pb.RunEvent()
        heard.CopyFrom(event)
        heard.position = 0
        book = self._open(event.run_id, make=True)
        before = book.log.last_position
        heard.position = book.record(heard, once)
        if heard.position > before and self._listen is not None:
            self._listen(heard)
        return heard.position

    def packet(self, packet: state_pb2.SystemStatePacket, key: str, time: Timestamp) -> None:
        """Take a decision point: what kernels are, what was spent, the latest validation."""
        self.kernels.learn(packet)
        event = event_of_packet(packet, time)
        validated = (packet.validation_step, packet.validation_loss)
        if event is not None and self._validated.get(packet.run_id) != validated:
            self.record(event, key)
            self._validated[packet.run_id] = validated
        self.metrics.telemetry(packet.run_id).take_packet(packet)

    def command(self, command: control_pb2.ControlCommand, key: str, time: Timestamp) -> None:
        """Take a command that was sent; those that are not the controller's enter the audit trail."""
        if (entry := entry_of_command(command, time)) is not None:
            self.audit.append(command_key(command.run_id, command.command_id), entry)

    def kernel_ready(self, message: forge_pb2.KernelReady) -> None:
        """Count a compilation."""
        self.metrics.count_kernel("ready" if message.artifact_id else "failed")

    def kernel_characterized(self, message: evaluation_pb2.KernelCharacterized, key: str, time: Timestamp) -> None:
        """Count a promotion or rejection, and enter it in the audit trail."""
        self.audit.append(f"kernel/{key}", entry_of_kernel(message, time))
        self.metrics.count_kernel("promoted" if message.promoted else "rejected")

    def strangers(self) -> list[str]:
        """Blueprints of fossils, in open runs, whose ancestors are not known yet; see `introduce`."""
        return list(dict.fromkeys(name for book in self._books.values() for name in book.strangers()))

    def introduce(self, lineage: Iterable[library_pb2.Blueprint]) -> None:
        """Take blueprints with all that they descend from, as the library has them."""
        affected = [(book, set(book.strangers())) for book in self._books.values()]
        self.pedigrees.learn(lineage)
        for book, strange in affected:
            if strange.intersection(self.pedigrees):
                book.introduce()

    def health(self, batch: telemetry_pb2.HealthBatch) -> None:
        """Count readings."""
        self.metrics.telemetry(batch.run_id).take_health(batch)

    def performance(self, performance: telemetry_pb2.LayerPerformance) -> None:
        """Count time inside Esper."""
        self.metrics.telemetry(performance.run_id).take_performance(performance)

    def run(self, run_id: str) -> RunBook:
        """A run's book. Raises NotFound for a run nothing was heard of."""
        return self._open(run_id, make=False)

    def run_ids(self) -> list[str]:
        """Every run something was heard of, most recently written first."""
        paths = sorted(self._runs.glob("*.sqlite"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        return [path.name.removesuffix(".sqlite") for path in paths]

    def recover(self) -> None:
        """After a restart: finish what a killed process left half-written. Those runs are among the latest ones."""
        for run_id in reversed(self.run_ids()[: self._max_open]):
            try:
                self.run(run_id)
            except Corrupt as error:
                log.error("run %s cannot be gone on with: %s", run_id, error)

    def due(self) -> list[RunBook]:
        """Open runs that are over and whose report lacks something."""
        return [book for book in self._books.values() if book.report_is_due]

    def failures(self) -> dict[str, str]:
        """Runs whose files are behind, and why."""
        return {run_id: "; ".join(book.failures.values()) for run_id, book in self._books.items() if book.failures}

    def close(self) -> None:
        """Let go of all files."""
        for book in self._books.values():
            book.close()
        self._books.clear()
        self.kernels.close()
        self.pedigrees.close()
        self.audit.close()

    def _open(self, run_id: str, *, make: bool) -> RunBook:
        book = self._books.get(run_id)
        if book is None:
            path = log_path(self._runs, run_id)
            if not make and not path.exists():
                raise NotFound(f"nothing was heard of a run {run_id!r}; `esper runs` lists those that are known")
            count = self.metrics.failed_writes
            book = RunBook(
                run_id,
                path,
                self.audit,
                self.kernels,
                self.pedigrees,
                lambda name: count.labels(name).inc(),
                self._directory,
            )
            self._books[run_id] = book
            book.catch_up()
            self._close_oldest()
        self._books.move_to_end(run_id)
        self.metrics.put_run(run_id, book.counts)
        return book

    def _close_oldest(self) -> None:
        *older, _ = self._books
        idle = [run_id for run_id in older if not self._books[run_id].log.watched]
        for run_id in idle[: max(0, len(self._books) - self._max_open)]:
            self._books.pop(run_id).close()


def check_run(event: pb.RunEvent, run_id: str) -> None:
    """Raise InvalidRequest where an event of one run came in the name of another."""
    if event.run_id != run_id:
        raise InvalidRequest(
            f"an event of run {event.run_id!r} came in the name of run {run_id!r}", {"run_id": f"must be {run_id!r}"}
        )
