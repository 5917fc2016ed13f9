"""Every kind of command: carried out, or refused with nothing changed."""

from dataclasses import replace

import pytest
import torch

from esper.api.common.v1 import seed_pb2, training_pb2
from esper.api.kasmina.v1 import control_pb2 as pb
from esper.kasmina.lifecycle import SeedId, State
from esper.tolaria.snapshot import capture
from tests.tolaria.quiet import ARTIFACT, everything, seed_in, session_of, train

S = State


@pytest.fixture
def session(tmp_path):
    made = session_of(tmp_path / "run")
    train(made, 3)
    yield made
    made.arrivals.journal.close()


def ref(slot=0, site="2"):
    return seed_pb2.SeedRef(run_id="quiet", site=site, slot=slot)


def give(session, **action):
    return session.commands.apply(pb.ControlCommand(command_id="c", issuer="test", reason="to see", **action))


def germinate(*slots, event="event", steps=20, artifact=ARTIFACT):
    assignments = [pb.Assignment(seed=ref(slot), artifact_id=artifact, title="mlp") for slot in slots]
    return pb.Germinate(event_id=event, assignments=assignments, nursery_steps=steps)


def refused(session, said, **action):
    before = everything(session)
    outcome = give(session, **action)
    assert not outcome.applied
    assert outcome.detail.startswith("refused: ")
    assert said in outcome.detail
    assert everything(session) == before


def table(session):
    return session.run.executor.table


def test_every_action_of_the_contract_has_its_method(session):
    for field in pb.ControlCommand.DESCRIPTOR.oneofs_by_name["action"].fields:
        assert callable(getattr(session.commands, f"_{field.name}"))


def test_a_command_without_an_action_is_refused(session):
    refused(session, "command c has no action")


def test_germinate(session):
    outcome = give(session, germinate=germinate(0, 1))
    assert (outcome.applied, outcome.step, outcome.detail) == (True, 3, "2 seeds germinated")
    assert [seed.state for seed in table(session)] == [S.LOADING, S.LOADING]
    assert session.run.line.loads == [(SeedId("2", 0), ARTIFACT), (SeedId("2", 1), ARTIFACT)]
    assert (session.run.events, session.run.loading) == (1, 2)


@pytest.mark.parametrize(
    ("slots", "event", "said"),
    [((0, 0), "event", "assigned more than once"), ((0, 7), "event", "no seed 2/7"), ((1,), "open", "has begun")],
)
def test_germinate_all_or_none(session, slots, event, said):
    session.adaptations.begin_event("open", [], 0)
    refused(session, said, germinate=germinate(*slots, event=event))


def test_germinate_a_seed_that_is_in_use(session):
    seed_in(session, S.TRAINING)
    refused(session, "is TRAINING and cannot become GERMINATED", germinate=germinate(1, 0))


def test_germinate_needs_a_task_that_a_nursery_can_make(tmp_path):
    session = session_of(tmp_path / "run", task=None)
    refused(session, "the nursery needs an importable task", germinate=germinate(0))
    assert give(session, germinate=germinate(0, steps=0)).applied  # nothing is tried then
    session.arrivals.journal.close()


def test_insert(session):
    seed = seed_in(session, S.TRAINING)
    outcome = give(session, insert=pb.Insert(seed=ref(), ramp_steps=5))
    assert outcome.detail == "2/0 inserted; alpha rises over 5 steps"
    assert table(session)[seed].state is S.GRAFTING
    assert session.run.insertions == 1
    (job,) = session.run.line.said("job")
    assert job.HasField("twin")
    assert seed in session.points.before


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (S.DORMANT, "is DORMANT and cannot become GRAFTING"),
        (S.LOADING, "once its kernel is verified"),
        (S.GRAFTING, "is GRAFTING and cannot become GRAFTING"),
        (S.FOSSILIZED, "is FOSSILIZED and cannot become GRAFTING"),
    ],
)
def test_insert_only_what_was_tried(session, state, said):
    seed_in(session, state)
    refused(session, said, insert=pb.Insert(seed=ref(), ramp_steps=5))


def test_insert_one_at_a_time(session):
    seed_in(session, S.STABILIZATION, slot=1)
    seed_in(session, S.TRAINING)
    refused(session, "at most 1 graft may be judged at a time", insert=pb.Insert(seed=ref(), ramp_steps=5))


def test_insert_warm_is_not_offered(session):
    seed_in(session, S.TRAINING)
    refused(session, "warm insertion is not offered", insert=pb.Insert(seed=ref(), warm=True))


def test_insert_without_its_kernel(session):
    seed_in(session, S.TRAINING)
    session.run.executor.kernels.clear()
    refused(session, "is not at hand; fetch it from the library first", insert=pb.Insert(seed=ref()))


