"""Measurements: of the right thing, in bytes and microseconds; and the checks on them."""

import torch

from esper.artifact.body import read_body
from esper.artifact.contents import open_contents
from esper.blueprint.interface import Interface, Kind
from esper.urabrask import measure as measure_module
from esper.urabrask.measure import check_latency, check_memory, measure_memory, measure_speed
from esper.urabrask.subject import Subject, prepare
from tests.artifact.samples import built

WHERE = Interface(Kind.VECTOR, 64)


def subject(form=None) -> Subject:
    artifact = built("low_rank", WHERE)
    contents = open_contents(read_body(artifact.manifest.body), artifact.files)
    return prepare(contents, form(contents.form) if form else contents.form)


def test_the_peak_holds_input_parameters_activations_and_gradients():
    memory = measure_memory(subject())
    h, weights, hidden = 64 * 64 * 4, 2 * 64 * 16 * 4, 64 * 16 * 4
    gradients, output = h + weights, h
    assert memory.reference_peak_bytes >= h + weights + gradients + hidden
    assert memory.reference_peak_bytes <= h + weights + gradients + 3 * hidden + 2 * output + 1024


def test_a_form_that_keeps_more_peaks_higher_by_what_it_keeps():
    kept = []

    def hoarder(form):
        def call(h, *parameters):
            kept.append(torch.zeros(1 << 20))
            return form(h, *parameters)

        return call

    plain, more = measure_memory(subject()), measure_memory(subject(hoarder))
    assert more.peak_bytes - plain.peak_bytes == 4 << 20
    finding, _ = check_memory(subject(hoarder))
    assert not finding.passed
    assert "at most" in finding.detail


def test_speed_is_of_the_form_beside_the_reference():
    def slower(form):
        def call(h, *parameters):
            for _ in range(40):
                form(h, *parameters)
            return form(h, *parameters)

        return call

    speed = measure_speed(subject(slower), 10)
    assert speed.runs == 10
    assert speed.forward_us_p99 >= speed.forward_us_p50 > 0
    assert speed.step_us_p50 > 0
    assert speed.ratio > 5
    finding, _ = check_latency(subject(slower), 10)
    assert not finding.passed
    assert "times the reference's, at most 5" in finding.detail


def test_slow_kernels_are_run_less_often(monkeypatch):
    monkeypatch.setattr(measure_module, "BUDGET_S", 0.0)
    assert measure_speed(subject(), 100).runs == measure_module.FEWEST_RUNS


def test_what_is_measured_is_a_small_training_batch():
    assert subject().measured().shape == (64, 64)
