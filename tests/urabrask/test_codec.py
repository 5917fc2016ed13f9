"""What comes out of an evaluated process is not believed to be well formed; what is stored keeps its id."""

import json

import pytest

from esper.api.urabrask.v1 import evaluation_pb2 as pb
from esper.errors import Corrupt, Unavailable
from esper.urabrask import codec
from esper.urabrask.codec import EvaluationOrder, Findings
from esper.urabrask.jail import Isolation, Limits
from esper.urabrask.judge import Checked, Verdict

SPEED = {"forward_us_p50": 10.0, "forward_us_p99": 20.0, "step_us_p50": 30.0, "reference_us_p50": 8.0, "spread": 0.1}
FIGURES = {
    "speed": {**SPEED, "runs": 50},
    "memory": {"peak_bytes": 100, "reference_peak_bytes": 200},
    "gradient_reading": 0.01,
    "input_shape": [16, 32, 8],
}
FINDINGS = Findings((Checked("form", True, "ok"),), FIGURES, "network namespace", {"torch": "2", "cpu": "x"})


def test_orders_and_findings_survive_the_pipe():
    order = EvaluationOrder(b"artifact", Limits(1, 2, 3, 4), 5.5, 6)
    assert codec.read_order(codec.write_order(order)) == order
    assert codec.read_findings(codec.write_findings(FINDINGS)) == FINDINGS
    isolation = Isolation("how", "missing")
    assert codec.read_isolation(codec.write_isolation(isolation)) == isolation


def test_a_worker_without_isolation_answers_nothing_else():
    reply = codec.write_unavailable(Unavailable("candidates cannot be isolated here"))
    for read in (codec.read_findings, codec.read_isolation):
        with pytest.raises(Unavailable, match="cannot be isolated here"):
            read(reply)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[]", b"1", b"{}", b"\xff", b"[" * 10_000, b'{"name":"a","passed":true}'),
        *(b'{"name":1,"passed":true,"detail":""}', b'{"name":"a","passed":1,"detail":""}'),
    ],
)
def test_a_finding_that_is_none_is_corrupt(body):
    with pytest.raises(Corrupt):
        codec.read_finding(body)


def test_a_finding_is_cut_to_size():
    told = codec.read_finding(json.dumps({"name": "n" * 99, "passed": False, "detail": "d" * 5000}).encode())
    assert (len(told.name), len(told.detail)) == (64, 1000)


def changed(path: str, value: object) -> bytes:
    figures = json.loads(json.dumps(FIGURES))
    place = figures
    *parents, last = path.split(".")
    for parent in parents:
        place = place[parent]
    place[last] = value
    return json.dumps(figures).encode()


def test_figures_are_read_back():
    assert codec.read_figures(json.dumps(FIGURES).encode()) == FIGURES


@pytest.mark.parametrize(
    "body",
    [
        changed("speed.forward_us_p50", -1),
        changed("speed.forward_us_p50", "fast"),
        changed("speed.forward_us_p50", float("nan")),
        changed("speed.forward_us_p50", float("inf")),
        changed("memory", 3),
        changed("memory", {}),
        changed("input_shape", None),
        changed("gradient_reading", None),
        changed("speed", {}),
        b"{}",
        b"null",
    ],
)
def test_figures_that_are_none_are_corrupt(body):
    with pytest.raises(Corrupt):
        codec.read_figures(body)


def test_a_report_holds_what_was_found():
    report = codec.write_report("a" * 64, FINDINGS, Verdict(True, "fine", ("small",), True))
    assert report.passed
    assert [(c.name, c.passed, c.detail) for c in report.checks] == [("form", True, "ok")]
    assert (report.forward_us_p50, report.forward_us_p99, report.step_us_p50) == (10.0, 20.0, 30.0)
    assert report.forward_ratio == 1.25
    assert report.peak_bytes == 100
    assert list(report.input_shape) == [16, 32, 8]
    assert report.confidence == pb.CONFIDENCE_MODERATE
    assert dict(report.machine) == {"torch": "2", "cpu": "x"}
    assert list(report.tags) == ["small"]
    failed = codec.write_report("a" * 64, Findings((), None, "", {}), Verdict(False, "no"))
    assert (failed.forward_us_p50, failed.confidence) == (0.0, pb.CONFIDENCE_SPECULATIVE)


def test_a_reports_id_is_that_of_all_else_in_it():
    report = codec.write_report("a" * 64, FINDINGS, Verdict(True, "fine"))
    first = codec.report_id(report)
    report.report_id = first
    assert codec.report_id(report) == first
    report.forward_us_p50 += 1
    assert codec.report_id(report) != first
