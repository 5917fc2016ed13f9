"""Direct calls give the very files that a bus gives, and a full disk does not stop training."""

import json

import pytest

from esper.api.nissa.v1 import observability_pb2 as pb
from esper.errors import Exhausted, NotFound, PreconditionFailed
from esper.nissa import sink as module
from esper.nissa.book import RunBook
from esper.nissa.metrics import Metrics
from esper.nissa.recorder import Recorder
from esper.nissa.sink import RunSink
from esper.nissa.worker import ObservabilityWorker
from esper.oona.cursor import MemoryCursorStore
from esper.oona.memory import MemoryBus

from .feed import published, tell
from .scenario import RUN, ancestors, answer, ask, at, hello, messages, nothing, progress

FILES = {"events.jsonl", "lineage.json", "metrics.prom", "report.html"}


@pytest.fixture
def clock():
    return lambda: at(0)


def test_a_run_leaves_its_four_files(run_directory):
    sink = RunSink(run_directory)
    tell(sink, messages("elsewhere"))
    sink.close()
    assert {path.name for path in run_directory.iterdir()} >= FILES
    assert "Run run-1" in (run_directory / "report.html").read_text()
    assert 'esper_transitions_total{run="run-1",to="FOSSILIZED"} 1.0' in (run_directory / "metrics.prom").read_text()
    assert not (run_directory.parent / "elsewhere").exists()


async def test_calls_and_bus_give_the_same_files(tmp_path, run_directory, monkeypatch):
    monkeypatch.setattr("esper.nissa.report.draw", lambda *_: {})
    sink = RunSink(run_directory, ask_ancestry=lambda _: ancestors())
    for one in messages(str(run_directory)):
        monkeypatch.setattr(sink, "_now", lambda one=one: one.time)
        tell(sink, [one])
    sink.close()
    by_calls = {name: (run_directory / name).read_text() for name in FILES}
    assert len(json.loads(by_calls["lineage.json"])["blueprints"]) == 3
    for name in FILES:
        (run_directory / name).unlink()
    recorder = Recorder(tmp_path / "state", Metrics())

    async def ask_ancestry(_):
        return ancestors()

    worker = ObservabilityWorker(MemoryBus(), recorder, MemoryCursorStore(), ask_ancestry=ask_ancestry)
    for name, envelope in published(messages(str(run_directory))):
        await worker._apply(name, envelope)
    await worker._ask_for_strangers()
    (book,) = recorder.due()
    book.finish(book.whole(), recorder.metrics.text())
    for name in FILES - {"metrics.prom"}:
        assert (run_directory / name).read_text() == by_calls[name], name
    assert _stable((run_directory / "metrics.prom").read_text()) == _stable(by_calls["metrics.prom"])
    recorder.close()


def _stable(text):
    """Without the samples that are times."""
    return [line for line in text.splitlines() if "_created" not in line and "uptime" not in line]


def test_the_library_is_asked_once_for_what_fossilised(run_directory, clock):
    asked = []
    sink = RunSink(run_directory, now=clock, ask_ancestry=lambda name: asked.append(name) or ancestors())
    tell(sink, messages())
    sink.close()
    assert asked == ["c" * 64]
    assert len(json.loads((run_directory / "lineage.json").read_text())["blueprints"]) == 3
    assert "arXiv:2106.09685" in (run_directory / "report.html").read_text()


def test_a_library_that_does_not_know_is_no_reason_to_fail(run_directory, clock):
    def nobody(name):
        raise NotFound(name)

    sink = RunSink(run_directory, now=clock, ask_ancestry=nobody)
    tell(sink, messages())
    sink.close()
    assert "the library has not told" in (run_directory / "report.html").read_text()


def test_listeners_hear_what_is_recorded(run_directory, clock):
    heard = []
    sink = RunSink(run_directory, now=clock, listen=heard.append)
    tell(sink, messages())
    assert [event.position for event in heard] == list(range(1, len(heard) + 1))
    sink.close()


def test_another_life_of_the_run_goes_on_in_the_same_files(run_directory, clock):
    for session in ("one", "two"):
        sink = RunSink(run_directory, now=clock)
        sink.request(ask(hello=hello(session=session)))
        sink.request(ask(progress=progress(100)))
        sink.close()
    lines = [json.loads(line) for line in (run_directory / "events.jsonl").read_text().splitlines()]
    assert [(line["kind"], line.get("session")) for line in lines if line["kind"] == "hello"] == [
        ("hello", "one"),
        ("hello", "two"),
    ]
    assert len(lines) == 4


def test_the_hello_comes_first(run_directory, clock):
    sink = RunSink(run_directory, now=clock)
    with pytest.raises(PreconditionFailed, match="hello must be the first"):
        sink.request(ask(progress=progress(100)))
    with pytest.raises(PreconditionFailed, match="hello must be the first"):
        sink.event(pb.RunEvent(queues=pb.Queues()))
    sink.close()


def test_run_and_time_are_filled_in(run_directory, clock):
    heard = []
    sink = RunSink(run_directory, now=clock, listen=heard.append)
    sink.request(ask(hello=hello()))
    sink.event(pb.RunEvent(queues=pb.Queues(nursery=2)))
    sink.response(answer(nothing(100)))
    assert [(event.run_id, event.time.seconds) for event in heard[:2]] == [(RUN, at(0).seconds)] * 2
    sink.close()


def test_a_full_disk_makes_messages_wait_and_close_writes_them(run_directory, clock, monkeypatch):
    sink = RunSink(run_directory, now=clock)
    sink.request(ask(hello=hello()))
    with monkeypatch.context() as patch:
        patch.setattr(RunBook, "record", lambda *_: (_ for _ in ()).throw(Exhausted("disk")))
        for step in (100, 200, 300):
            sink.request(ask(progress=progress(step)))
    sink.close()
    assert len((run_directory / "events.jsonl").read_text().splitlines()) == 4


def test_what_could_never_be_written_is_said_at_the_end_with_its_number(run_directory, clock, monkeypatch):
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    sink = RunSink(run_directory, now=clock)
    sink.request(ask(hello=hello()))
    monkeypatch.setattr(RunBook, "record", lambda *_: (_ for _ in ()).throw(Exhausted("disk")))
    for step in range(5):
        sink.request(ask(progress=progress(100 + step)))
    with pytest.raises(Exhausted, match="5 messages of run 'run-1' were not recorded"):
        sink.close()


def test_files_that_are_behind_at_the_end_are_said(run_directory, clock):
    sink = RunSink(run_directory, now=clock)
    (run_directory / "events.jsonl").mkdir()
    sink.request(ask(hello=hello()))
    with pytest.raises(PreconditionFailed, match=r"its files are not complete: .*events.jsonl cannot be written"):
        sink.close()


def test_a_directory_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PreconditionFailed, match="writable"):
        RunSink(tmp_path / "file" / "run")


def test_a_message_that_is_wrong_is_refused_and_the_next_one_goes_on(run_directory, clock):
    sink = RunSink(run_directory, now=clock)
    sink.request(ask(hello=hello()))
    with pytest.raises(Exception, match="says nothing"):
        sink.event(pb.RunEvent())
    sink.request(ask(progress=progress(100)))
    assert sink.recorder.run(RUN).log.last_position == 2
    sink.close()
