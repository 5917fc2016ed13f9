"""What `esper show` says of what a run kept."""

from pathlib import Path

import pytest

from esper.api.nissa.v1 import observability_pb2 as pb
from esper.nissa.jsonl import line_of
from esper.runtime.runs import StoredRun, describe, runs_table

KARN = {
    "title": "karn_1",
    "family": "gate",
    "author": "karn",
    "source": "add gelu; remove add",
    "parents": ["d" * 64, "e" * 64],
}
PARENT = {"title": "low_rank", "family": "mlp", "author": "library", "source": "Hu et al. 2021", "parents": []}
FOSSIL = {"seed": "fc1/0", "step": 5, "artifact_id": "a" * 64}


def said(fossil, blueprints):
    lineage = {"fossils": [FOSSIL | fossil]} | ({} if blueprints is None else {"blueprints": blueprints})
    run = StoredRun(Path("runs/one"), {"run_id": "one", "task": "digits"}, {}, lineage)
    (line,) = [line for line in describe(run).splitlines() if line.startswith("genealogy")]
    return line.removeprefix("genealogy   ")


def test_it_names_the_maker_the_parents_and_the_moves():
    line = said({"blueprint_id": "c" * 64, "title": "karn_1"}, {"c" * 64: KARN, "d" * 64: PARENT})
    assert line == f"karn_1: made by karn, of low_rank and {'e' * 12} (add gelu, then remove add)"


def test_a_template_has_its_paper_and_no_parents():
    line = said({"blueprint_id": "d" * 64, "title": "low_rank"}, {"d" * 64: PARENT})
    assert line == "low_rank: made by library (Hu et al. 2021)"


def test_a_run_recorded_without_a_genealogy_says_so():
    unknown = "what it descends from is not known"
    assert said({"blueprint_id": "c" * 64}, None) == f"{'c' * 12}: {unknown}"
    assert said({}, {}) == f"its blueprint is not known: {unknown}"


GRAFT = {
    "seed": {"runId": "one", "site": "conv2"},
    "artifactId": "a" * 64,
    "strategy": "GRAFT_STRATEGY_RESIDUAL",
    "state": "SEED_STATE_FOSSILIZED",
    "insertedStep": "5400",
    "alpha": 1.0,
}


def shown(folder, result):
    return describe(StoredRun(folder, {"run_id": "one", "task": "digits"}, result, {})).splitlines()


def test_a_graft_is_a_line(tmp_path):
    lines = shown(tmp_path, {"grafts": [GRAFT, GRAFT | {"folded": True, "seed": {"site": "fc", "slot": 2}}]})
    words = f"inserted at step 5400, FOSSILIZED RESIDUAL, alpha 1.0: kernel {'a' * 64}"
    assert f"graft       conv2/0 {words}" in lines
    assert f"graft       fc/2 {words.replace(':', ', folded into its layer:')}" in lines


def test_steps_of_a_run_that_stopped_short_are_beside_those_it_was_started_for(tmp_path):
    assert "steps       14262" in shown(tmp_path, {"steps": 14262})
    (tmp_path / "events.jsonl").write_text('{"kind": "hello", "total_steps": 40000}\n')
    assert "steps       14262 of 40000" in shown(tmp_path, {"steps": 14262})
    assert "steps       40000" in shown(tmp_path, {"steps": 40000})
    with (tmp_path / "events.jsonl").open("a") as events:
        events.write('{"kind": "hello", "total_steps": 50000}\n')
    assert "steps       40000 of 50000" in shown(tmp_path, {"steps": 40000})


def test_the_decisions_are_shown_with_their_reasons(tmp_path):
    event = '{"kind": "decision", "decision": "ADD_SEED", "reason": "it is time", "decision_id": "one/3/1", "step": 9}'
    (tmp_path / "events.jsonl").write_text(event + "\n")
    assert "decision    step 9: ADD_SEED: it is time (one/3/1)" in shown(tmp_path, {})


HELLO, STOPPED = pb.RunEvent(hello={"total_steps": 400}), pb.RunEvent(goodbye={"step": 120, "stopped": True})
NOTE = pb.RunEvent(note={"level": "info", "text": 'it said "goodbye"'})
COMPLETED = pb.RunEvent(goodbye={"step": 400, "completed": True})
FAILED = pb.RunEvent(goodbye={"step": 90, "error": "ValueError: no"})


def left(folder, *events, result=None, torn=""):
    (folder / "events.jsonl").write_text("".join(line_of(event) for event in events) + torn)
    return StoredRun(folder, {"run_id": "one", "task": "digits"}, result or {}, {})


def test_a_run_that_was_stopped_says_where_and_how_it_goes_on(tmp_path):
    run = left(tmp_path, HELLO, NOTE, STOPPED, NOTE, torn='{"kind": "hel')
    words = "stopped at step 120 of 400"
    assert f"result      none yet: {words}; go on: esper train --resume {tmp_path}" in describe(run).splitlines()
    assert runs_table([run]).splitlines()[1].endswith(f"  {words}")


@pytest.mark.parametrize(
    "events",
    [(), (HELLO,), (HELLO, STOPPED, HELLO), (HELLO, STOPPED, HELLO, COMPLETED), (HELLO, STOPPED, HELLO, FAILED)],
    ids=lambda events: " ".join(str(event.WhichOneof("event")) for event in events) or "nothing",
)
def test_a_run_that_went_on_or_was_never_stopped_is_not_stopped(tmp_path, events):
    run = left(tmp_path, *events)
    assert "stopped" not in describe(run) + runs_table([run])
    assert "result      none yet: it is under way, or it was ended" in describe(run)


def test_a_run_that_has_a_result_is_not_stopped(tmp_path):
    assert "stopped" not in describe(left(tmp_path, HELLO, STOPPED, result={"test_loss": 0.5, "steps": 400}))
