"""The predictor finds a law that is there, says how far it is off, and does not predict from too little."""

import math
from random import Random

import numpy as np
import pytest
import torch

from esper.blueprint.infer import infer
from esper.blueprint.interface import Interface, Kind
from esper.karn.generate import generate
from esper.karn.opportunity import Found, Opportunity
from esper.karn.predict import FEWEST, FOLDS, Measurement, _folds, _numbered, features, fit
from tests.karn.designs import PARENTS

MAP = Interface(Kind.MAP2D, 16)


@pytest.fixture(scope="module")
def graphs():
    return [d.graph for d in generate(Found("", MAP, Opportunity.CAPACITY, "e"), Random(0), PARENTS, 60)[0]]


def measured(graphs, noise=0.0, target="cpu"):
    """Time follows operations and nodes; memory follows what is kept."""
    rng = Random(1)
    made = []
    for graph in graphs:
        cost = infer(graph, MAP, 64)
        time = 5.0 * len(graph.nodes) + 1e-4 * cost.forward_flops(16, 64)
        peak = 4 * (cost.activation_elements(16, 64) + 3 * cost.parameter_count)
        made.append(Measurement(graph, MAP, target, 16, 64, time * math.exp(noise * rng.gauss(0, 1)), int(peak)))
    return made


def test_a_law_is_found_and_holds_for_designs_not_seen(graphs):
    predictor, reason = fit(measured(graphs[:50]), "cpu")
    assert predictor is not None and predictor.count == 50
    assert predictor.latency_error < 0.2 and predictor.memory_error < 0.2
    assert "50 measurements on cpu; held out: time " in reason
    off = [
        abs(predictor.predict(m.graph, MAP, 16, 64)[place] / seen - 1)
        for m in measured(graphs[50:])
        for place, seen in ((0, m.forward_us), (1, m.peak_bytes))
    ]
    assert np.median(off) < 0.2


def test_the_held_out_error_is_that_of_readings_without_a_law(graphs):
    rng = Random(0)
    shuffled = measured(graphs)
    times = rng.sample([m.forward_us for m in shuffled], len(shuffled))
    without = [
        Measurement(m.graph, m.interface, m.target, m.batch, m.positions, t * rng.choice([0.1, 1, 10]), m.peak_bytes)
        for m, t in zip(shuffled, times, strict=True)
    ]
    assert fit(without, "cpu")[0].latency_error > 3 * fit(shuffled, "cpu")[0].latency_error


def test_too_few_measurements_of_a_target_predict_nothing(graphs):
    some = measured(graphs[: FEWEST - 1]) + measured(graphs[:10], target="cuda")
    assert fit(some, "cpu") == (None, f"{FEWEST - 1} measurements on cpu, at least {FEWEST} are needed")
    assert fit(some, "cuda") == (None, f"10 measurements on cuda, at least {FEWEST} are needed")


def test_features_tell_input_sizes_apart(graphs):
    small, large = (features(graphs[0], MAP, batch, 64) for batch in (4, 64))
    assert small.shape == large.shape and not np.array_equal(small, large)


def test_all_measurements_of_a_design_are_held_out_together(graphs):
    designs = _numbered(["b", "a", "b", "c", "a", "d", "e", "f"])
    assert designs.tolist() == [0, 1, 0, 2, 1, 3, 4, 5]
    assert _folds(designs).tolist() == [0, 1, 0, 2, 1, 3, 4, 0]
    assert _folds(designs[designs != 0]).tolist() == [0, 1, 0, 2, 3, 4]
    many = measured(graphs[: FOLDS - 1] * 10)
    assert fit(many, "cpu") == (None, "40 measurements on cpu are of 4 designs, at least 5 are needed")


def test_element_types_are_told_apart(graphs):
    wide = Interface(Kind.MAP2D, 16, torch.float64)
    double = [
        Measurement(m.graph, wide, m.target, m.batch, m.positions, 3 * m.forward_us, 2 * m.peak_bytes)
        for m in measured(graphs)
    ]
    predictor, _ = fit([one for pair in zip(measured(graphs), double, strict=True) for one in pair], "cpu")
    assert predictor.memory_error < 0.2
    narrow, doubled = (predictor.predict(graphs[0], at, 16, 64) for at in (MAP, wide))
    assert doubled == (pytest.approx(3 * narrow[0], rel=0.2), pytest.approx(2 * narrow[1], rel=0.2))
