"""What a session must remember, besides tensors, to go on as if it had never stopped."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf import json_format
from google.protobuf.message import Message

from esper.api.common.v1 import seed_pb2, training_pb2
from esper.api.kasmina.v1 import control_pb2, nursery_pb2
from esper.api.tolaria.v1 import state_pb2, trainer_pb2
from esper.errors import PreconditionFailed
from esper.kasmina.codec import read_graft, read_seed, write_seed
from esper.kasmina.lifecycle import SeedId
from esper.tolaria.adaptation import Adaptation, Event, Round
from esper.tolaria.checkpoint import VERSION
from esper.tolaria.governor import LossWindow
from esper.tolaria.progress import Measured
from esper.tolaria.run import Outstanding, Run
from esper.tolaria.snapshot import Snapshot, check_host

if TYPE_CHECKING:
    from esper.tolaria.session import Session

_COUNTERS = (
    "step",
    "sequence",
    "jobs",
    "files",
    "checkpoint_files",
    "loading",
    "train_flops",
    "nursery_flops",
    "initial_parameters",
    "events",
    "insertions",
)


def write_manifest(session: Session, tensors: training_pb2.SnapshotReference) -> trainer_pb2.CheckpointManifest:
    """The manifest of a checkpoint whose tensors are in `tensors`."""
    run, arrivals = session.run, session.arrivals
    manifest = trainer_pb2.CheckpointManifest(
        version=VERSION,
        run_id=run.run_id,
        step=run.step,
        tensors=tensors,
        grafts=run.graft_messages(),
        seeds=[write_seed(seed, run.run_id) for seed in run.executor.table],
        scalars_json=json.dumps(_scalars(session), sort_keys=True),
        controller_state=arrivals.controller_state,
        journal_position=arrivals.journal.position,
        last_command_sequence=arrivals.last_command_sequence,
        decision_sequence=run.sequence,
    )
    manifest.time.GetCurrentTime()
    return manifest


def _scalars(session: Session) -> dict[str, Any]:
    run = session.run
    return {
        "counters": {name: getattr(run, name) for name in _COUNTERS},
        "outstanding": [
            {"job": _json(o.job), "due_step": o.due_step, "files": [str(f) for f in o.files]}
            for o in run.outstanding.values()
        ],
        "events": [
            {
                "event_id": e.event_id,
                "seeds": [[s.site, s.slot] for s in e.seeds],
                "nursery_steps": e.nursery_steps,
                "job_id": e.job_id,
            }
            for e in session.adaptations.events.values()
        ],
        "adaptations": [_write_adaptation(a) for a in session.adaptations.grafts.values()],
        "loss_mean": session.progress.mean,
        "late_loss": session.progress.late,
        "faults": [[s.site, s.slot, fault] for s, fault in _waiting_faults(session).items()],
        "window": asdict(session.governor.window),
        "last_reply": session.arrivals.last_reply,
        **session.aside.write(),
        "paused": session.commands.paused,
        "command_ids": list(session.arrivals.command_ids),
        "validated": session.validated,
        "latest_validation": session.validations.latest,
        "kept": [_write_measured(m) for m in session.validations.kept.values()],
        "results": [_json(r) for r in session.arrivals.results],
        "outcomes": [_json(o) for o in session.arrivals.outcomes],
        "rollbacks": [_json(r) for r in session.arrivals.rollbacks],
    }


def _waiting_faults(session: Session) -> dict[SeedId, str]:
    """Faults that are charged in the next step: those that the ranks' last vote found, or met since the last step."""
    if session.replicas is not None:
        return session.replicas.late_faults()
    return {seed: graft.fault for seed, graft in session.run.executor.grafts.items() if graft.fault}


def _restore_faults(session: Session, faults: dict[SeedId, str]) -> None:
    if session.replicas is not None:
        session.replicas.resume(faults)
        return
    for seed, fault in faults.items():
        session.run.executor.grafts[seed].fault = fault


def check_topology(run: Run, manifest: trainer_pb2.CheckpointManifest, snapshot: Snapshot) -> None:
    """Raise PreconditionFailed unless a checkpoint is of this run's host, optimiser and seeds. Changes nothing."""
    check_host(run.parts, snapshot)
    saved, present = {seed.id for seed in seeds_of(manifest)}, {seed.id for seed in run.executor.table}
    if saved != present:
        only_there, only_here = (sorted(map(str, ids)) for ids in (saved - present, present - saved))
        raise PreconditionFailed(
            f"the checkpoint of step {manifest.step} has seeds {only_there[:5]} that are not here, and lacks "
            f"{only_here[:5]}; give esper.wrap the target_layers and seeds_per_layer that the run was begun with"
        )


