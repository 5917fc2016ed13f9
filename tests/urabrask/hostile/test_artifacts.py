"""Hostile kernels in a real isolated process: every one is rejected, by the check that is for it."""

import socket
from dataclasses import replace

import pytest

from esper.artifact.attest import BUILT
from esper.artifact.body import EXPORTED, GRAPH, MODULE, WEIGHTS, read_body
from esper.artifact.bundle import Artifact, bundle, sign, to_bytes
from esper.artifact.contents import open_weights, write_graph_file, write_weights_file
from esper.karn.templates import TEMPLATES
from esper.urabrask import codec
from esper.urabrask.codec import EvaluationOrder, Findings
from esper.urabrask.jail import Limits
from esper.urabrask.judge import Verdict, judge
from esper.urabrask.stages import NAMES
from tests.artifact.samples import FORGE, built

from ..lab import Lab
from .artifacts import FORMS, SCRIPTS, TITLE, WHERE, forged, rewritten

QUICK = Limits(memory_bytes=1 << 30, cpu_s=20)


def order(artifact: Artifact, timeout_s: float = 20.0) -> bytes:
    return codec.write_order(EvaluationOrder(to_bytes(artifact), QUICK, timeout_s, runs=10))


def judged(findings: Findings) -> Verdict:
    measured = codec.read_measured(findings.figures, 1) if findings.figures else None
    return judge(findings.checks, NAMES, measured, findings.isolation)


def evaluated(lab: Lab, artifact: Artifact, timeout_s: float = 20.0) -> Findings:
    return codec.read_findings(lab.call("esper.urabrask.job:evaluate_job", order(artifact, timeout_s)))


def test_the_genuine_kernel_passes_so_that_what_follows_means_something(lab):
    findings = evaluated(lab, built(TITLE, WHERE))
    assert [check.name for check in findings.checks if check.passed] == list(NAMES)
    assert judged(findings).passed
    assert "network" in findings.isolation or "filter" in findings.isolation
    assert evaluated(lab, rewritten()).figures is not None  # rewriting nothing changes nothing


@pytest.mark.parametrize("name", [name for name, (_, check) in SCRIPTS.items() if check and name != "never ends"])
def test_a_hostile_script_is_rejected_by_the_check_that_is_for_it(lab, name):
    lines, check = SCRIPTS[name]
    findings = evaluated(lab, rewritten(*lines))
    verdict = judged(findings)
    assert not verdict.passed
    assert verdict.reason.startswith(f"{check}: "), verdict.reason
    assert findings.checks[-1].name == check  # and nothing is tried after it
    assert findings.figures is None


def test_a_shape_that_is_wrong_at_one_batch_only_is_found(lab):
    lines, _ = SCRIPTS["right shape, but for one batch"]
    findings = evaluated(lab, rewritten(*lines))
    assert judged(findings).passed  # batch 5 is not tried on tokens: what the gauntlet does not try it cannot know
    lines = tuple(line.replace("== 5", "== 3") for line in lines)
    assert judged(evaluated(lab, rewritten(*lines))).reason.startswith("shape: ")


def test_a_kernel_that_never_ends_is_ended(lab):
    lines, check = SCRIPTS["never ends"]
    verdict = judged(evaluated(lab, rewritten(*lines), timeout_s=2.0))
    assert verdict.reason == f"{check}: the process was still at work after 2 s and was ended"


def test_processor_time_is_bounded_as_well(lab):
    lines, check = SCRIPTS["never ends"]
    tight = EvaluationOrder(to_bytes(rewritten(*lines)), Limits(memory_bytes=1 << 30, cpu_s=1), 30.0, 10)
    findings = codec.read_findings(lab.call("esper.urabrask.job:evaluate_job", codec.write_order(tight)))
    assert judged(findings).reason == f"{check}: the process used 1 s of processor time, the limit"


@pytest.mark.parametrize(
    ("file", "data", "words"),
    [
        (MODULE, b"junk", "are no TorchScript"),
        (GRAPH, b"{}", "cannot be lowered"),
        (GRAPH, write_graph_file(TEMPLATES["wide_mlp"].graph), "is blueprint"),
        (WEIGHTS, b"junk", "is no safetensors file"),
    ],
)
def test_files_that_do_not_fit_each_other_are_rejected_before_anything_runs(lab, file, data, words):
    verdict = judged(evaluated(lab, forged(**{file: data})))
    assert verdict.reason.startswith("form: ")
    assert words in verdict.reason


