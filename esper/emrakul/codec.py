"""Emrakul's messages <-> what its decisions read."""

from collections.abc import Iterable

from google.protobuf.timestamp_pb2 import Timestamp

from esper.api.common.v1 import seed_pb2, training_pb2
from esper.api.emrakul.v1 import sculptor_pb2 as pb
from esper.api.kasmina.v1 import control_pb2, nursery_pb2
from esper.api.tolaria.v1 import state_pb2
from esper.emrakul.sculptor import Finding, Fossil, Probed
from esper.stats.paired import Paired

_ON_TRIAL = frozenset(range(seed_pb2.SEED_STATE_GERMINATED, seed_pb2.SEED_STATE_FOSSILIZED))


def read_fossils(msg: state_pb2.SystemStatePacket) -> list[Fossil]:
    return [
        Fossil(seed.seed.site, seed.seed.slot, seed.state_step, seed.folded)
        for seed in msg.seeds
        if seed.state == seed_pb2.SEED_STATE_FOSSILIZED
    ]


def is_busy(msg: state_pb2.SystemStatePacket) -> bool:
    """Whether any seed is between germination and its last verdict."""
    return any(seed.state in _ON_TRIAL for seed in msg.seeds)


def read_probes(results: Iterable[nursery_pb2.JobResult]) -> list[Probed]:
    """Measurements labelled "probe:<id>:<site>/<slot>"; those that failed are left out."""
    found = []
    for result in results:
        kind, _, rest = result.measure.label.partition(":")
        if kind == "probe" and result.measure.HasField("paired"):
            probe_id, _, seed = rest.partition(":")
            site, _, slot = seed.rpartition("/")
            m = result.measure.paired
            paired = Paired(m.pairs, m.mean, m.control_mean, m.difference_standard_error)
            found.append(Probed(probe_id, site, int(slot), paired))
    return found


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


def write_probe(fossils: Iterable[Fossil], run_id: str, step: int, reason: str) -> control_pb2.ControlCommand:
    seeds = [seed_pb2.SeedRef(run_id=run_id, site=f.site, slot=f.slot) for f in fossils]
    return control_pb2.ControlCommand(
        command_id=f"{run_id}/probe/{step}",
        run_id=run_id,
        issuer="emrakul",
        reason=reason,
        probe=control_pb2.Probe(probe_id=f"p{step}", seeds=seeds),
    )


def write_removal(finding: Finding, run_id: str, step: int) -> control_pb2.ControlCommand:
    seed = seed_pb2.SeedRef(run_id=run_id, site=finding.probed.site, slot=finding.probed.slot)
    return control_pb2.ControlCommand(
        command_id=f"{run_id}/remove/{finding.probed.key}/{step}",
        run_id=run_id,
        issuer="emrakul",
        reason=finding.reason,
        remove=control_pb2.Remove(seed=seed),
    )
