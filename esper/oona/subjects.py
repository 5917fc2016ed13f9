"""The only place where a subject's name is spelled; what each carries and how safely it is kept.

A subject is `<prefix>.<name>.<run>[.<rank>]`. A run id may hold dots, which separate
tokens: they travel as `~`, which a run id cannot hold, so that run "a.1" and rank 1 of
run "a" stay apart. Events of no run have `_` there.
"""

import enum
import re
from dataclasses import dataclass

from google.protobuf.message import Message

from esper import errors
from esper.api.kasmina.v1 import control_pb2, telemetry_pb2
from esper.api.nissa.v1 import observability_pb2
from esper.api.tamiyo.v1 import controller_pb2
from esper.api.tezzeret.v1 import forge_pb2
from esper.api.tolaria.v1 import state_pb2, trainer_pb2
from esper.api.urabrask.v1 import evaluation_pb2

PREFIX = "esper"
NO_RUN = "_"
_RUN = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_PREFIX = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


class Name(enum.StrEnum):
    """The ten subject names."""

    SEED_HEALTH = "telemetry.seed.health"
    LAYER_PERFORMANCE = "telemetry.layer.performance"
    MODEL_METRICS = "telemetry.model.metrics"
    COMMANDS = "control.kasmina.commands"
    FIELD_REPORTS = "innovation.field_reports"
    BLUEPRINT_SUBMITTED = "compilation.blueprint.submitted"
    KERNEL_READY = "compilation.kernel.ready"
    KERNEL_CHARACTERIZED = "validation.kernel.characterized"
    EPOCH = "system.events.epoch"
    ADAPTATION_PROPOSAL = "coordination.adaptation.proposal"


class Durability(enum.Enum):
    """What is done for an envelope that cannot be sent now."""

    # The publisher waits, and is refused when too many wait. Nothing is dropped.
    COMMAND = "command"
    # Kept in a bounded buffer; the oldest is dropped, and counted, when it is full.
    TELEMETRY = "telemetry"


@dataclass(frozen=True, slots=True)
class Subject:
    """One name: the messages it carries, the stream that keeps it, how safely.

    `batched`: its bus messages are EnvelopeBatch, also when they hold one envelope.
    """

    name: Name
    payloads: tuple[type[Message], ...]
    stream: str
    durability: Durability

    @property
    def batched(self) -> bool:
        return self.durability is Durability.TELEMETRY


_COMMAND, _TELEMETRY = Durability.COMMAND, Durability.TELEMETRY

SUBJECTS: dict[str, Subject] = {
    subject.name: subject
    for subject in (
        Subject(Name.SEED_HEALTH, (telemetry_pb2.HealthBatch,), "telemetry", _TELEMETRY),
        Subject(Name.LAYER_PERFORMANCE, (telemetry_pb2.LayerPerformance,), "telemetry", _TELEMETRY),
        Subject(Name.MODEL_METRICS, (trainer_pb2.Progress,), "telemetry", _TELEMETRY),
        Subject(Name.COMMANDS, (control_pb2.ControlCommand, trainer_pb2.DecisionReply), "control", _COMMAND),
        Subject(Name.FIELD_REPORTS, (controller_pb2.FieldReport,), "innovation", _COMMAND),
        Subject(Name.BLUEPRINT_SUBMITTED, (forge_pb2.BlueprintSubmitted,), "compilation", _COMMAND),
        Subject(Name.KERNEL_READY, (forge_pb2.KernelReady,), "compilation", _COMMAND),
        Subject(Name.KERNEL_CHARACTERIZED, (evaluation_pb2.KernelCharacterized,), "validation", _COMMAND),
        Subject(Name.EPOCH, (state_pb2.SystemStatePacket, observability_pb2.RunEvent), "system", _COMMAND),
        Subject(Name.ADAPTATION_PROPOSAL, (controller_pb2.AdaptationProposal,), "coordination", _COMMAND),
    )
}

