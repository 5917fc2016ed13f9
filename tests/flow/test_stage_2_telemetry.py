"""Stage 2, training and telemetry: readings of real activations and gradients reach those who ask."""

import re

import pytest

from esper.api.nissa.v1 import observability_pb2, observability_pb2_grpc
from tests.runtime.processes import until


@pytest.fixture(scope="module", autouse=True)
def trained(loop):
    loop.train(2 * loop.session.run.settings.decision_every_steps)
    until(lambda: loop.session.decide() is not None and loop.handle.health, what="a reading")


@pytest.mark.parametrize("site", ["conv1", "conv2", "conv3"])
def test_a_layers_health_was_measured(loop, site):
    signal = loop.handle[site].get_health_signal()
    assert signal.gradient_variance > 0
    assert signal.activation_entropy > 0
    assert 0 < signal.step <= loop.session.steps_done


async def test_the_metrics_of_a_run_are_gathered(stage, channel):
    stub = observability_pb2_grpc.ObservabilityServiceStub(channel)
    text = (await stub.GetMetrics(observability_pb2.GetMetricsRequest())).text
    losses = re.findall(r'^esper_train_loss\{run="stages"\} (\S+)$', text, re.MULTILINE)
    assert len(losses) == 1 and float(losses[0]) > 0
    seeds = {
        state: float(n) for state, n in re.findall(r'^esper_seeds\{run="stages",state="(\w+)"\} (\S+)$', text, re.M)
    }
    assert sum(seeds.values()) == 12 and seeds["FOSSILIZED"] == len(stage.file("lineage.json")["fossils"])


def test_each_decision_point_tells_the_state_of_the_run(stage):
    losses = [event["train_loss"] for event in stage.events("progress")]
    assert losses and all(loss > 0 for loss in losses)
    assert any(event["loss"] > 0 for event in stage.events("validation"))


def test_a_finished_run_leaves_its_metrics(stage):
    assert 'run="stages"' in (stage.run / "metrics.prom").read_text()
