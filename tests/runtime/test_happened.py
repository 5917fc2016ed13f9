"""What happened in a run and why, out of its events.jsonl."""

import json

from esper.runtime.happened import MOST_LINES, happened_in, read_happened


def decision(step, kind="NONE", reason="too early"):
    return {"kind": "decision", "decision_id": f"r/{step}/1", "decision": kind, "reason": reason, "step": step}


def transition(step, source, target, reason="because"):
    return {"kind": "transition", "seed": "conv2/0", "from": source, "to": target, "step": step, "reason": reason}


def told(*events):
    return happened_in(events)


def test_a_decision_has_its_step_its_reason_and_the_id_that_explain_takes():
    (line,) = told(decision(2600, "ADD_SEED", "the cooldown is over"))
    assert line == "decision    step 2600: ADD_SEED: the cooldown is over (r/2600/1)"


def test_decisions_to_change_nothing_are_one_line_between_those_that_change_something():
    assert told(decision(200), decision(400, reason="wait"), decision(600, "MODIFY", "go"), decision(800)) == [
        "decision    steps 200 to 400: nothing, 2 times; the last: wait",
        "decision    step 600: MODIFY: go (r/600/1)",
        "decision    step 800: nothing: too early",
    ]
    assert told(decision(9), decision(9)) == ["decision    step 9: nothing, 2 times; the last: too early"]


def test_the_fates_of_seeds_are_told_and_the_states_in_between_are_not():
    lines = told(
        transition(1, "DORMANT", "GERMINATED"),
        transition(1, "GERMINATED", "LOADING"),
        transition(2, "TRAINING", "GRAFTING", "the best gain"),
        transition(3, "GRAFTING", "STABILIZATION"),
        transition(4, "EVALUATING", "CULLED", "gain +0.1%"),
    )
    assert lines == [
        "seed        step 2: conv2/0 TRAINING -> GRAFTING: the best gain",
        "seed        step 4: conv2/0 EVALUATING -> CULLED: gain +0.1%",
    ]


def test_rollbacks_notes_refused_commands_and_an_error_that_ended_it_are_told():
    lines = told(
        {"kind": "rollback", "step": 7, "restored_step": 5, "reason": "loss is nan", "locked_seeds": ["a/0"]},
        {"kind": "outcome", "step": 8, "command_id": "r/operator/1", "applied": False, "detail": "no such kernel"},
        {"kind": "outcome", "step": 8, "command_id": "r/operator/2", "applied": True, "detail": ""},
        {"kind": "note", "step": 9, "level": "warning", "text": "a job failed"},
        {"kind": "goodbye", "step": 9, "completed": False, "error": "NotFound: no snapshot"},
    )
    assert lines == [
        "rollback    step 7: back to step 5, seeds locked: a/0: loss is nan",
        "refused     step 8: command r/operator/1: no such kernel",
        "note        step 9: warning: a job failed",
        "ended       step 9: by an error: NotFound: no snapshot",
    ]
    assert told({"kind": "goodbye", "step": 9, "completed": True, "error": ""}) == []


def test_a_record_that_is_absent_or_damaged_is_named_and_a_line_being_written_is_not(tmp_path):
    assert read_happened(tmp_path) == ["decisions   none recorded: there is no events.jsonl"]
    good = json.dumps(decision(1)) + "\n"
    (tmp_path / "events.jsonl").write_text(good + "{\n[1]\n" + good + '{"kind": "dec')
    assert read_happened(tmp_path) == [
        "decision    step 1: nothing, 2 times; the last: too early",
        "events      2 lines of events.jsonl do not parse and are left out",
    ]


def test_of_a_long_run_the_latest_is_shown_and_what_is_left_out_is_counted(tmp_path):
    events = [decision(step, "MODIFY") for step in range(MOST_LINES + 5)]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    lines = read_happened(tmp_path)
    assert lines[0] == "decisions   5 earlier lines are left out; events.jsonl has them all"
    assert len(lines) == MOST_LINES + 1 and f"step {MOST_LINES + 4}:" in lines[-1]
