"""The evaluator's messages <-> what its workers and its judgement read."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NoReturn

from google.protobuf import json_format

from esper.api.urabrask.v1 import evaluation_pb2 as pb
from esper.artifact import frame
from esper.errors import Corrupt, Unavailable
from esper.urabrask.jail import Isolation, Limits
from esper.urabrask.judge import Checked, Measured, Verdict
from esper.urabrask.measure import Memory, Speed

_MAX_DETAIL = 1000
_SPEED, _MEMORY = ({field.name for field in fields(kind)} for kind in (Speed, Memory))


@dataclass(frozen=True, slots=True)
class EvaluationOrder:
    """What a worker is to do: `artifact` is that of esper.artifact.bundle.to_bytes; `runs` are timed calls."""

    artifact: bytes
    limits: Limits = Limits()  # noqa: RUF009  frozen
    timeout_s: float = 60.0
    runs: int = 50


@dataclass(frozen=True, slots=True)
class Findings:
    """What a worker found out about one artifact. `figures` None: not everything passed."""

    checks: tuple[Checked, ...]
    figures: Mapping[str, Any] | None
    isolation: str
    machine: Mapping[str, str]


def write_order(order: EvaluationOrder) -> bytes:
    options = {"limits": asdict(order.limits), "timeout_s": order.timeout_s, "runs": order.runs}
    return frame.pack({"options": json.dumps(options).encode(), "artifact": order.artifact})


def read_order(payload: bytes) -> EvaluationOrder:
    parts = _parts(payload, ("options", "artifact"))
    options = json.loads(parts["options"])
    return EvaluationOrder(parts["artifact"], Limits(**options["limits"]), options["timeout_s"], options["runs"])


def write_unavailable(error: Unavailable) -> bytes:
    return frame.pack({"unavailable": str(error).encode()})


def write_isolation(isolation: Isolation) -> bytes:
    return frame.pack({"isolation": json.dumps(asdict(isolation)).encode()})


def read_isolation(reply: bytes) -> Isolation:
    """Raises Unavailable where the worker found none."""
    return Isolation(**json.loads(_answer(reply, "isolation")))


def write_findings(findings: Findings) -> bytes:
    return frame.pack({"findings": json.dumps(asdict(findings)).encode()})


def read_findings(reply: bytes) -> Findings:
    """Raises Unavailable where the worker had no isolation and so looked at nothing."""
    told = json.loads(_answer(reply, "findings"))
    checks = tuple(Checked(**check) for check in told["checks"])
    return Findings(checks, told["figures"], told["isolation"], told["machine"])


def read_finding(body: bytes) -> Checked:
    """One finding as an evaluated process tells it, which is not believed to be well formed. Raises Corrupt."""
    told = _told(body)
    name, passed, detail = told.get("name"), told.get("passed"), told.get("detail")
    if not isinstance(name, str) or not isinstance(detail, str) or not isinstance(passed, bool):
        raise Corrupt(f"{body[:80]!r} is no finding")
    return Checked(name[:64], passed, detail[:_MAX_DETAIL])


def read_figures(body: bytes) -> Mapping[str, Any]:
    """Measurements as an evaluated process tells them. Raises Corrupt unless each is a number from 0 that is finite."""
    told = _told(body)
    try:
        numbers = [*told["speed"].values(), *told["memory"].values(), told["gradient_reading"], *told["input_shape"]]
        named = {*told["speed"]} == _SPEED and {*told["memory"]} == _MEMORY and len(told["input_shape"]) >= 2
        sound = named and all(isinstance(n, int | float) and math.isfinite(n) and n >= 0 for n in numbers)
    except (KeyError, AttributeError, TypeError) as error:
        raise Corrupt(f"{body[:80]!r} are no measurements") from error
    if not sound:
        raise Corrupt(f"measurements {body[:200]!r} hold something that is no size or duration")
    return told


def read_measured(figures: Mapping[str, Any], parameter_count: int) -> Measured:
    speed, memory = figures["speed"], figures["memory"]
    return Measured(
        forward_ratio=speed["forward_us_p50"] / max(speed["reference_us_p50"], 1e-3),
        spread=speed["spread"],
        runs=speed["runs"],
        peak_bytes=memory["peak_bytes"],
        reference_peak_bytes=memory["reference_peak_bytes"],
        gradient_reading=figures["gradient_reading"],
        parameter_count=parameter_count,
    )


def write_report(artifact_id: str, findings: Findings, verdict: Verdict) -> pb.Report:
    """The report but for its id and its time."""
    report = pb.Report(
        artifact_id=artifact_id,
        passed=verdict.passed,
        checks=[pb.Check(name=c.name, passed=c.passed, detail=c.detail) for c in findings.checks],
        tags=verdict.tags,
        confidence=pb.CONFIDENCE_MODERATE if verdict.confident else pb.CONFIDENCE_SPECULATIVE,
        machine=dict(findings.machine),
    )
    if findings.figures is not None:
        speed = findings.figures["speed"]
        report.forward_us_p50, report.forward_us_p99 = speed["forward_us_p50"], speed["forward_us_p99"]
        report.step_us_p50 = speed["step_us_p50"]
        report.forward_ratio = speed["forward_us_p50"] / max(speed["reference_us_p50"], 1e-3)
        report.peak_bytes = findings.figures["memory"]["peak_bytes"]
        report.input_shape.extend(findings.figures["input_shape"])
    return report


def report_id(report: pb.Report) -> str:
    """sha256 of the report's JSON form, keys sorted, without its own id."""
    told = json_format.MessageToDict(report, preserving_proto_field_name=True)
    told.pop("report_id", None)
    spelled = json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(spelled.encode()).hexdigest()


def _told(body: bytes) -> dict[str, Any]:
    def refuse(text: str) -> NoReturn:
        raise ValueError(f"{text} is no number")

    try:
        told = json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{body[:80]!r} is no JSON: {error}") from error
    if not isinstance(told, dict):
        raise Corrupt(f"{body[:80]!r} is no JSON object")
    return told


def _answer(reply: bytes, name: str) -> bytes:
    parts = frame.unpack(reply)
    if "unavailable" in parts:
        raise Unavailable(parts["unavailable"].decode())
    return _parts(reply, (name,))[name]


def _parts(data: bytes, names: tuple[str, ...]) -> Mapping[str, bytes]:
    parts = frame.unpack(data)
    if missing := [name for name in names if name not in parts]:
        raise Corrupt(f"a frame of {len(data)} bytes lacks {', '.join(missing)}")
    return parts
