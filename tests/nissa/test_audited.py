"""Who did what to which run: what enters the trail, and what does not."""

import json

from esper.api.common.v1.interface_pb2 import Interface
from esper.api.kasmina.v1 import control_pb2
from esper.api.nissa.v1 import observability_pb2 as pb
from esper.api.urabrask.v1.evaluation_pb2 import KernelCharacterized
from esper.nissa.audited import entry_of_command, entry_of_event, entry_of_kernel

from .feed import recorded
from .scenario import GOOD, RUN, at, seed


def entries(issuer=""):
    found = [entry_of_event(event, issuer) for event in recorded("/runs/1")]
    return [(e.actor, e.action) for e in found if e is not None]


def test_of_the_scenario_enters_what_changes_something():
    assert entries("operator") == [
        ("trainer", "run.begun"),
        ("tamiyo", "decision.add_seed"),
        ("operator", "command.applied"),
        ("tamiyo", "decision.modify"),
        ("tolaria", "run.rolled_back"),
        ("tamiyo", "decision.remove_seed"),
        ("operator", "command.refused"),
        ("trainer", "run.ended"),
    ]


def test_a_command_nobody_is_known_to_have_sent_has_an_unknown_actor():
    event = pb.RunEvent(run_id=RUN, outcome=control_pb2.CommandOutcome(command_id="c", applied=True))
    assert entry_of_event(event, "").actor == "unknown"


def test_details_are_what_one_would_ask_for():
    found = {e.action: json.loads(e.detail_json) for e in (entry_of_event(x, "") for x in recorded("/runs/1")) if e}
    assert found["run.begun"]["directory"] == "/runs/1"
    assert found["run.begun"]["versions"] == {"esper": "0.1.0", "torch": "2.13.0"}
    assert found["decision.add_seed"]["seeds"] == ["fc1/0", "conv/0"]
    assert found["decision.add_seed"]["commands"] == ["run-1/200/0/0"]
    assert found["decision.modify"]["verdict"]["gain"] == 0.031
    assert found["run.rolled_back"]["restored_step"] == 505
    assert found["command.refused"]["detail"] == "fc1/0 is FOSSILIZED"


def test_a_run_that_failed_says_why():
    event = pb.RunEvent(run_id=RUN)
    event.goodbye.step, event.goodbye.error = 5, "ValueError: no"
    entry = entry_of_event(event, "")
    assert (entry.action, json.loads(entry.detail_json)["error"]) == ("run.failed", "ValueError: no")
    event.goodbye.error, event.goodbye.stopped = "", True
    entry = entry_of_event(event, "")
    assert (entry.action, json.loads(entry.detail_json)) == ("run.stopped", {"step": 5, "error": ""})


def command(issuer, **action):
    made = control_pb2.ControlCommand(command_id="m1", run_id=RUN, issuer=issuer, reason="because", **action)
    return entry_of_command(made, at(5))


def test_manual_commands_enter_when_they_are_sent_and_the_controllers_do_not():
    entry = command("operator", cull=control_pb2.Cull(seed=seed()))
    assert (entry.actor, entry.action, entry.run_id, entry.time) == ("operator", "command.sent", RUN, at(5))
    detail = json.loads(entry.detail_json)
    assert (detail["command"], detail["seeds"], detail["reason"]) == ("cull", ["fc1/0"], "because")
    assert command("tamiyo", cull=control_pb2.Cull(seed=seed())) is None


def test_commands_for_no_or_many_seeds_name_them_too():
    assert json.loads(command("operator", pause=control_pb2.Pause(paused=True)).detail_json)["seeds"] == []
    probe = control_pb2.Probe(probe_id="p", seeds=[seed(), seed("conv")])
    assert json.loads(command("emrakul", probe=probe).detail_json)["seeds"] == ["fc1/0", "conv/0"]


def test_promotions_and_rejections_belong_to_no_run():
    for promoted, action in ((True, "kernel.promoted"), (False, "kernel.rejected")):
        message = KernelCharacterized(
            artifact_id=GOOD, blueprint_id="c" * 64, interface=Interface(), promoted=promoted, report_name="reports/1"
        )
        entry = entry_of_kernel(message, at(1))
        assert (entry.actor, entry.action, entry.run_id) == ("urabrask", action, "")
        assert json.loads(entry.detail_json)["artifact_id"] == GOOD
