"""Field reports to store."""

import hashlib

from google.protobuf.timestamp_pb2 import Timestamp

from esper.api.common.v1 import seed_pb2, training_pb2
from esper.api.tamiyo.v1.controller_pb2 import FieldReport


def report(number: int, **fields) -> FieldReport:
    """A culled seed that was never tried; `fields` say otherwise."""
    made = {
        "report_id": hashlib.sha256(str(number).encode()).hexdigest(),
        "seed": seed_pb2.SeedRef(run_id=fields.pop("run_id", "run-1"), site="fc1", slot=0),
        "task_name": "digits",
        "title": "bottleneck 4",
        "family": "bottleneck",
        "artifact_id": "a" * 64,
        "layer_kind": "Linear",
        "outcome": seed_pb2.SEED_STATE_CULLED,
        "germinated_step": 100,
        "end_step": 500 + number,
        "reason": "gain 0.1 % is below 1 %",
        "policy": "heuristic",
        "control": training_pb2.CONTROL_TWIN if "gain" in fields else 0,
    }
    return FieldReport(**(made | fields))


def at_noon() -> Timestamp:
    return Timestamp(seconds=1_800_000_000)
