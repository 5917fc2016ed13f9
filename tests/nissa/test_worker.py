"""From the bus to the files: exactly once over restarts, two runs apart, nonsense skipped, a full disk waited out."""

import asyncio
import contextlib
import json
import os
import signal

import pytest

from esper.api.kasmina.v1 import control_pb2
from esper.api.nissa.v1 import observability_pb2 as pb
from esper.errors import DeadlineExceeded, Exhausted, Unavailable
from esper.nissa.book import RunBook
from esper.nissa.metrics import Metrics
from esper.nissa.recorder import Recorder
from esper.nissa.worker import SUBJECTS, ObservabilityWorker
from esper.oona import subjects
from esper.oona.broker import Broker, BrokerOptions
from esper.oona.cursor import FileCursorStore, MemoryCursorStore
from esper.oona.envelope import Sender
from esper.oona.jetstream import JetStreamBus
from esper.oona.memory import MemoryBus
from esper.oona.subjects import Name

from .feed import publish, published, recorded
from .scenario import RUN, ancestors, hello, messages, moved, seed

TOTAL = len(recorded())


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    monkeypatch.setattr("esper.nissa.report.draw", lambda *_: {})


async def until(condition, timeout_s=30.0):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def working(worker):
    """A worker until the end of the block; then it is killed, as far as asyncio can."""
    task = asyncio.create_task(worker.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def worker_on(bus, recorder, cursors=None):
    return ObservabilityWorker(bus, recorder, cursors or MemoryCursorStore(), retry_s=0.002, report_every_s=0.01)


def lines(directory):
    path = directory / "events.jsonl"
    return path.read_text().splitlines() if path.exists() else []


async def test_a_run_on_the_bus_becomes_its_files(recorder, run_directory):
    bus = MemoryBus()
    async with working(worker_on(bus, recorder)):
        await publish(bus, published(messages(str(run_directory))))
        await until(lambda: len(lines(run_directory)) == TOTAL)
        await until(lambda: (run_directory / "report.html").exists())
    assert {"lineage.json", "metrics.prom"} <= {path.name for path in run_directory.iterdir()}
    kinds = [json.loads(line)["kind"] for line in lines(run_directory)]
    assert sorted(kinds) == sorted(event.WhichOneof("event") for event in recorded())
    text = recorder.metrics.text()
    assert 'esper_inside_seconds_count{run="run-1"} 3.0' in text
    assert 'esper_readings_total{run="run-1"} 1.0' in text


async def test_a_run_over_many_lives_of_the_worker_is_recorded_once(tmp_path, run_directory):
    bus, envelopes = MemoryBus(), list(published(messages(str(run_directory))))
    for begin in range(0, len(envelopes), 7):
        recorder = Recorder(tmp_path / "state", Metrics())
        async with working(worker_on(bus, recorder, FileCursorStore(tmp_path / "cursors"))):
            await publish(bus, envelopes[begin : begin + 7])
            await publish(bus, envelopes[begin : begin + 3])  # the gateway's own second attempt
            await asyncio.sleep(0.02)  # wherever it is, it is cut off there
        recorder.close()
    recorder = Recorder(tmp_path / "state", Metrics())
    async with working(worker_on(bus, recorder, FileCursorStore(tmp_path / "cursors"))):
        await until(lambda: len(lines(run_directory)) == TOTAL)
    assert recorder.audit.verify().intact
    assert len(recorder.audit.list()) == 8
    recorder.close()


async def test_cursors_that_were_lost_change_nothing(recorder, run_directory):
    bus = MemoryBus()
    await publish(bus, published(messages(str(run_directory))))
    for _ in range(2):
        async with working(worker_on(bus, recorder)):
            await until(lambda: len(lines(run_directory)) == TOTAL and (run_directory / "report.html").exists())
            await asyncio.sleep(0.05)
    assert len(lines(run_directory)) == TOTAL
    assert len(recorder.audit.list()) == 8


async def test_two_runs_stay_apart(recorder, tmp_path):
    bus = MemoryBus()
    for run_id in ("a.1", "a.2"):
        sender = Sender("gateway/0", nonce=run_id)
        said = [pb.RunEvent(run_id=run_id, hello=hello(run_id, directory=str(tmp_path / run_id)))]
        said += [pb.RunEvent(run_id=run_id, transition=moved("DORMANT", "GERMINATED", 5, seed(run_id=run_id)))]
        for event in said:
            await bus.publish(_events_name(), sender.seal(event, run_id=run_id))
    async with working(worker_on(bus, recorder)):
        await until(lambda: all(len(lines(tmp_path / run)) == 2 for run in ("a.1", "a.2")))


def _events_name():
    return subjects.name_for(pb.RunEvent.DESCRIPTOR.full_name)


async def test_envelopes_that_break_rules_are_counted_and_skipped(recorder, tmp_path):
    bus, sender = MemoryBus(), Sender("gateway/0")
    wrong = [
        pb.RunEvent(run_id="run-2", queues=pb.Queues()),  # in the name of another run
        pb.RunEvent(run_id=RUN),  # says nothing
        pb.RunEvent(run_id=RUN, transition={"seed": {"run_id": RUN, "site": "fc1"}}),  # has no reason
        pb.RunEvent(run_id=RUN, note={"level": "info", "text": "right"}),
    ]
    for event in wrong:
        await bus.publish(_events_name(), sender.seal(event, run_id=RUN))
    async with working(worker_on(bus, recorder)):
        await until(lambda: RUN in recorder.run_ids())
    assert [event.note.text for event in recorder.run(RUN).log.after(0)] == ["right"]
    assert f'esper_nissa_skipped_total{{subject="{_events_name()}"}} 3.0' in recorder.metrics.text()


async def test_manual_commands_are_audited(recorder):
    bus, sender = MemoryBus(), Sender("cli/0")
    for issuer in ("operator", "tamiyo"):
        made = control_pb2.ControlCommand(
            command_id=issuer, run_id=RUN, issuer=issuer, reason="because", pause=control_pb2.Pause(paused=True)
        )
        await bus.publish(Name.COMMANDS, sender.seal(made, run_id=RUN))
    async with working(worker_on(bus, recorder)):
        await until(lambda: recorder.audit.last_position == 1)
    assert [entry.actor for entry in recorder.audit.list()] == ["operator"]


async def test_a_full_disk_is_waited_out_and_nothing_is_lost(recorder, run_directory, monkeypatch):
    bus, record, left = MemoryBus(), recorder.record, 5

    def full_for_a_while(event, key):
        nonlocal left
        left -= 1
        if left >= 0:
            raise Exhausted("disk")
        return record(event, key)

    monkeypatch.setattr(recorder, "record", full_for_a_while)
    await publish(bus, published(messages(str(run_directory))))
    async with working(worker_on(bus, recorder)):
        await until(lambda: len(lines(run_directory)) == TOTAL)


async def test_a_bus_that_lost_its_store_is_gone_on_with_and_the_gap_counted(recorder, run_directory):
    bus, cursors = MemoryBus(), MemoryCursorStore()
    envelopes = list(published(messages(str(run_directory))))
    async with working(worker_on(bus, recorder, cursors)):
        await publish(bus, envelopes)
        await until(lambda: len(lines(run_directory)) == TOTAL)
    fresh = MemoryBus()
    note = pb.RunEvent(run_id=RUN, note={"level": "info", "text": "new"})
    await fresh.publish(_events_name(), Sender("gateway/0").seal(note, run_id=RUN))
    async with working(worker_on(fresh, recorder, cursors)):
        await until(lambda: len(lines(run_directory)) == TOTAL + 1)
    assert f'esper_nissa_gaps_total{{subject="{_events_name()}"}} 1.0' in recorder.metrics.text()


async def test_a_closed_bus_ends_the_worker_with_the_reports_written(recorder, run_directory):
    bus = MemoryBus()
    worker = ObservabilityWorker(bus, recorder, MemoryCursorStore(), report_every_s=1000)
    task = asyncio.create_task(worker.run())
    await publish(bus, published(messages(str(run_directory))))
    await until(lambda: len(lines(run_directory)) == TOTAL)
    await bus.close()
    await asyncio.wait_for(task, 10)
    assert (run_directory / "report.html").exists()


async def test_a_report_that_cannot_be_written_is_tried_again(recorder, run_directory):
    (run_directory / "report.html").mkdir(parents=True)
    bus = MemoryBus()
    async with working(worker_on(bus, recorder)):
        await publish(bus, published(messages(str(run_directory))))
        await until(lambda: "report.html" in recorder.failures().get(RUN, ""))
        (run_directory / "report.html").rmdir()
        await until(lambda: (run_directory / "report.html").is_file())
    assert recorder.failures() == {}


@pytest.mark.parametrize("error", [Unavailable("none"), DeadlineExceeded("late"), ZeroDivisionError("a bug")])
async def test_a_library_that_does_not_answer_is_asked_again_and_the_report_made_again(recorder, run_directory, error):
    asked, answers = [], False

    async def ask(blueprint_id):
        asked.append(blueprint_id)
        if not answers:
            raise error
        return ancestors()

    worker = ObservabilityWorker(
        MemoryBus(), recorder, MemoryCursorStore(), retry_s=0.002, report_every_s=0.01, ask_ancestry=ask
    )
    report = run_directory / "report.html"
    async with working(worker):
        await publish(worker.bus, published(messages(str(run_directory))))
        await until(lambda: report.exists() and "has not told" in report.read_text())
        answers = True
        await until(lambda: "arXiv:2106.09685" in report.read_text())
        assert len(json.loads((run_directory / "lineage.json").read_text())["blueprints"]) == 3
        often = len(asked)
        await asyncio.sleep(0.05)
    assert set(asked) == {"c" * 64} and len(asked) == often >= 2


async def test_what_nobody_foresaw_costs_one_envelope_or_one_report(recorder, run_directory, monkeypatch):
    bus, write, record = MemoryBus(), RunBook.write_report, recorder.record
    failing = {"reports": 2, "events": 1}

    def fail(what, go_on):
        failing[what] -= 1
        if failing[what] >= 0:
            raise ZeroDivisionError
        return go_on()

    monkeypatch.setattr(RunBook, "write_report", lambda book, record: fail("reports", lambda: write(book, record)))
    monkeypatch.setattr(recorder, "record", lambda event, key: fail("events", lambda: record(event, key)))
    await bus.publish(_events_name(), Sender("gateway/0").seal(pb.RunEvent(run_id=RUN, queues=pb.Queues()), run_id=RUN))
    async with working(worker_on(bus, recorder)):
        await until(lambda: failing["events"] == 0)
        await publish(bus, published(messages(str(run_directory))))
        await until(lambda: (run_directory / "report.html").exists())
    assert failing["reports"] < 0
    assert len(lines(run_directory)) == TOTAL


def test_every_subject_with_something_to_tell_is_read():
    """Blueprints that are submitted are the forge's affair; their kernels are heard of when they are ready."""
    assert set(Name) - set(SUBJECTS) == {Name.BLUEPRINT_SUBMITTED}


@pytest.mark.slow
async def test_on_a_broker_that_is_killed_in_between(nats_server, tmp_path, run_directory):
    envelopes = list(published(messages(str(run_directory))))
    cursors = FileCursorStore(tmp_path / "cursors")
    with Broker(tmp_path / "broker", options=BrokerOptions(max_store_bytes=1 << 40)) as broker:
        bus = await JetStreamBus.connect(broker.address)
        recorder = Recorder(tmp_path / "state", Metrics())
        async with working(worker_on(bus, recorder, cursors)):
            await publish(bus, envelopes[:20])
            await until(lambda: len(lines(run_directory)) > 5)
        recorder.close()
        os.kill(broker.pid, signal.SIGKILL)
        broker.restart()
        recorder = Recorder(tmp_path / "state", Metrics())
        async with working(worker_on(bus, recorder, cursors)):
            await publish(bus, envelopes[20:])
            await until(lambda: len(lines(run_directory)) == TOTAL and (run_directory / "report.html").exists())
        await bus.close()
    assert recorder.audit.verify().intact
    assert len(recorder.audit.list()) == 8
    recorder.close()
