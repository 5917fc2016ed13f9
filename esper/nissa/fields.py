"""The fields of an event, flat and by name, as events.jsonl has them. Pure.

A transition's are fixed: kind, seed, from, to, step, reason, time.
"""

from collections.abc import Callable
from typing import Any

from esper.api.common.v1 import seed_pb2
from esper.api.kasmina.v1 import control_pb2
from esper.api.nissa.v1 import observability_pb2 as pb
from esper.api.tamiyo.v1 import controller_pb2
from esper.api.tolaria.v1 import state_pb2, trainer_pb2
from esper.nissa.codec import (
    control_name,
    decision_name,
    finite,
    kind_of,
    optional,
    seed_name,
    single,
    source_of,
    state_name,
    step_of,
    time_text,
)

Fields = dict[str, Any]


def fields_of(event: pb.RunEvent) -> Fields:
    """Kind, then what the kind has, then time. Raises InvalidRequest for an event that says nothing."""
    kind = kind_of(event)
    fields = _WRITE[kind](getattr(event, kind))
    return {"kind": kind, **fields, "step": step_of(event), "time": time_text(event)}


def _transition(said: seed_pb2.SeedTransition) -> Fields:
    return {
        "seed": seed_name(said.seed),
        "from": state_name(source_of(said)),
        "to": state_name(said.to),
        "step": said.step,
        "reason": said.reason,
    }


def _decision(said: controller_pb2.Decision) -> Fields:
    fields: Fields = {
        "decision_id": said.decision_id,
        "decision": decision_name(said.kind),
        "reason": said.reason,
        "confidence": finite(said.confidence),
        "urgency": finite(said.urgency),
        "policy": said.policy,
        "sequence": said.sequence,
        "candidates": [candidate_fields(candidate) for candidate in said.candidates],
        "commands": [command.command_id for command in said.plan.commands],
    }
    if said.HasField("verdict"):
        fields["verdict"] = verdict_fields(said.verdict)
    if said.plan.steps:
        fields["plan"] = {
            "steps": list(said.plan.steps),
            "preconditions": list(said.plan.preconditions),
            "parameters": said.plan.cost.parameters,
            "flops": finite(said.plan.cost.flops),
            "cooldown_steps": said.plan.cooldown_steps,
            "undo": said.plan.undo,
        }
    return fields


def candidate_fields(said: controller_pb2.Candidate) -> Fields:
    """One candidate; estimates that the policy does not have are absent."""
    fields: Fields = {
        "seed": seed_name(said.seed),
        "artifact_id": said.artifact_id,
        "title": said.title,
        "chosen": said.chosen,
        "reason": said.reason,
    }
    for name in ("expected_reward", "exploration_bonus", "isolated_gain"):
        if said.HasField(name):
            fields[name] = optional(said, name)
    return fields


def verdict_fields(said: controller_pb2.Verdict) -> Fields:
    """One verdict with what it rests on."""
    return {
        "seed": seed_name(said.seed),
        "keep": said.keep,
        "gain": finite(said.gain),
        "standard_error": finite(said.standard_error),
        "control": control_name(said.control),
        "pairs": said.measurement.pairs,
        "mean": finite(said.measurement.mean),
        "control_mean": finite(said.measurement.control_mean),
        "false_keep_rate": finite(said.false_keep_rate),
        "confounded": said.confounded,
        "round": said.round,
        "reason": said.reason,
    }


def _progress(said: trainer_pb2.Progress) -> Fields:
    return {
        "train_loss": finite(said.train_loss),
        "step_us_p50": finite(said.step_us_p50),
        "stalled_steps": said.stalled_steps,
        "parameters": said.parameters,
        "alphas": {seed: single(alpha) for seed, alpha in sorted(said.alphas.items())},
        "first_loss_step": said.first_loss_step,
        "loss_every_steps": said.loss_every_steps,
        "losses": [single(loss) for loss in said.losses],
    }


def _outcome(said: control_pb2.CommandOutcome) -> Fields:
    return {"command_id": said.command_id, "applied": said.applied, "detail": said.detail}


def _rollback(said: state_pb2.Rollback) -> Fields:
    return {"restored_step": said.restored_step, "reason": said.reason, "locked_seeds": list(said.locked_seeds)}


def _validation(said: pb.Validation) -> Fields:
    fields: Fields = {"arm": said.arm, "loss": finite(said.loss)}
    if said.HasField("score"):
        fields["score"] = optional(said, "score")
    return fields


def _queues(said: pb.Queues) -> Fields:
    return {"compiling": said.compiling, "evaluating": said.evaluating, "nursery": said.nursery}


def _field_report(said: controller_pb2.FieldReport) -> Fields:
    fields: Fields = {
        "report_id": said.report_id,
        "seed": seed_name(said.seed),
        "outcome": state_name(said.outcome),
        "task": said.task_name,
        "title": said.title,
        "family": said.family,
        "artifact_id": said.artifact_id,
        "layer_kind": said.layer_kind,
        "germinated_step": said.germinated_step,
        "end_step": said.end_step,
        "parameters": said.parameter_count,
        "confounded": said.confounded,
        "policy": said.policy,
        "reason": said.reason,
    }
    if said.HasField("isolated_gain"):
        fields["isolated_gain"] = optional(said, "isolated_gain")
    if said.HasField("gain"):
        fields["gain"] = optional(said, "gain")
        fields["standard_error"] = finite(said.standard_error)
        fields["control"] = control_name(said.control)
    return fields


def _note(said: trainer_pb2.Note) -> Fields:
    return {"level": said.level, "source": said.source, "text": said.text}


def _hello(said: trainer_pb2.Hello) -> Fields:
    settings = {field.name: getattr(said.settings, field.name) for field in said.settings.DESCRIPTOR.fields}
    settings = {name: finite(value) if isinstance(value, float) else value for name, value in settings.items()}
    return {
        "run_id": said.run_id,
        "task": said.task_name,
        "policy": said.settings.policy,
        "random_seed": said.random_seed,
        "total_steps": said.total_steps,
        "directory": said.directory,
        "session": said.session,
        "deterministic": said.deterministic,
        "sites": [{"name": s.name, "layer_kind": s.layer_kind, "slots": s.slots} for s in said.sites],
        "versions": dict(sorted(said.versions.items())),
        "settings": settings,
    }


def _goodbye(said: trainer_pb2.Goodbye) -> Fields:
    stopped = {"stopped": True} if said.stopped else {}  # so that files of earlier releases still agree with their log
    return {"completed": said.completed, **stopped, "error": said.error}


def _summary(said: pb.RunSummary) -> Fields:
    return {
        "arms": [_arm(arm) for arm in said.arms],
        "train_flops": finite(said.train_flops),
        "nursery_flops": finite(said.nursery_flops),
        "stalled_steps": said.stalled_steps,
        "fossilised": said.fossilised,
        "culled": said.culled,
    }


def _arm(said: pb.ArmSummary) -> Fields:
    fields: Fields = {"arm": said.arm, "test_loss": finite(said.test_loss)}
    if said.HasField("test_score"):
        fields["test_score"] = optional(said, "test_score")
    return fields | {
        "parameters": said.parameters,
        "total_flops": finite(said.total_flops),
        "best_step": said.best_step,
    }


_WRITE: dict[str, Callable[[Any], Fields]] = {
    "transition": _transition,
    "decision": _decision,
    "progress": _progress,
    "outcome": _outcome,
    "rollback": _rollback,
    "validation": _validation,
    "queues": _queues,
    "field_report": _field_report,
    "note": _note,
    "hello": _hello,
    "goodbye": _goodbye,
    "summary": _summary,
}