def test_insert_where_the_spool_is_full(session):
    seed_in(session, S.TRAINING)
    session.run.spool.max_bytes = 10
    refused(session, "the nursery is behind", insert=pb.Insert(seed=ref()))


def test_advance(session):
    seed = seed_in(session, S.EVALUATING)
    assert give(session, advance=pb.Advance(seed=ref(), to=int(S.FINE_TUNING))).detail == "2/0 is FINE_TUNING"
    assert give(session, advance=pb.Advance(seed=ref(), to=int(S.FOSSILIZED))).detail == "2/0 is FOSSILIZED"
    assert table(session)[seed].state is S.FOSSILIZED


def test_advance_frozen(session):
    seed = seed_in(session, S.FINE_TUNING)
    give(session, advance=pb.Advance(seed=ref(), to=int(S.FOSSILIZED), freeze=True))
    assert table(session)[seed].frozen
    assert not any(p.requires_grad for p in session.run.executor.grafts[seed].parameters())


@pytest.mark.parametrize(
    ("state", "to", "said"),
    [
        (S.STABILIZATION, S.FINE_TUNING, "cannot become FINE_TUNING"),
        (S.EVALUATING, S.FOSSILIZED, "must be FINE_TUNING before it is a fossil"),
        (S.DORMANT, S.FOSSILIZED, "cannot become FOSSILIZED"),
        (S.TRAINING, S.GRAFTING, "changes the model"),
        (S.EVALUATING, S.CULLED, "changes the model"),
    ],
)
def test_advance_not_past_a_step(session, state, to, said):
    seed_in(session, state)
    refused(session, said, advance=pb.Advance(seed=ref(), to=int(to)))


def test_advance_to_nothing(session):
    seed_in(session, S.EVALUATING)
    refused(session, "seed state is 0", advance=pb.Advance(seed=ref()))


@pytest.mark.parametrize("state", [S.LOADING, S.TRAINING, S.GRAFTING, S.EVALUATING, S.FINE_TUNING])
def test_cull(session, state):
    names = list(session.run.parts.model.state_dict())
    seed = seed_in(session, state)
    assert give(session, cull=pb.Cull(seed=ref())).detail == "2/0 culled"
    assert table(session)[seed].state is S.CULLED
    assert list(session.run.parts.model.state_dict()) == names


@pytest.mark.parametrize("state", [S.DORMANT, S.CULLED, S.ROLLED_BACK])
def test_cull_what_is_not_there(session, state):
    seed_in(session, state)
    refused(session, "cannot become CULLED", cull=pb.Cull(seed=ref()))


def test_cull_and_go_on_from_the_twin(session):
    model, optimizer = session.run.parts.model, session.run.parts.optimizer
    seed = seed_in(session, S.TRAINING)
    give(session, insert=pb.Insert(seed=ref(), ramp_steps=2))
    adaptation = session.adaptations.grafts[seed]
    train(session, 2)
    twin = capture(session.run.parts, 3)  # any state of the host without the graft will do
    tensors = {n: t for n, t in twin.tensors.items() if "esper_" not in n}
    tensors = {n: t + 0.5 if t.is_floating_point() and n.startswith("model.") else t for n, t in tensors.items()}
    path = session.run.spool.folder / "twin.safetensors"
    replace(twin, step=4, tensors=tensors).save(path)
    adaptation.twin[4] = training_pb2.SnapshotReference(step=4, path=str(path))
    outcome = give(session, cull=pb.Cull(seed=ref(), return_to_twin=True))
    assert outcome.detail == "2/0 culled; went on from the twin of step 4, 1 steps back"
    assert all(torch.equal(value, tensors[f"model.{name}"]) for name, value in model.state_dict().items())
    assert len(optimizer.state) == len(list(model.parameters()))


def test_cull_where_no_twin_is_at_hand(session):
    seed = seed_in(session, S.EVALUATING)
    outcome = give(session, cull=pb.Cull(seed=ref(), return_to_twin=True))
    assert outcome.detail == "2/0 culled; the host goes on as it is"
    assert "no state of its twin is at hand" in table(session)[seed].reason


def test_cull_where_the_twins_file_is_gone(session):
    seed = seed_in(session, S.TRAINING)
    give(session, insert=pb.Insert(seed=ref(), ramp_steps=2))
    session.adaptations.grafts[seed].twin[3] = training_pb2.SnapshotReference(step=3, path="/gone.safetensors")
    refused(session, "no snapshot at /gone.safetensors", cull=pb.Cull(seed=ref(), return_to_twin=True))


@pytest.mark.parametrize("state", [S.LOADING, S.TRAINING])
def test_cancel(session, state):
    seed = seed_in(session, state)
    assert give(session, cancel=pb.Cancel(seed=ref())).detail == "2/0 cancelled"
    assert table(session)[seed].state is S.CANCELLED


