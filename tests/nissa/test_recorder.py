"""One place for everything that is heard: once each, over restarts, beside a directory that cannot be written."""

import json

import pytest

from esper.api.common.v1.interface_pb2 import Interface
from esper.api.kasmina.v1 import control_pb2
from esper.api.nissa.v1 import observability_pb2 as pb
from esper.api.tezzeret.v1.forge_pb2 import KernelReady
from esper.api.urabrask.v1.evaluation_pb2 import KernelCharacterized
from esper.errors import Exhausted, InvalidRequest, NotFound
from esper.nissa import book
from esper.nissa.jsonl import line_of
from esper.nissa.metrics import Metrics
from esper.nissa.recorder import Recorder, check_run
from esper.oona.envelope import utc_now

from .feed import recorded
from .scenario import GOOD, RUN, at, hello, moved, packet, seed, status, validation


def record_all(recorder, events):
    for number, event in enumerate(events):
        recorder.record(event, f"envelope-{number}")


def lines(directory):
    return [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]


def test_a_whole_run_is_written_into_its_directory(recorder, run_directory):
    events = recorded(str(run_directory))
    record_all(recorder, events)
    assert (run_directory / "events.jsonl").read_text() == "".join(line_of(e) for e in recorder.run(RUN).log.after(0))
    lineage = json.loads((run_directory / "lineage.json").read_text())
    assert [fossil["seed"] for fossil in lineage["fossils"]] == ["fc1/0"]
    assert len(recorder.audit.list()) == 8
    assert recorder.failures() == {}


def test_lineage_is_written_at_the_transition(recorder, run_directory):
    recorder.record(pb.RunEvent(run_id=RUN, hello=hello(directory=str(run_directory))), "1")
    assert json.loads((run_directory / "lineage.json").read_text())["fossils"] == []
    recorder.record(pb.RunEvent(run_id=RUN, transition=moved("FINE_TUNING", "FOSSILIZED", 5)), "2")
    assert len(json.loads((run_directory / "lineage.json").read_text())["fossils"]) == 1
    recorder.record(pb.RunEvent(run_id=RUN, transition=moved("FOSSILIZED", "CULLED", 9)), "3")
    assert len(json.loads((run_directory / "lineage.json").read_text())["removed"]) == 1


def test_events_before_the_hello_are_written_once_the_directory_is_known(recorder, run_directory):
    recorder.record(pb.RunEvent(run_id=RUN, transition=moved("DORMANT", "GERMINATED", 5)), "1")
    assert not run_directory.exists()
    recorder.record(pb.RunEvent(run_id=RUN, hello=hello(directory=str(run_directory))), "2")
    assert [line["kind"] for line in lines(run_directory)] == ["transition", "hello"]


def test_a_run_that_goes_on_in_another_directory_has_all_its_events_there(recorder, tmp_path):
    record_all(recorder, recorded(str(tmp_path / "one")))
    recorder.record(pb.RunEvent(run_id=RUN, hello=hello(directory=str(tmp_path / "two"))), "again")
    assert len(lines(tmp_path / "two")) == len(lines(tmp_path / "one")) + 1
    assert (tmp_path / "two" / "lineage.json").exists()


def test_positions_are_nissas_and_events_are_recorded_once(recorder, run_directory):
    event = pb.RunEvent(run_id=RUN, hello=hello(directory=str(run_directory)), position=77)
    assert [recorder.record(event, "a"), recorder.record(event, "b"), recorder.record(event, "a")] == [1, 2, 1]
    assert event.position == 77  # what is handed in is left alone


def test_listeners_hear_each_event_once_with_its_position(tmp_path):
    heard = []
    recorder = Recorder(tmp_path, Metrics(), listen=heard.append)
    record_all(recorder, [*recorded()[:3], *recorded()[:3]])
    record_all(recorder, recorded()[:3])
    assert [event.position for event in heard] == list(range(1, 6))  # a validation says what the one before it said
    recorder.close()


def test_a_note_gets_the_step_training_was_at(recorder):
    record_all(recorder, recorded()[:2])
    recorder.record(pb.RunEvent(run_id=RUN, note={"level": "info", "source": "x", "text": "y"}), "note")
    assert next(recorder.run(RUN).log.after(2)).step == 100