def restore_state(session: Session, manifest: trainer_pb2.CheckpointManifest) -> None:
    """Put everything but the run's own tensors back, after its grafts, whose kernels the caller knows."""
    values = json.loads(manifest.scalars_json)
    run, arrivals = session.run, session.arrivals
    for name, value in values["counters"].items():
        setattr(run, name, value)
    run.outstanding = {
        o["job"]["jobId"]: Outstanding(
            _message(o["job"], nursery_pb2.Job()), o["due_step"], [Path(f) for f in o["files"]]
        )
        for o in values["outstanding"]
    }
    session.adaptations.events = {
        e["event_id"]: Event(e["event_id"], [SeedId(*s) for s in e["seeds"]], e["nursery_steps"], e["job_id"])
        for e in values["events"]
    }
    adaptations = [_read_adaptation(a) for a in values["adaptations"]]
    session.adaptations.grafts = {a.seed: a for a in adaptations}
    session.progress.resume(values["loss_mean"], values["late_loss"])
    _restore_faults(session, {SeedId(site, slot): fault for site, slot, fault in values["faults"]})
    session.governor.window = LossWindow(**values["window"])
    aside = session.aside.restore(values)
    session.commands.paused = values["paused"]
    arrivals.command_ids.extend(values["command_ids"])
    asked_step, grafts = values["validated"]
    session.validated = asked_step, tuple(grafts)
    latest = values["latest_validation"]
    session.validations.latest = (latest[0], latest[1]) if latest else None
    kept = [_read_measured(m) for m in values["kept"]]
    session.validations.kept = {m.structure: m for m in kept}
    arrivals.results = [_message(r, nursery_pb2.JobResult()) for r in values["results"]]
    arrivals.outcomes = [_message(o, control_pb2.CommandOutcome()) for o in values["outcomes"]]
    arrivals.rollbacks = [_message(r, state_pb2.Rollback()) for r in values["rollbacks"]]
    held = [f for o in run.outstanding.values() for f in o.files]
    held += [f for a in adaptations for f in a.files()] + [m.path for m in kept] + aside
    run.spool.recount(held)
    arrivals.controller_state = manifest.controller_state
    arrivals.last_command_sequence, arrivals.last_reply = manifest.last_command_sequence, values["last_reply"]


def seeds_of(manifest: trainer_pb2.CheckpointManifest) -> list[Any]:
    """Seed records of a checkpoint."""
    return [read_seed(seed) for seed in manifest.seeds]


def specs_of(manifest: trainer_pb2.CheckpointManifest) -> list[Any]:
    """Grafts of a checkpoint, oldest first."""
    return [read_graft(graft) for graft in manifest.grafts]


def _write_adaptation(adaptation: Adaptation) -> dict[str, Any]:
    return {
        "seed": [adaptation.seed.site, adaptation.seed.slot],
        "inserted_step": adaptation.inserted_step,
        "twin_job": adaptation.twin_job,
        "host": [_json(g) for g in adaptation.host],
        "before": _json(adaptation.before),
        "twin": [_json(s) for s in adaptation.twin.values()],
        "rounds": [
            {
                "number": r.number,
                "steps": r.steps,
                "job_id": r.job_id,
                "arms": {str(s): _json(a) for s, a in r.arms.items()},
            }
            for r in adaptation.rounds
        ],
    }


def _read_adaptation(values: dict[str, Any]) -> Adaptation:
    rounds = [
        Round(
            r["number"], r["steps"], {int(s): _message(a, nursery_pb2.Arm()) for s, a in r["arms"].items()}, r["job_id"]
        )
        for r in values["rounds"]
    ]
    twin = [_message(s, training_pb2.SnapshotReference()) for s in values["twin"]]
    host = [_message(g, seed_pb2.Graft()) for g in values["host"]]
    before = _message(values["before"], training_pb2.SnapshotReference())
    seed, twins = SeedId(*values["seed"]), {s.step: s for s in twin}
    return Adaptation(seed, values["inserted_step"], rounds, values["twin_job"], host, before, twins)


def _write_measured(measured: Measured) -> dict[str, Any]:
    return {
        "step": measured.step,
        "loss": measured.loss,
        "path": str(measured.path),
        "grafts": [_json(g) for g in measured.grafts],
    }


def _read_measured(values: dict[str, Any]) -> Measured:
    grafts = tuple(_message(g, seed_pb2.Graft()) for g in values["grafts"])
    return Measured(values["step"], values["loss"], Path(values["path"]), grafts)


def _json(message: Message) -> dict[str, Any]:
    return json_format.MessageToDict(message)


def _message(values: dict[str, Any], message: Any) -> Any:
    return json_format.ParseDict(values, message)