@pytest.mark.parametrize("state", [S.DORMANT, S.GRAFTING, S.FOSSILIZED, S.CULLED])
def test_cancel_only_what_has_not_reached_the_host(session, state):
    seed_in(session, state)
    refused(session, "cannot become CANCELLED", cancel=pb.Cancel(seed=ref()))


def test_release(session):
    seed = seed_in(session, S.ROLLED_BACK)
    assert give(session, release=pb.Release(seed=ref())).detail == "2/0 released"
    assert table(session)[seed].state is S.DORMANT


def test_release_only_what_is_locked(session):
    seed_in(session, S.CULLED)
    refused(session, "is CULLED; only a ROLLED_BACK seed can be released", release=pb.Release(seed=ref()))


def test_remove_and_restore(session):
    seed = seed_in(session, S.FOSSILIZED)
    with_fossil = {n: t.clone() for n, t in session.run.parts.model.state_dict().items()}
    assert "undo puts it back" in give(session, remove=pb.Remove(seed=ref())).detail
    assert table(session)[seed].state is S.CULLED
    assert give(session, restore=pb.Restore(seed=ref())).detail == "fossil 2/0 is back"
    assert table(session)[seed].state is S.FOSSILIZED
    now = session.run.parts.model.state_dict()
    assert now.keys() == with_fossil.keys()
    assert all(torch.equal(now[name], with_fossil[name]) for name in now)


def test_remove_only_a_fossil(session):
    seed_in(session, S.FINE_TUNING)
    refused(session, "is FINE_TUNING, not a fossil; cull it instead", remove=pb.Remove(seed=ref()))


def test_remove_what_was_folded(session):
    seed_in(session, S.FOSSILIZED, title="affine")
    assert table(session)[SeedId("2", 0)].folded
    refused(session, "cannot be taken out again", remove=pb.Remove(seed=ref()))


def test_restore_what_was_not_removed(session):
    refused(session, "no fossil was removed at 2/0", restore=pb.Restore(seed=ref()))


def test_probe(session):
    seed_in(session, S.FOSSILIZED)
    assert give(session, probe=pb.Probe(probe_id="p", seeds=[ref()])).detail == "probe p of 1 fossils"
    (job,) = session.run.line.said("job")
    assert job.measure.label == "probe:p:2/0"
    assert job.measure.controls[0].off[0].slot == 0


@pytest.mark.parametrize(("state", "title"), [(S.FINE_TUNING, "bottleneck_mlp"), (S.FOSSILIZED, "affine")])
def test_probe_only_what_can_be_switched_off(session, state, title):
    seed_in(session, state, title=title)
    refused(session, "cannot be probed", probe=pb.Probe(probe_id="p", seeds=[ref()]))


def test_probe_without_a_task_leaves_no_file(tmp_path):
    session = session_of(tmp_path / "run", task=None)
    seed_in(session, S.FOSSILIZED)
    refused(session, "importable task", probe=pb.Probe(probe_id="p", seeds=[ref()]))
    assert not list(session.run.spool.folder.iterdir())
    session.arrivals.journal.close()


def test_pause_stops_growth_and_nothing_else(session):
    seed_in(session, S.TRAINING)
    assert give(session, pause=pb.Pause(paused=True)).detail == "growth paused"
    refused(session, "growth is paused", germinate=germinate(1))
    refused(session, "growth is paused", insert=pb.Insert(seed=ref()))
    assert give(session, cancel=pb.Cancel(seed=ref())).applied
    assert give(session, pause=pb.Pause(paused=False)).detail == "growth resumed"
    assert give(session, germinate=germinate(1)).applied


def test_checkpoint(session):
    assert give(session, checkpoint=pb.WriteCheckpoint()).applied
    session.decide()
    assert [c.manifest.step for c in session.run.line.said("checkpoint")] == [3]
    session.decide()
    assert len(session.run.line.said("checkpoint")) == 1


@pytest.mark.parametrize(
    "action",
    [
        {"insert": pb.Insert(seed=ref(site="nowhere"))},
        {"advance": pb.Advance(seed=ref(site="nowhere"), to=8)},
        {"cull": pb.Cull(seed=ref(site="nowhere"))},
        {"cancel": pb.Cancel(seed=ref(site="nowhere"))},
        {"release": pb.Release(seed=ref(site="nowhere"))},
        {"remove": pb.Remove(seed=ref(site="nowhere"))},
        {"restore": pb.Restore(seed=ref(site="nowhere"))},
        {"probe": pb.Probe(probe_id="p", seeds=[ref(site="nowhere")])},
    ],
    ids=lambda action: next(iter(action)),
)
def test_a_seed_that_does_not_exist_is_named(session, action):
    refused(session, "nowhere/0", **action)
