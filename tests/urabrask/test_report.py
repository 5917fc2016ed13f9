"""Reports: what was found, by stage, and the words that follow from it and from the peers."""

import pytest

from esper.api.urabrask.v1 import evaluation_pb2 as pb
from esper.artifact.body import read_body
from esper.urabrask.codec import Findings
from esper.urabrask.judge import Checked, Verdict
from esper.urabrask.population import ALONE, Standing
from esper.urabrask.report import give_words, report_id, stage_results, write_report
from esper.urabrask.stages import GATES, STAGES
from tests.artifact.samples import built

from .hostile.artifacts import TITLE, WHERE
from .test_codec import FIGURES

BODY = read_body(built(TITLE, WHERE).manifest.body)
CHECKS = tuple(Checked(name, True, "ok", 2.0) for name in GATES)
FINDINGS = Findings(CHECKS, FIGURES, "network namespace", {"torch": "2", "cpu": "x", "threads": "1"})


def written(verdict: Verdict = Verdict(True, "fine")) -> pb.Report:  # noqa: B008  frozen
    return write_report("a" * 64, BODY, FINDINGS, verdict)


def test_a_report_holds_what_was_found():
    report = written()
    assert report.passed
    assert (report.checks[1].name, report.checks[1].stage, report.checks[1].elapsed_ms) == ("form", 0, 2.0)
    assert (report.forward_us_p50, report.forward_us_p99, report.step_us_p50) == (10.0, 20.0, 30.0)
    assert (report.throughput_per_s, report.run_variation, report.measurable) == (1600.0, 0.01, True)
    assert (report.forward_ratio, report.peak_bytes, report.reference_peak_bytes) == (1.25, 100, 200)
    assert (report.precision_drift, report.reference_drift, report.gradient_reading) == (1e-7, 2e-7, 0.01)
    assert list(report.input_shape) == [16, 32, 8]
    assert report.population == "x, 1 threads, float32 16x32x8 causal"
    assert dict(report.machine) == dict(FINDINGS.machine)
    failed = write_report("a" * 64, BODY, Findings((), None, "", {}), Verdict(False, "no"))
    assert (failed.forward_us_p50, failed.confidence, failed.population) == (0.0, pb.CONFIDENCE_SPECULATIVE, "")


def test_each_stage_that_gates_is_named_with_its_time():
    seen = [(one.number, one.name, one.gates, one.passed) for one in stage_results(CHECKS)]
    assert seen == [(s.number, s.name, True, True) for s in STAGES[:4]]
    assert [one.elapsed_ms for one in stage_results(CHECKS)] == [2.0 * len(s.checks) for s in STAGES[:4]]


def test_a_stage_that_was_not_finished_has_not_passed():
    until_shape = (*CHECKS[:3], Checked("shape", False, "returns [1]"))
    assert [(one.name, one.passed) for one in stage_results(until_shape)] == [
        ("gatekeeper", True),
        ("correctness", False),
    ]
    assert not stage_results(CHECKS[:4])[1].passed


def test_words_confidence_and_interest_follow_the_standing():
    report = written()
    give_words(report, ALONE)
    assert list(report.tags) == ["low_memory", "numerically_stable", "small", "speculative"]
    assert (report.confidence, report.interest) == (pb.CONFIDENCE_SPECULATIVE, pytest.approx(0.75))
    give_words(report, Standing(10, 0.1, 0.9))
    assert list(report.tags) == ["high_speed", "moderate", "numerically_stable", "small"]
    assert report.confidence == pb.CONFIDENCE_MODERATE
    assert (report.standing.members, report.standing.speed_rank) == (10, pytest.approx(0.1))
    assert [one.name for one in report.stages] == ["gatekeeper", "correctness", "stability", "benchmark", "tags"]
    report.usefulness.CopyFrom(pb.Usefulness(pairs=384, gain=0.4, gain_standard_error=0.1))
    give_words(report, Standing(10, 0.5, 0.5))
    assert report.interest == pytest.approx(0.5)
    assert [one.number for one in report.stages] == [0, 1, 2, 3, 4, 5]


def test_a_reports_id_is_that_of_all_else_in_it():
    report = written()
    first = report_id(report)
    report.report_id = first
    assert report_id(report) == first
    report.forward_us_p50 += 1
    assert report_id(report) != first