PAYLOADS: dict[str, type[Message]] = {
    payload.DESCRIPTOR.full_name: payload for subject in SUBJECTS.values() for payload in subject.payloads
}


def find(name: str) -> Subject:
    """The subject called `name`. Raises InvalidRequest, listing the names there are."""
    if (subject := SUBJECTS.get(name)) is None:
        raise errors.InvalidRequest(
            f"{name!r} is not a bus subject; there are: {', '.join(SUBJECTS)}", {"name": "not a bus subject"}
        )
    return subject


def name_for(payload_type: str) -> Name:
    """The name that carries messages called `payload_type`; each is carried by one."""
    for subject in SUBJECTS.values():
        if any(payload.DESCRIPTOR.full_name == payload_type for payload in subject.payloads):
            return subject.name
    raise errors.InvalidRequest(f"no bus subject carries {payload_type!r}; there are: {', '.join(PAYLOADS)}")


def check_prefix(prefix: str) -> str:
    """`prefix`, if it may stand at the head of subjects and stream names."""
    if not _PREFIX.fullmatch(prefix):
        raise errors.InvalidConfig(f"bus prefix {prefix!r} does not match {_PREFIX.pattern}; e.g. {PREFIX!r}")
    return prefix


def check_run_id(run_id: str) -> str:
    """`run_id`, if it is one. Raises InvalidRequest."""
    if not _RUN.fullmatch(run_id):
        raise errors.InvalidRequest(
            f"run id {run_id!r} does not match {_RUN.pattern}", {"run_id": f"must match {_RUN.pattern}"}
        )
    return run_id


def run_token(run_id: str) -> str:
    """The token of a subject that stands for `run_id`; "" is no run."""
    return check_run_id(run_id).replace(".", "~") if run_id else NO_RUN


def build(prefix: str, name: str, run_id: str, rank: int | None = None) -> str:
    """The subject of one envelope."""
    if rank is not None and not 0 <= rank < 1 << 20:
        raise errors.InvalidRequest(f"rank {rank} of run {run_id!r} is not in 0 to 1,048,575")
    head = f"{prefix}.{find(name).name}.{run_token(run_id)}"
    return head if rank is None else f"{head}.{rank}"


def filters(prefix: str, name: str, run_id: str | None) -> list[str]:
    """Broker filters for `name`: of one run, with and without ranks ("" is no run); of all, where it is None."""
    subject = find(name)
    if run_id is None:
        return [f"{prefix}.{subject.name}.>"]
    head = build(prefix, name, run_id)
    return [head, f"{head}.*"]


@dataclass(frozen=True, slots=True)
class Parsed:
    """A subject taken apart. `run_id` "" is no run."""

    name: Name
    run_id: str
    rank: int | None


def parse(prefix: str, subject: str) -> Parsed:
    """The parts of `subject`. Raises InvalidRequest for one that `build` does not make."""
    for name in Name:
        head = f"{prefix}.{name}."
        if subject.startswith(head):
            token, _, rank = subject.removeprefix(head).partition(".")
            run_id = "" if token == NO_RUN else token.replace("~", ".")
            if not rank or rank.isdecimal():
                parsed = Parsed(name, run_id, int(rank) if rank else None)
                if subject == build(prefix, name, run_id, parsed.rank):
                    return parsed
    raise errors.InvalidRequest(f"{subject!r} is not a subject below {prefix!r}")


def payload_class(name: str, payload_type: str) -> type[Message]:
    """The message class called `payload_type`, if `name` carries it. Raises InvalidRequest naming both."""
    subject = find(name)
    for payload in subject.payloads:
        if payload.DESCRIPTOR.full_name == payload_type:
            return payload
    known = "another subject carries it" if payload_type in PAYLOADS else "no subject carries it"
    carried = " or ".join(payload.DESCRIPTOR.full_name for payload in subject.payloads)
    raise errors.InvalidRequest(
        f"{name} does not carry {payload_type!r} ({known}); it carries {carried}",
        {"payload_type": f"{name} carries {carried}"},
    )
