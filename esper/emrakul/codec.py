"""Emrakul's messages <-> what its decisions read."""

from collections.abc import Iterable

from google.protobuf.timestamp_pb2 import Timestamp

from esper.api.common.v1 import seed_pb2, training_pb2
from esper.api.emrakul.v1 import sculptor_pb2 as pb
from esper.api.kasmina.v1 import control_pb2, nursery_pb2
from esper.api.tolaria.v1 import state_pb2
from esper.emrakul.sculptor import Finding, Fossil, Probed
from esper.errors import InvalidRequest
from esper.stats.paired import Paired

MAX_PROBED = 256  # fossils in one probe, the most a command carries
_MAX_REASON = 2048  # characters of a command's reason
_ON_TRIAL = frozenset(range(seed_pb2.SEED_STATE_GERMINATED, seed_pb2.SEED_STATE_FOSSILIZED))


def read_fossils(msg: state_pb2.SystemStatePacket) -> list[Fossil]:
    return [
        Fossil(seed.seed.site, seed.seed.slot, seed.state_step, seed.folded)
        for seed in msg.seeds
        if seed.state == seed_pb2.SEED_STATE_FOSSILIZED
    ]


def what_hinders(msg: state_pb2.SystemStatePacket) -> str:
    """Why nothing may be probed or removed at this decision point; empty where it may."""
    if msg.final:
        return "training is over"
    if msg.paused:
        return "changes are paused by an operator"
    if any(seed.state in _ON_TRIAL for seed in msg.seeds):
        return "a graft is on trial, and a removal would confound its verdict"
    return ""


def read_probes(results: Iterable[nursery_pb2.JobResult]) -> list[Probed]:
    """Measurements labelled "probe:<id>:<site>/<slot>"; those that failed are left out.

    Raises InvalidRequest for a probe of nothing.
    """
    found = []
    for result in results:
        kind, _, rest = result.measure.label.partition(":")
        if kind == "probe" and result.measure.HasField("paired"):
            probe_id, _, seed = rest.partition(":")
            site, _, slot = seed.rpartition("/")
            if not site or not slot.isdecimal():
                raise InvalidRequest(f"{result.measure.label!r} is no probe; one is labelled probe:<id>:<site>/<slot>")
            found.append(Probed(probe_id, site, int(slot), read_paired(result.measure.paired)))
    return found


def read_paired(msg: training_pb2.PairedMeasurement) -> Paired:
    return Paired(msg.pairs, msg.mean, msg.control_mean, msg.difference_standard_error)


def write_finding(finding: Finding, run_id: str, step: int, time: Timestamp) -> pb.ProbeFinding:
    paired = finding.probed.paired
    return pb.ProbeFinding(
        probe_id=finding.probed.probe_id,
        seed=seed_pb2.SeedRef(run_id=run_id, site=finding.probed.site, slot=finding.probed.slot),
        step=step,
        measurement=training_pb2.PairedMeasurement(
            pairs=paired.pairs,
            mean=paired.mean,
            control_mean=paired.control_mean,
            difference_standard_error=paired.standard_error,
        ),
        remove=finding.remove,
        reason=finding.reason,
        time=time,
    )


def probe_id(msg: state_pb2.SystemStatePacket) -> str:
    """Of a probe at this decision point. Sequences, unlike steps, never come again after a rollback."""
    return f"p{msg.sequence}"


def write_probe(fossils: Iterable[Fossil], msg: state_pb2.SystemStatePacket, reason: str) -> control_pb2.ControlCommand:
    """One command that probes these fossils, the first `MAX_PROBED` of them."""
    seeds = [seed_pb2.SeedRef(run_id=msg.run_id, site=f.site, slot=f.slot) for f in fossils]
    return control_pb2.ControlCommand(
        command_id=f"{msg.run_id}/probe/{msg.sequence}",
        run_id=msg.run_id,
        issuer="emrakul",
        reason=reason,
        probe=control_pb2.Probe(probe_id=probe_id(msg), seeds=seeds[:MAX_PROBED]),
    )


def write_removal(finding: Finding, msg: state_pb2.SystemStatePacket) -> control_pb2.ControlCommand:
    """The one removal of a decision point."""
    seed = seed_pb2.SeedRef(run_id=msg.run_id, site=finding.probed.site, slot=finding.probed.slot)
    return control_pb2.ControlCommand(
        command_id=f"{msg.run_id}/remove/{msg.sequence}",
        run_id=msg.run_id,
        issuer="emrakul",
        reason=finding.reason[:_MAX_REASON],
        remove=control_pb2.Remove(seed=seed),
    )
