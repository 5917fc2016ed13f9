"""What enters the audit trail, and how it is put: who did what to which run. Pure."""

from collections.abc import Mapping

from google.protobuf.timestamp_pb2 import Timestamp

from esper.api.kasmina.v1 import control_pb2
from esper.api.nissa.v1 import observability_pb2 as pb
from esper.api.tamiyo.v1 import controller_pb2
from esper.api.tolaria.v1 import trainer_pb2
from esper.api.urabrask.v1 import evaluation_pb2
from esper.nissa.chain import canonical_json
from esper.nissa.codec import control_name, decision_name, seed_name

# Its commands are part of its decisions, which are entries themselves.
CONTROLLER = "tamiyo"


def entry_of_event(event: pb.RunEvent, issuer: str) -> pb.AuditEntry | None:
    """The entry for an event; None for one that changes nothing. `issuer`: of the command an outcome is about."""
    if event.HasField("hello"):
        return _entry(event, "trainer", "run.begun", _begun(event.hello))
    if event.HasField("goodbye"):
        said = event.goodbye
        action = "run.stopped" if said.stopped else "run.ended" if said.completed else "run.failed"
        return _entry(event, "trainer", action, {"step": said.step, "error": said.error})
    if event.HasField("outcome"):
        outcome = event.outcome
        action = "command.applied" if outcome.applied else "command.refused"
        detail = {"command_id": outcome.command_id, "step": outcome.step, "detail": outcome.detail}
        return _entry(event, issuer or "unknown", action, detail)
    if event.HasField("rollback"):
        rollback = event.rollback
        detail = {
            "step": rollback.step,
            "restored_step": rollback.restored_step,
            "reason": rollback.reason,
            "locked_seeds": list(rollback.locked_seeds),
        }
        return _entry(event, "tolaria", "run.rolled_back", detail)
    if event.HasField("decision") and event.decision.kind != controller_pb2.DECISION_KIND_NONE:
        action = f"decision.{decision_name(event.decision.kind).lower()}"
        return _entry(event, CONTROLLER, action, _decided(event.decision))
    return None


def entry_of_command(command: control_pb2.ControlCommand, time: Timestamp) -> pb.AuditEntry | None:
    """The entry for a command that was sent; None for the controller's own."""
    if command.issuer == CONTROLLER:
        return None
    detail = {
        "command_id": command.command_id,
        "command": command.WhichOneof("action"),
        "seeds": _seeds(command),
        "reason": command.reason,
        "decision_id": command.decision_id,
    }
    return pb.AuditEntry(
        time=time,
        actor=command.issuer,
        action="command.sent",
        run_id=command.run_id,
        detail_json=canonical_json(detail),
    )


def entry_of_kernel(message: evaluation_pb2.KernelCharacterized, time: Timestamp) -> pb.AuditEntry:
    """The entry for a promotion or a rejection; it belongs to no run."""
    detail = {
        "artifact_id": message.artifact_id,
        "blueprint_id": message.blueprint_id,
        "report_name": message.report_name,
        "tags": list(message.tags),
    }
    action = "kernel.promoted" if message.promoted else "kernel.rejected"
    return pb.AuditEntry(time=time, actor="urabrask", action=action, detail_json=canonical_json(detail))


def _entry(event: pb.RunEvent, actor: str, action: str, detail: Mapping[str, object]) -> pb.AuditEntry:
    return pb.AuditEntry(
        time=event.time, actor=actor, action=action, run_id=event.run_id, detail_json=canonical_json(detail)
    )


def _begun(hello: trainer_pb2.Hello) -> dict[str, object]:
    return {
        "task": hello.task_name,
        "policy": hello.settings.policy,
        "random_seed": hello.random_seed,
        "total_steps": hello.total_steps,
        "directory": hello.directory,
        "session": hello.session,
        "deterministic": hello.deterministic,
        "versions": dict(hello.versions),
    }


def _decided(decision: controller_pb2.Decision) -> dict[str, object]:
    detail: dict[str, object] = {
        "decision_id": decision.decision_id,
        "step": decision.step,
        "reason": decision.reason,
        "policy": decision.policy,
        "commands": [command.command_id for command in decision.plan.commands],
        "seeds": [seed for command in decision.plan.commands for seed in _seeds(command)],
    }
    if decision.HasField("verdict"):
        verdict = decision.verdict
        detail["verdict"] = {
            "seed": seed_name(verdict.seed),
            "keep": verdict.keep,
            "gain": verdict.gain,
            "standard_error": verdict.standard_error,
            "control": control_name(verdict.control),
            "round": verdict.round,
        }
    return detail


def _seeds(command: control_pb2.ControlCommand) -> list[str]:
    """The seeds a command names."""
    action = getattr(command, command.WhichOneof("action") or "pause")
    if isinstance(action, control_pb2.Germinate):
        return [seed_name(assignment.seed) for assignment in action.assignments]
    if isinstance(action, control_pb2.Probe):
        return [seed_name(seed) for seed in action.seeds]
    return [seed_name(action.seed)] if "seed" in action.DESCRIPTOR.fields_by_name else []
