"""The evaluator's messages <-> what its workers and its judgement read."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NoReturn

from esper.artifact import frame
from esper.errors import Corrupt, Unavailable
from esper.urabrask.jail import Isolation, Limits
from esper.urabrask.judge import Checked, Measured
from esper.urabrask.measure import MAX_VARIATION, Drift, Memory, Speed
from esper.urabrask.usefulness import Usefulness

_MAX_DETAIL = 1000
_SHAPES = {
    name: {field.name for field in fields(kind)}
    for name, kind in (("speed", Speed), ("memory", Memory), ("drift", Drift))
}
_USEFULNESS = {field.name for field in fields(Usefulness)}


@dataclass(frozen=True, slots=True)
class EvaluationOrder:
    """What a worker is to do: `artifact` is that of esper.artifact.bundle.to_bytes; `runs` are timed calls.

    `jailed` False, by --unsafe-no-jail: the child keeps its network and has limits only.
    """

    artifact: bytes
    limits: Limits = Limits()  # noqa: RUF009  frozen
    timeout_s: float = 60.0
    runs: int = 50
    jailed: bool = True


@dataclass(frozen=True, slots=True)
class Findings:
    """What a worker found out about one artifact. `figures` None: not everything passed."""

    checks: tuple[Checked, ...]
    figures: Mapping[str, Any] | None
    isolation: str
    machine: Mapping[str, str]


def write_order(order: EvaluationOrder) -> bytes:
    options = {"limits": asdict(order.limits), "timeout_s": order.timeout_s, "runs": order.runs, "jailed": order.jailed}
    return frame.pack({"options": json.dumps(options).encode(), "artifact": order.artifact})


def read_order(payload: bytes) -> EvaluationOrder:
    parts = _parts(payload, ("options", "artifact"))
    options = json.loads(parts["options"])
    limits = Limits(**options.pop("limits"))
    return EvaluationOrder(parts["artifact"], limits, **options)


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


def write_usefulness(usefulness: Usefulness) -> bytes:
    return frame.pack({"usefulness": json.dumps(asdict(usefulness)).encode()})


def read_usefulness(reply: bytes) -> Usefulness:
    """Raises Unavailable where the worker had no isolation, Corrupt for what is no usefulness."""
    return parse_usefulness(_answer(reply, "usefulness"))


def parse_usefulness(body: bytes) -> Usefulness:
    """As an evaluated process tells it. Raises Corrupt unless each figure is a finite number."""
    told = _told(body)
    if {*told} != _USEFULNESS or not isinstance(told["detail"], str) or not isinstance(told["pairs"], int):
        raise Corrupt(f"{body[:80]!r} is no usefulness")
    told["detail"] = told["detail"][:_MAX_DETAIL]
    sizes = (told["pairs"], told["loss"], told["control_loss"], told["gain_standard_error"])
    if not all(map(_size, sizes)) or not _number(told["gain"]):
        raise Corrupt(f"usefulness {body[:200]!r} holds something that is no loss or gain")
    return Usefulness(**told)


def read_finding(body: bytes) -> Checked:
    """One finding as an evaluated process tells it, which is not believed to be well formed. Raises Corrupt."""
    told = _told(body)
    name, passed, detail, elapsed_ms = (told.get(key) for key in ("name", "passed", "detail", "elapsed_ms"))
    if (
        not isinstance(name, str)
        or not isinstance(detail, str)
        or not isinstance(passed, bool)
        or not _size(elapsed_ms)
    ):
        raise Corrupt(f"{body[:80]!r} is no finding")
    return Checked(name[:64], passed, detail[:_MAX_DETAIL], float(told["elapsed_ms"]))


def read_figures(body: bytes) -> Mapping[str, Any]:
    """Measurements as an evaluated process tells them. Raises Corrupt unless each is a number from 0 that is finite."""
    told = _told(body)
    try:
        parts = [told[name] for name in _SHAPES]
        numbers = [*(n for part in parts for n in part.values()), told["gradient_reading"], *told["input_shape"]]
        named = all({*told[name]} == wanted for name, wanted in _SHAPES.items()) and len(told["input_shape"]) >= 2
        sound = named and all(map(_size, numbers))
    except (KeyError, AttributeError, TypeError) as error:
        raise Corrupt(f"{body[:80]!r} are no measurements") from error
    if not sound:
        raise Corrupt(f"measurements {body[:200]!r} hold something that is no size or duration")
    return told


def read_measured(figures: Mapping[str, Any], parameter_count: int) -> Measured:
    speed, memory = figures["speed"], figures["memory"]
    return Measured(
        forward_ratio=speed["forward_us_p50"] / max(speed["reference_us_p50"], 1e-3),
        measurable=speed["run_variation"] <= MAX_VARIATION,
        runs=speed["runs"],
        peak_bytes=memory["peak_bytes"],
        reference_peak_bytes=memory["reference_peak_bytes"],
        gradient_reading=figures["gradient_reading"],
        parameter_count=parameter_count,
    )


def _number(value: object) -> bool:
    """Whether it is a number that is finite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _size(value: object) -> bool:
    """Whether it is a number from 0 that is finite."""
    return isinstance(value, int | float) and _number(value) and value >= 0


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
