"""A run with fossils at one decision point, and the probes that come back."""

from typing import Any

from esper.api.common.v1 import resource_pb2
from esper.api.kasmina.v1 import nursery_pb2
from esper.api.tolaria.v1 import state_pb2
from tests.tamiyo.scenes import measured, packet, seed

FOSSIL_STEP = 1000
EVERY = 1500


def fossil(site: str = "fc1", slot: int = 0, **fields: Any) -> Any:
    """A fossil kept as a branch since step 1000."""
    return seed(site, slot, "FOSSILIZED", **({"state_step": FOSSIL_STEP} | fields))


def probed(gain: float | None, seed: str = "fc1/0", probe_id: str = "p1", **numbers: Any) -> nursery_pb2.JobResult:
    """A probe that came back: the gain of the run over itself without the fossil; None: it failed."""
    found = nursery_pb2.MeasureResult(label=f"probe:{probe_id}:{seed}")
    if gain is not None:
        found.paired.CopyFrom(measured(gain, **numbers))
    result = nursery_pb2.JobResult(job_id="job-1", run_id="run-1", measure=found)
    if gain is None:
        result.failure.CopyFrom(resource_pb2.Failure(code=13, message="the worker was killed"))
    return result


def point(sequence: int = 50, *results: nursery_pb2.JobResult, **changes: Any) -> state_pb2.SystemStatePacket:
    """Decision point `sequence`, 100 steps each, with one fossil unless `seeds` says otherwise."""
    fields = {"sequence": sequence, "step": 100 * sequence, "seeds": [fossil()], "results": list(results)}
    return packet("never", **(fields | changes))
