"""Nissa for a run without services: the same records and files, fed by direct calls."""

import logging
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from google.protobuf.timestamp_pb2 import Timestamp

from esper.api.nissa.v1 import observability_pb2 as pb
from esper.api.tamiyo.v1 import controller_pb2
from esper.api.tolaria.v1 import trainer_pb2
from esper.api.urza.v1 import library_pb2
from esper.errors import EsperError, Exhausted, PreconditionFailed, Unavailable
from esper.nissa.book import RunBook
from esper.nissa.metrics import Metrics
from esper.nissa.recorder import Recorder
from esper.nissa.translate import event_of_request, events_of_answer

log = logging.getLogger(__name__)

FOLDER = "nissa"
MAX_WAITING = 10_000

# A blueprint and all that it descends from. Raises NotFound.
AskAncestry = Callable[[str], Sequence[library_pb2.Blueprint]]


def system_time() -> Timestamp:
    """The time, for those who are handed no clock."""
    now = Timestamp()
    now.GetCurrentTime()
    return now


class RunSink:
    """Writes events.jsonl, lineage.json, metrics.prom and report.html of one run into its directory.

    Training does not stop where the disk is full or not writable any more: what cannot be
    written waits, up to `MAX_WAITING` messages, and is tried again with the next one.
    `close` raises if something was not written in the end. Used from one thread.
    """

    def __init__(
        self,
        run_directory: Path,
        *,
        now: Callable[[], Timestamp] = system_time,
        listen: Callable[[pb.RunEvent], None] | None = None,
        ask_ancestry: AskAncestry | None = None,
    ) -> None:
        """`listen`: told of every event as it is recorded, with its position.
        `ask_ancestry`: asked at the end; without it the genealogy of what fossilised stays unknown.

        Raises PreconditionFailed where the directory cannot be written.
        """
        self.metrics = Metrics()
        self.recorder = Recorder(run_directory / FOLDER, self.metrics, directory=run_directory, listen=listen)
        self._now = now
        self._ask_ancestry = ask_ancestry
        self._run_id = ""
        self._nonce = secrets.token_hex(8)  # keys of this process; those of earlier ones are in the log
        self._number = 0
        self._waiting: deque[Callable[[], object]] = deque()
        self._dropped = 0

    def request(self, request: trainer_pb2.AttachRequest) -> None:
        """Take what the trainer says. Its hello comes first, or this raises PreconditionFailed."""
        if request.HasField("hello"):
            self._run_id = request.hello.run_id
        time, key, run_id = self._now(), self._key(), self._run()
        if request.HasField("state"):
            self._do(lambda: self.recorder.packet(request.state, key, time))
        elif request.HasField("health"):
            self._do(lambda: self.recorder.health(request.health))
        elif request.HasField("performance"):
            self._do(lambda: self.recorder.performance(request.performance))
        elif (event := event_of_request(run_id, request, time)) is not None:
            self._do(lambda: self.recorder.record(event, key))

    def response(self, response: controller_pb2.DecideResponse) -> None:
        """Take what the controller answers."""
        for event in events_of_answer(response, self._now()):
            self.event(event)

    def event(self, event: pb.RunEvent) -> None:
        """Take any other event: validations of controls, queues, the summary. Run id and time are filled in."""
        heard = pb.RunEvent()
        heard.CopyFrom(event)
        heard.run_id = heard.run_id or self._run()
        if not heard.HasField("time"):
            heard.time.CopyFrom(self._now())
        key = self._key()
        self._do(lambda: self.recorder.record(heard, key))

    def close(self) -> None:
        """Write what still waits, then metrics.prom and report.html, and let go of the files.

        Raises Exhausted or PreconditionFailed, naming what is missing, where something was not written.
        """
        try:
            self._work_off()
            if self._run_id and not self._waiting:
                book = self.recorder.run(self._run_id)
                book.catch_up()
                self._ask_for_strangers(book)
                book.finish(book.whole(), self.metrics.text())
                self._check(book)
            self._check_waiting()
        finally:
            self.recorder.close()

    def _do(self, write: Callable[[], object]) -> None:
        self._waiting.append(write)
        if len(self._waiting) > MAX_WAITING:
            self._waiting.popleft()
            self._dropped += 1
        self._work_off()

    def _work_off(self) -> None:
        """Do what waits, in order, until something cannot be written."""
        while self._waiting:
            try:
                self._waiting[0]()
            except (Exhausted, PreconditionFailed, Unavailable) as error:
                if len(self._waiting) == 1:
                    log.error("%s; training goes on, and it is tried again", error)
                return
            except BaseException:
                self._waiting.popleft()
                raise
            self._waiting.popleft()

    def _ask_for_strangers(self, book: RunBook) -> None:
        """Learn what the run's fossils descend from."""
        if self._ask_ancestry is None:
            return
        for blueprint_id in book.strangers():
            try:
                self.recorder.introduce(self._ask_ancestry(blueprint_id))
            except EsperError as error:
                log.warning("what blueprint %s descends from is not known: %s", blueprint_id, error)

    def _check(self, book: RunBook) -> None:
        if book.failures:
            words = "; ".join(book.failures.values())
            raise PreconditionFailed(f"run {book.run_id!r} is over, but its files are not complete: {words}")

    def _check_waiting(self) -> None:
        if self._waiting or self._dropped:
            raise Exhausted(
                f"{len(self._waiting) + self._dropped} messages of run {self._run_id!r} were not recorded, because "
                f"{self.recorder.folder} could not be written; free some space or make it writable before the next run"
            )

    def _run(self) -> str:
        if not self._run_id:
            raise PreconditionFailed("nothing is known of the run yet; its hello must be the first request")
        return self._run_id

    def _key(self) -> str:
        self._number += 1
        return f"{self._nonce}-{self._number}"
