"""Measurements come from the library, each once; what cannot be one is passed over; a fit lasts until there is news."""

from random import Random

import pytest
import torch

from esper.blueprint.interface import Kind
from esper.errors import PreconditionFailed, Unavailable
from esper.karn import measured
from esper.karn.generate import generate
from esper.karn.measured import Measurements
from esper.karn.opportunity import Found, Opportunity
from esper.karn.predict import FEWEST
from tests.karn.designs import PARENTS
from tests.karn.evaluations import BATCH, CPU, MAP, SIDE, TARGET, Evaluations, law


@pytest.fixture(scope="module")
def graphs():
    return [d.graph for d in generate(Found("", MAP, Opportunity.CAPACITY, "e"), Random(0), PARENTS, 50)[0]]


@pytest.fixture
def library(graphs):
    made = Evaluations()
    for graph in graphs[:FEWEST]:
        made.measure(graph)
    return made


async def test_a_target_is_fitted_once_until_something_new_was_measured_on_it(library, graphs):
    measurements = Measurements(library)
    first = await measurements.predictor(TARGET)
    assert first.count == FEWEST and first.inputs == {(Kind.MAP2D, torch.float32, BATCH, SIDE * SIDE)}
    assert await measurements.predictor(TARGET) is first and measurements.fits == 1
    library.measure(graphs[40], machine={"cpu": "another", "threads": "1"})
    assert await measurements.predictor(TARGET) is first
    library.measure(graphs[40])
    second = await measurements.predictor(TARGET)
    assert second.count == FEWEST + 1 and measurements.fits == 2
    assert library.calls["get_kernel"] == FEWEST + 2  # each report was read once


async def test_what_is_predicted_is_near_what_the_library_says(library, graphs):
    predictor = await Measurements(library).predictor(TARGET)
    for graph in graphs[:5]:
        time, peak = predictor.predict(graph, MAP, BATCH, SIDE * SIDE)
        assert (time, peak) == pytest.approx(law(graph), rel=0.5)


async def test_too_few_measurements_are_refused_with_what_there_is(library):
    with pytest.raises(PreconditionFailed) as told:
        await Measurements(library).predictor("Abacus, 2 threads")
    assert str(told.value) == (
        "budget.target: 0 measurements on Abacus, 2 threads, at least 40 are needed before anything is predicted; "
        "have more kernels evaluated there, name another target, or ask without a budget; "
        "measured so far: 'Acme 9000, 1 threads' (40)"
    )
    with pytest.raises(PreconditionFailed, match="measured so far: nothing"):
        await Measurements(Evaluations()).predictor(TARGET)


async def test_measurements_of_few_designs_are_too_few(graphs):
    library = Evaluations()
    for number in range(FEWEST):
        library.measure(graphs[number % 4])
    with pytest.raises(PreconditionFailed, match=r"40 measurements on .* are of 4 designs, at least 5 are needed"):
        await Measurements(library).predictor(TARGET)


async def test_what_is_no_measurement_does_not_count(library, graphs, caplog):
    library.measure(graphs[41], forward_us_p50=0)  # it failed before it was timed
    library.measure(graphs[41], follows_report_id="0" * 64)
    library.measure(graphs[41], input_shape=[BATCH, 5, SIDE, SIDE])
    del library.kernels[library.measure(graphs[41])]
    again = library.reports[-1].artifact_id  # the first kernel, evaluated again
    library.measure(graphs[0], artifact_id=again)
    assert (await Measurements(library).predictor(TARGET)).count == FEWEST
    said = [record.message for record in caplog.records]
    assert len(said) == 2 and "no such kernel" in said[0] and "input of [16, 5, 8, 8]" in said[1]


async def test_only_the_newest_reports_are_kept(library, graphs, monkeypatch):
    monkeypatch.setattr(measured, "MOST_REPORTS", FEWEST)
    measurements = Measurements(library)
    await measurements.predictor(TARGET)
    for graph in graphs[40:43]:
        library.measure(graph)
    assert (await measurements.predictor(TARGET)).count == FEWEST
    assert len(measurements._read) == FEWEST
    library.measure(graphs[43], machine={"cpu": "another", "threads": "1"})  # an old one falls out
    with pytest.raises(PreconditionFailed, match=f"{FEWEST - 1} measurements on {CPU}"):
        await measurements.predictor(TARGET)
    assert len(measurements._graphs) == FEWEST  # and none of what fell out


async def test_a_reading_that_was_interrupted_goes_on_where_it_was(library, monkeypatch):
    whole, calls = library.get_kernel, []

    async def breaks(request):
        calls.append(request.artifact_id)
        if len(calls) == 10:
            raise Unavailable("the library restarts")
        return await whole(request)

    monkeypatch.setattr(library, "get_kernel", breaks)
    measurements = Measurements(library)
    with pytest.raises(Unavailable):
        await measurements.predictor(TARGET)
    assert (await measurements.predictor(TARGET)).count == FEWEST
    assert len(calls) == FEWEST + 1