def test_packets_give_validations_kernels_and_costs(recorder):
    recorder.packet(packet(100), "p0", at(0))  # nothing was measured yet
    recorder.packet(packet(200, 0.9, seeds=[status(GOOD, "bottleneck 4")]), "p1", at(1))
    repeated = packet(300)
    repeated.validation_loss, repeated.validation_step = 0.9, 200
    recorder.packet(repeated, "p2", at(2))
    recorder.packet(packet(400, 0.8), "p3", at(3))
    recorder.record(validation(400, 0.8, "run"), "gateway")  # somebody else reports the same measurement
    found = [(e.validation.step, e.validation.loss, e.validation.arm) for e in recorder.run(RUN).log.after(0)]
    assert found == [(200, 0.9, "run"), (400, 0.8, "run")]
    assert recorder.kernels[GOOD].title == "bottleneck 4"
    assert 'esper_train_flops_total{run="run-1"} 4e+11' in recorder.metrics.text()


def test_what_is_known_of_kernels_outlives_a_restart(recorder, tmp_path):
    recorder.packet(packet(100, seeds=[status(GOOD, "bottleneck 4")]), "p", at(0))
    recorder.packet(packet(101, seeds=[status(GOOD, "another title")]), "p", at(0))
    again = Recorder(tmp_path / "state", Metrics())
    assert (again.kernels[GOOD].title, len(again.kernels)) == ("bottleneck 4", 1)
    again.close()


def test_kernels_are_counted_and_audited(recorder):
    ready = KernelReady(artifact_id=GOOD, blueprint_id="c" * 64, interface=Interface())
    recorder.kernel_ready(ready)
    recorder.kernel_ready(KernelReady(blueprint_id="c" * 64, interface=Interface()))
    promoted = KernelCharacterized(artifact_id=GOOD, blueprint_id="c" * 64, interface=Interface(), promoted=True)
    recorder.kernel_characterized(promoted, "e1", at(1))
    recorder.kernel_characterized(KernelCharacterized(artifact_id="b" * 64), "e2", at(2))
    assert [entry.action for entry in recorder.audit.list()] == ["kernel.promoted", "kernel.rejected"]
    text = recorder.metrics.text()
    for event in ("ready", "failed", "promoted", "rejected"):
        assert f'esper_kernels_total{{event="{event}"}} 1.0' in text


def test_an_outcome_is_the_deed_of_whoever_sent_the_command(recorder):
    manual = control_pb2.ControlCommand(
        command_id="m1", run_id=RUN, issuer="operator", reason="because", cull=control_pb2.Cull(seed=seed())
    )
    recorder.command(manual, "e1", at(1))
    record_all(recorder, recorded())
    for command_id in ("m1", "nobody-knows"):
        outcome = control_pb2.CommandOutcome(command_id=command_id, step=5, applied=True)
        recorder.record(pb.RunEvent(run_id=RUN, outcome=outcome), command_id)
    applied = [e.actor for e in recorder.audit.list() if e.action == "command.applied"]
    assert applied == ["tamiyo", "operator", "unknown"]


def test_after_a_restart_everything_goes_on_where_it_was(tmp_path, run_directory):
    events = recorded(str(run_directory))
    for cut in (1, 7, 20, len(events)):
        recorder = Recorder(tmp_path / "state", Metrics())
        record_all(recorder, events[:cut])
        recorder.close()
    recorder = Recorder(tmp_path / "state", Metrics())
    recorder.recover()
    assert len(lines(run_directory)) == len(events)
    assert recorder.audit.verify().intact
    assert len(recorder.audit.list()) == 8
    assert recorder.run(RUN).counts.transitions.total() == 14
    assert 'esper_verdicts_total{run="run-1",verdict="kept"} 1.0' in recorder.metrics.text()
    recorder.close()


def test_a_directory_that_cannot_be_written_stops_nothing_and_is_caught_up_with(recorder, run_directory):
    run_directory.parent.mkdir()
    run_directory.write_text("a file in the way")
    events = recorded(str(run_directory))
    record_all(recorder, events[:10])
    assert "cannot be written" in recorder.failures()[RUN]
    assert 'esper_nissa_failed_writes_total{file="events.jsonl"}' in recorder.metrics.text()
    assert recorder.run(RUN).log.last_position == 10
    run_directory.unlink()
    recorder.record(events[10], "envelope-10")
    assert recorder.failures() == {}
    assert len(lines(run_directory)) == 11


def test_a_full_disk_refuses_the_event_and_the_same_call_again_goes_on(recorder, run_directory, monkeypatch):
    events = recorded(str(run_directory))
    record_all(recorder, events[:4])
    append = recorder.audit.append
    monkeypatch.setattr(recorder.audit, "append", lambda *_: (_ for _ in ()).throw(Exhausted("disk")))
    with pytest.raises(Exhausted):
        recorder.record(events[4], "envelope-4")  # a decision, which is audited
    monkeypatch.setattr(recorder.audit, "append", append)
    assert recorder.record(events[4], "envelope-4") == 5
    assert [e.action for e in recorder.audit.list()] == ["run.begun", "decision.add_seed"]
    assert recorder.run(RUN).counts.decisions["ADD_SEED"] == 1
    assert len(lines(run_directory)) == 5


