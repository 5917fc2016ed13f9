"""Reports: written from findings, given their words, and read back for comparison."""

import hashlib
import json
from collections.abc import Sequence

from google.protobuf import json_format

from esper.api.urabrask.v1 import evaluation_pb2 as pb
from esper.artifact.body import Body
from esper.urabrask.codec import Findings, read_measured
from esper.urabrask.judge import Checked, Measured, Verdict, confident, interest, tags
from esper.urabrask.population import Member, Standing, group_name
from esper.urabrask.stages import STAGE_OF, STAGES


def write_report(artifact_id: str, body: Body, findings: Findings, verdict: Verdict) -> pb.Report:
    """The report but for its words, its id and its time."""
    report = pb.Report(
        artifact_id=artifact_id,
        passed=verdict.passed,
        unpromotable=verdict.unpromotable,
        checks=[
            pb.Check(name=c.name, passed=c.passed, detail=c.detail, stage=_stage(c.name), elapsed_ms=c.elapsed_ms)
            for c in findings.checks
        ],
        stages=stage_results(findings.checks),
        confidence=pb.CONFIDENCE_SPECULATIVE,
        machine=dict(findings.machine),
        parameter_count=body.parameter_count,
    )
    if findings.figures is not None:
        _write_figures(report, findings, body)
    return report


def stage_results(checks: Sequence[Checked]) -> list[pb.StageResult]:
    """What became of each stage that was reached and rejects what fails it."""
    found = []
    for stage in STAGES:
        own = [check for check in checks if check.name in stage.checks]
        if not own:
            continue
        found.append(
            pb.StageResult(
                number=stage.number,
                name=stage.name,
                gates=stage.gates,
                passed=len(own) == len(stage.checks) and all(check.passed for check in own),
                elapsed_ms=sum(check.elapsed_ms for check in own),
            )
        )
    return found


def give_words(report: pb.Report, standing: Standing) -> None:
    """Set tags, confidence, standing and interest of a report that passed, by where the kernel stands now."""
    measured = read_measured_report(report)
    sure = confident(measured, standing)
    del report.tags[:]
    report.tags.extend(tags(measured, standing))
    report.confidence = pb.CONFIDENCE_MODERATE if sure else pb.CONFIDENCE_SPECULATIVE
    report.standing.CopyFrom(
        pb.Standing(members=standing.members, speed_rank=standing.speed_rank, memory_rank=standing.memory_rank)
    )
    report.interest = interest(standing, sure, _gain(report))
    del report.stages[:]
    checks = [Checked(c.name, c.passed, c.detail, c.elapsed_ms) for c in report.checks]
    report.stages.extend(stage_results(checks))
    usefulness, words = STAGES[4], STAGES[5]
    if report.HasField("usefulness"):
        ended = report.usefulness.pairs > 0
        report.stages.add(number=usefulness.number, name=usefulness.name, gates=usefulness.gates, passed=ended)
    report.stages.add(number=words.number, name=words.name, gates=words.gates, passed=True)


def read_measured_report(report: pb.Report) -> Measured:
    """The figures that words are given by, as a report keeps them."""
    return Measured(
        forward_ratio=report.forward_ratio,
        measurable=report.measurable,
        runs=report.runs,
        peak_bytes=report.peak_bytes,
        reference_peak_bytes=report.reference_peak_bytes,
        gradient_reading=report.gradient_reading,
        parameter_count=report.parameter_count,
    )


def read_member(report: pb.Report) -> Member:
    """The kernel's figures for comparison, of a report that passed."""
    return Member(report.artifact_id, report.population, report.forward_us_p50, report.peak_bytes)


def report_id(report: pb.Report) -> str:
    """sha256 of the report's JSON form, keys sorted, without its own id."""
    told = json_format.MessageToDict(report, preserving_proto_field_name=True)
    told.pop("report_id", None)
    spelled = json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(spelled.encode()).hexdigest()


def _write_figures(report: pb.Report, findings: Findings, body: Body) -> None:
    figures = findings.figures or {}
    speed, memory, drift = figures["speed"], figures["memory"], figures["drift"]
    report.forward_us_p50, report.forward_us_p99 = speed["forward_us_p50"], speed["forward_us_p99"]
    report.step_us_p50, report.throughput_per_s = speed["step_us_p50"], speed["throughput_per_s"]
    measured = read_measured(figures, body.parameter_count)
    report.forward_ratio, report.measurable, report.runs = measured.forward_ratio, measured.measurable, measured.runs
    report.run_variation = speed["run_variation"]
    report.peak_bytes, report.reference_peak_bytes = memory["peak_bytes"], memory["reference_peak_bytes"]
    report.precision_drift, report.reference_drift = drift["form"], drift["reference"]
    report.gradient_reading = figures["gradient_reading"]
    report.input_shape.extend(figures["input_shape"])
    if report.passed:
        machine, interface = findings.machine, body.interface
        report.population = group_name(
            machine.get("cpu", ""),
            machine.get("threads", ""),
            str(interface.dtype).removeprefix("torch."),
            interface.causal,
            figures["input_shape"],
        )


def _gain(report: pb.Report) -> float | None:
    """The usefulness probe's gain in standard errors; None where there is none."""
    seen = report.usefulness
    return seen.gain / seen.gain_standard_error if seen.gain_standard_error > 0 else None


def _stage(check: str) -> int:
    """0 for a name nobody knows: a process that tells one is refused by the judge."""
    return STAGE_OF[check].number if check in STAGE_OF else 0
