"""What comes out of an evaluated process is not believed to be well formed; what is stored keeps its id."""

import json
from dataclasses import asdict

import pytest

from esper.errors import Corrupt, Unavailable
from esper.urabrask import codec
from esper.urabrask.codec import EvaluationOrder, Findings
from esper.urabrask.jail import Isolation, Limits
from esper.urabrask.judge import Checked
from esper.urabrask.usefulness import Usefulness

SPEED = {"forward_us_p50": 10.0, "forward_us_p99": 20.0, "step_us_p50": 30.0, "reference_us_p50": 8.0}
FIGURES = {
    "speed": {
        **SPEED,
        "throughput_per_s": 1600.0,
        "run_variation": 0.01,
        "reference_variation": 0.01,
        "fastest_ratio": 1.2,
        "runs": 50,
    },
    "drift": {"form": 1e-7, "reference": 2e-7},
    "memory": {"peak_bytes": 100, "reference_peak_bytes": 200},
    "gradient_reading": 0.01,
    "input_shape": [16, 32, 8],
}
FINDINGS = Findings((Checked("form", True, "ok"),), FIGURES, "network namespace", {"torch": "2", "cpu": "x"})


def test_orders_and_findings_survive_the_pipe():
    order = EvaluationOrder(b"artifact", Limits(1, 2, 3, 4), 5.5, 6, jailed=False)
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
        *(b'{"name":"a","passed":true,"detail":""}', b'{"name":"a","passed":true,"detail":"","elapsed_ms":-1}'),
    ],
)
def test_a_finding_that_is_none_is_corrupt(body):
    with pytest.raises(Corrupt):
        codec.read_finding(body)


def test_a_finding_is_cut_to_size():
    told = codec.read_finding(
        json.dumps({"name": "n" * 99, "passed": False, "detail": "d" * 5000, "elapsed_ms": 2.5}).encode()
    )
    assert (len(told.name), len(told.detail), told.elapsed_ms) == (64, 1000, 2.5)


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


USEFUL = Usefulness(384, 0.5, 0.6, -0.16, 0.02, "words")


def test_usefulness_survives_the_pipe_and_is_not_believed():
    assert codec.read_usefulness(codec.write_usefulness(USEFUL)) == USEFUL
    for change in ({"loss": -1}, {"gain": None}, {"pairs": 0.5}, {"detail": 3}, {"more": 1}, {"gain": True}):
        with pytest.raises(Corrupt):
            codec.parse_usefulness(json.dumps({**asdict(USEFUL), **change}).encode())
    with pytest.raises(Unavailable, match="refused"):
        codec.read_usefulness(codec.write_unavailable(Unavailable("refused")))
