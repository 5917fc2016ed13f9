"""Experiences as a dataset: JSON lines, one flat object each, one column per feature. Pure.

What was not measured is absent from its line; it is never a zero and never a null.
"""

import json
import math
from collections.abc import Iterable, Iterator

from esper.api.common.v1 import seed_pb2, training_pb2
from esper.api.simic.v1 import replay_pb2 as pb
from esper.api.tamiyo.v1 import controller_pb2

PIECE_BYTES = 1 << 20
FEATURE = "feature."  # before the name of each feature's column


def columns(experience: pb.Experience) -> dict[str, object]:
    """One experience's columns. A number that is not finite counts as not measured."""
    report = experience.report
    row: dict[str, object] = {
        "position": experience.position,
        "report_id": report.report_id,
        "store_time": experience.store_time.ToJsonString(),
        "run_id": report.seed.run_id,
        "site": report.seed.site,
        "slot": report.seed.slot,
        "task": report.task_name,
        "policy": report.policy,
        "layer_kind": report.layer_kind,
        "family": report.family,
        "title": report.title,
        "artifact_id": report.artifact_id,
        "outcome": seed_pb2.SeedState.Name(report.outcome).removeprefix("SEED_STATE_"),
        "germinated_step": report.germinated_step,
        "end_step": report.end_step,
        "parameter_count": report.parameter_count,
        "host_parameter_count": report.host_parameter_count,
        "confounded": report.confounded,
        "reason": report.reason,
    }
    row |= _gains(report)
    for name, value in sorted(report.features.items()):
        _put(row, FEATURE + name, value)
    return row


def _gains(report: controller_pb2.FieldReport) -> dict[str, object]:
    row: dict[str, object] = {}
    for step, gain in zip(report.isolated_steps, report.isolated_gains, strict=False):
        _put(row, f"isolated_gain.{step}", gain)
    if report.HasField("isolated_gain"):
        _put(row, "isolated_gain", report.isolated_gain)
    if report.HasField("gain"):
        _put(row, "gain", report.gain)
        _put(row, "standard_error", report.standard_error)
        row["control"] = training_pb2.Control.Name(report.control).removeprefix("CONTROL_").lower()
    return row


def _put(row: dict[str, object], name: str, value: float) -> None:
    if math.isfinite(value):
        row[name] = value


def lines(experiences: Iterable[pb.Experience]) -> Iterator[bytes]:
    """One line of JSON each, newline included."""
    for experience in experiences:
        yield json.dumps(columns(experience), ensure_ascii=False, allow_nan=False).encode() + b"\n"


def pieces(experiences: Iterable[pb.Experience], size_bytes: int = PIECE_BYTES) -> Iterator[bytes]:
    """The lines as pieces of at most `size_bytes`, cut anywhere."""
    gathered = bytearray()
    for line in lines(experiences):
        gathered += line
        while len(gathered) >= size_bytes:
            yield bytes(gathered[:size_bytes])
            del gathered[:size_bytes]
    if gathered:
        yield bytes(gathered)