@pytest.mark.parametrize("file", ["kernel.cubin", "kernel.hsaco", "model.so", "model.pt2"])
def test_a_file_that_no_pipeline_writes_is_refused_before_anything_runs(lab, file):
    findings = evaluated(lab, forged(**{file: b"\x7fELF" + bytes(60)}))
    assert judged(findings).reason.startswith(f"form: file {file!r} is none that a pipeline writes; ")
    assert [check.name for check in findings.checks] == ["form"]


def test_a_file_that_no_check_reads_is_refused_before_anything_runs(lab):
    """A program that pipeline standard would write for people: here it would be signed unseen."""
    findings = evaluated(lab, forged(**{EXPORTED: b"\x7fELF" + bytes(60)}))
    assert judged(findings).reason.startswith(f"static: holds {EXPORTED}; only graph.json, ")
    assert [check.name for check in findings.checks] == ["form", "static"]


def test_a_cost_that_is_not_the_graphs_is_refused(lab):
    artifact = built(TITLE, WHERE)
    body = replace(read_body(artifact.manifest.body), files={}, forward_flops_per_position=1)
    cheap = sign(bundle(body, artifact.files), FORGE, BUILT, {})
    assert judged(evaluated(lab, cheap)).reason.startswith("static: says 1 operations per position; its graph has ")


def test_weights_that_are_not_zero_at_birth_are_rejected(lab):
    body = read_body(built(TITLE, WHERE).manifest.body)
    weights = open_weights(body, built(TITLE, WHERE).files[WEIGHTS])
    weights["up_weight"] += 1e-3
    verdict = judged(evaluated(lab, forged(**{WEIGHTS: write_weights_file(weights)})))
    assert verdict.reason.startswith("identity: largest value at birth is ")


def test_weights_that_can_never_learn_are_rejected(lab):
    body = read_body(built(TITLE, WHERE).manifest.body)
    weights = open_weights(body, built(TITLE, WHERE).files[WEIGHTS])
    weights["down_weight"].zero_()
    verdict = judged(evaluated(lab, forged(**{WEIGHTS: write_weights_file(weights)})))
    assert verdict.reason == "identity: no parameter gets a gradient at birth, so it can never learn"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("reuses a buffer", "purity: a second call changes the first one's output: it reuses a buffer"),
        ("returns its input's memory", "purity: "),
        ("changes a setting", "purity: changes a setting of the process"),
        ("looks ahead", "causality: "),
        ("runs a program", "shape: raised PermissionError: [Errno 1] Operation not permitted"),
        ("forks", "shape: raised PermissionError: [Errno 1] Operation not permitted"),
        ("writes a file", "shape: raised PermissionError: [Errno 1] Operation not permitted"),
        ("crashes", "shape: the process was killed by SIGSEGV"),
        ("leaves", "shape: was not reached"),
        ("talks", "shape: the process said something that is no answer"),
    ],
)
def test_a_hostile_form_is_rejected(lab, name, reason):
    assert name in FORMS
    payload = b"\0".join((name.encode(), b"0", order(built(TITLE, WHERE))))
    verdict = judged(codec.read_findings(lab.call("tests.urabrask.hostile.artifacts:evaluate_form", payload)))
    assert not verdict.passed
    assert verdict.reason.startswith(reason), verdict.reason


def test_a_form_that_opens_a_socket_reaches_nobody(lab):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(0.2)
        port = str(server.getsockname()[1]).encode()
        payload = b"\0".join((b"dials out", port, order(built(TITLE, WHERE))))
        verdict = judged(codec.read_findings(lab.call("tests.urabrask.hostile.artifacts:evaluate_form", payload)))
        assert verdict.reason.startswith("shape: raised ")
        assert "Operation not permitted" in verdict.reason or "unreachable" in verdict.reason
        with pytest.raises(TimeoutError):
            server.accept()
