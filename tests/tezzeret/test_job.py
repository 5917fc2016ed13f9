"""The worker's job: bytes in, bytes out, failures as answers."""

import math
from dataclasses import replace

import pytest
import torch

from esper.artifact.bundle import verify
from esper.blueprint.canonical import blueprint_id
from esper.blueprint.interface import Interface, Kind
from esper.errors import KernelFault
from esper.karn.templates import TEMPLATES
from esper.tezzeret import codec, job
from esper.tezzeret.check import CostLimits
from esper.tezzeret.compile import build, toolchain
from esper.tezzeret.job import compile_job, warm_up
from tests.artifact.samples import ROOTS

GRAPH = TEMPLATES["low_rank"].graph
ORDER = codec.Order(GRAPH, blueprint_id(GRAPH), Interface(Kind.TOKENS, 8, torch.bfloat16, causal=True), "cpu", "fast")


def test_an_order_survives_the_pipe():
    assert codec.read_order(codec.write_order(ORDER)) == ORDER
    limits = CostLimits(1, 2, 3, 4)
    tight = codec.Order(GRAPH, "a" * 64, ORDER.interface, "cpu", "standard", limits, limit_s=2.5)
    assert codec.read_order(codec.write_order(tight)) == tight


def test_a_worker_answers_with_what_build_makes_and_what_it_cost():
    record, artifact = codec.read_reply(compile_job(codec.write_order(ORDER)))
    assert artifact is not None
    assert artifact.artifact_id == build(GRAPH, ORDER.interface, "cpu", "fast").artifact_id
    assert record.artifact_id == artifact.artifact_id
    assert not record.HasField("failure")
    assert dict(record.toolchain) == toolchain()
    assert record.wall_ms > 0
    assert record.cpu_ms > 0
    assert record.peak_bytes > 10 << 20


def test_a_worker_signs_nothing():
    _, artifact = codec.read_reply(compile_job(codec.write_order(ORDER)))
    assert artifact is not None
    assert not artifact.manifest.attestations
    verify(artifact, ROOTS, require=())


@pytest.mark.parametrize(("limit_s", "left_s"), [(math.inf, math.inf), (60.0, 30.0), (0.0, 0.0)])
def test_a_search_has_half_of_an_orders_time_from_when_its_worker_begins(monkeypatch, limit_s, left_s):
    left = []

    def build(graph, interface, target, pipeline, limits, timer, time_left_s):
        left.append(time_left_s())
        raise KernelFault("it was only asked for its time")

    monkeypatch.setattr(job, "build", build)
    monkeypatch.setattr(job.time, "perf_counter", lambda: 1000.0)
    compile_job(codec.write_order(replace(ORDER, limit_s=limit_s)))
    assert left == [left_s]


def test_what_cannot_be_compiled_is_an_answer():
    cramped = codec.Order(GRAPH, ORDER.blueprint_id, ORDER.interface, "cpu", "fast", CostLimits(max_parameters=1))
    record, artifact = codec.read_reply(compile_job(codec.write_order(cramped)))
    assert artifact is None
    assert record.failure.code == 3
    assert "parameters at tokens[8]" in record.failure.message
    unbuilt = codec.Order(GRAPH, ORDER.blueprint_id, ORDER.interface, "cpu", "standard")
    record, artifact = codec.read_reply(compile_job(codec.write_order(unbuilt)))
    assert artifact is None
    assert record.failure.code == 14


def test_warming_up_differentiates_nothing(monkeypatch):
    """A process that has run autograd cannot always be forked from."""
    monkeypatch.setattr(torch.autograd, "grad", None)
    monkeypatch.setattr(torch.autograd, "backward", None)
    warm_up(None)
