"""Stage 7, monitoring: seeds are followed through their lives, and the whole run can be put back."""

import json

import pytest

from esper.api.kasmina.v1 import execution_pb2, execution_pb2_grpc
from esper.api.simic.v1 import replay_pb2, replay_pb2_grpc
from esper.tolaria.checkpoint import CheckpointStore
from tests.flow.staging import begin
from tests.runtime.processes import until


def lives(stage):
    """Each seed's states in order."""
    found = {}
    for event in stage.events("transition"):
        found.setdefault(event["seed"], []).append(event["to"])
    return found


def test_a_fossil_went_through_every_state(stage):
    way = ["GERMINATED", "LOADING", "TRAINING", "GRAFTING", "STABILIZATION", "EVALUATING", "FINE_TUNING", "FOSSILIZED"]
    fossil = stage.file("lineage.json")["fossils"][0]["seed"]
    assert lives(stage)[fossil][: len(way)] == way


def test_every_move_has_a_reason_and_a_step(stage):
    moves = stage.events("transition")
    assert moves and all(move["reason"] and move["step"] > 0 for move in moves)


async def test_the_seeds_of_a_run_can_be_listed(channel):
    stub = execution_pb2_grpc.ExecutionServiceStub(channel)
    seeds = (await stub.ListSeeds(execution_pb2.ListSeedsRequest(run_id="stages"))).seeds
    assert len(seeds) == 12
    assert all(0 <= seed.alpha <= 1 for seed in seeds)


async def test_gains_of_the_nursery_are_curves_not_points(channel):
    stub = replay_pb2_grpc.ReplayServiceStub(channel)
    request = replay_pb2.ListExperiencesRequest(filter=replay_pb2.Filter(run_id="stages"))
    tried = [e.report for e in (await stub.ListExperiences(request)).experiences if e.report.isolated_gains]
    assert tried
    for report in tried:
        assert len(report.isolated_gains) == len(report.isolated_steps) >= 2
        assert list(report.isolated_steps) == sorted(report.isolated_steps)


def test_a_checkpoint_puts_a_run_back_to_its_step(stage, tmp_path):
    first = begin(stage, tmp_path, run_id="monitored")
    first.train(30)
    first.session.checkpoint()
    step = first.session.steps_done
    store = CheckpointStore(tmp_path / "checkpoints")
    until(lambda: store.folders(), what="a checkpoint")
    first.train(7)
    weight = first.parts.model.conv1.weight.detach().clone()
    first.session.close()
    again = begin(stage, tmp_path, run_id="monitored", resume=True)
    assert again.session.steps_done == step == store.latest()[0].step
    again.train(7)
    assert again.parts.model.conv1.weight.equal(weight)
    again.close()


def test_a_damaged_checkpoint_is_passed_over_and_said_so(stage, tmp_path):
    first = begin(stage, tmp_path, run_id="damaged")
    store = CheckpointStore(tmp_path / "checkpoints")
    for count in (1, 2):
        first.train(10)
        first.session.checkpoint()
        until(lambda count=count: len(store.folders()) == count, what="a checkpoint")
    first.session.close()
    newest = store.folders()[0]
    (newest / "manifest.json").write_text("{}")
    again = begin(stage, tmp_path, run_id="damaged", resume=True)
    assert again.session.steps_done == 10
    again.close()
    until(lambda: notes_of(tmp_path), what="the warning")
    (said,) = notes_of(tmp_path)
    assert newest.name in said
    assert said.endswith("trying the next older checkpoint")


def notes_of(directory):
    """Warnings among a run's events."""
    events = [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]
    return [e["text"] for e in events if e["kind"] == "note" and e["level"] == "warning"]


@pytest.mark.parametrize(
    "name", ["report.html", "lineage.json", "events.jsonl", "metrics.prom", "model.py", "model.pt"]
)
def test_a_run_leaves_its_files(stage, name):
    assert (stage.run / name).stat().st_size > 0