def test_a_run_nobody_heard_of_is_not_found_and_leaves_no_file(recorder, tmp_path):
    with pytest.raises(NotFound, match="nothing was heard of a run 'run-9'"):
        recorder.run("run-9")
    assert recorder.run_ids() == []


def test_many_runs_share_few_open_files(tmp_path, monkeypatch):
    recorder = Recorder(tmp_path, Metrics(), max_open=3)
    for number in range(8):
        run_id = f"run-{number % 6}"
        recorder.record(pb.RunEvent(run_id=run_id, note={"level": "info", "text": str(number)}), str(number))
    assert len(recorder._books) == 3
    assert len(recorder.run_ids()) == 6
    assert [e.note.text for e in recorder.run("run-0").log.after(0)] == ["0", "6"]
    recorder.close()


async def test_a_run_that_is_watched_stays_open(tmp_path):
    recorder = Recorder(tmp_path, Metrics(), max_open=1)
    recorder.record(pb.RunEvent(run_id="a", note={"level": "info", "text": "1"}), "1")
    events = recorder.run("a").log.watch(0, lambda: None)
    assert (await anext(events)).position == 1
    recorder.record(pb.RunEvent(run_id="b", note={"level": "info", "text": "1"}), "1")
    recorder.record(pb.RunEvent(run_id="a", note={"level": "info", "text": "2"}), "2")
    assert (await anext(events)).position == 2
    await events.aclose()
    recorder.close()


def test_recovery_goes_past_a_damaged_log(recorder, tmp_path, run_directory):
    record_all(recorder, recorded(str(run_directory)))
    (tmp_path / "state" / "runs" / "run-0.sqlite").write_bytes(b"no database" * 100)
    recorder.close()
    again = Recorder(tmp_path / "state", Metrics())
    again.recover()
    assert again.run(RUN).log.last_position == len(recorded())
    again.close()


def test_a_report_is_due_once_the_run_is_over_and_whenever_something_is_added(recorder, run_directory, monkeypatch):
    monkeypatch.setattr(book, "write_report", lambda directory, record, kernels, pedigrees: _stub(directory, record))
    events = recorded(str(run_directory))
    goodbye = next(i for i, event in enumerate(events) if event.HasField("goodbye"))
    record_all(recorder, events[:goodbye])
    assert recorder.due() == []
    record_all(recorder, events[: goodbye + 1])
    (due,) = recorder.due()
    due.finish(due.whole(), "metrics")
    assert recorder.due() == []
    assert (run_directory / "metrics.prom").read_text() == "metrics"
    recorder.record(pb.RunEvent(run_id=RUN, queues=pb.Queues(nursery=1)), "queues")
    assert recorder.due() == []
    record_all(recorder, events)
    assert len(recorder.due()) == 1


def _stub(directory, record):
    path = directory / "report.html"
    path.write_text(f'<meta name="esper-position" content="{record.position}">')
    return path


def test_when_a_run_is_over(recorder, run_directory):
    events = recorded(str(run_directory))
    now = utc_now()
    record_all(recorder, events[:5])
    made = recorder.run(RUN)
    assert made.over_in_s(now, 60) is None
    goodbye = pb.RunEvent(run_id=RUN, goodbye={"step": 5, "completed": True})
    goodbye.time.FromDatetime(now)
    recorder.record(goodbye, "bye")
    assert made.over_in_s(now, 60) == pytest.approx(60)
    recorder.record(pb.RunEvent(run_id=RUN, summary=pb.RunSummary()), "sum")
    assert made.over_in_s(now, 60) == 0
    recorder.record(pb.RunEvent(run_id=RUN, hello=hello(directory=str(run_directory))), "resumed")
    assert made.over_in_s(now, 60) is None
    recorder.record(pb.RunEvent(run_id=RUN, goodbye={"step": 6, "error": "no"}), "failed")
    assert made.over_in_s(now, 60) == 0


def test_events_that_cannot_be_ones_are_refused_and_leave_nothing(recorder):
    with pytest.raises(InvalidRequest, match="says nothing"):
        recorder.record(pb.RunEvent(run_id=RUN), "x")
    with pytest.raises(InvalidRequest, match="does not match"):
        recorder.record(pb.RunEvent(run_id="../x", queues=pb.Queues()), "x")
    with pytest.raises(InvalidRequest, match="came in the name of run 'run-2'"):
        check_run(pb.RunEvent(run_id=RUN), "run-2")
    assert recorder.run_ids() == []
