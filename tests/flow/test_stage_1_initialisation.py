"""Stage 1, initialisation: a model is wrapped, tied to a runtime, and nothing about it has changed."""

import copy

import torch

from esper.kasmina.lifecycle import State
from esper.kasmina.wrap import unwrap, wrap
from esper.tolaria.task import load_task
from esper.tolaria.tasks.digits import SmallConvNet


def test_every_target_layer_is_a_site_with_its_seeds(loop):
    assert list(loop.handle.sites) == ["conv1", "conv2", "conv3"]
    assert all(site.num_seeds == 4 for site in loop.handle.sites.values())


def test_all_seeds_are_dormant():
    task = load_task("esper.tolaria.tasks.digits:task", {"seed": 1})
    handle = wrap(task.build_model(), task.target_layers, seeds_per_layer=4, example=task.micro_batches(0)[0][0])
    for site in handle.sites.values():
        assert site.state_layout.lifecycle_states.tolist() == [State.DORMANT] * 4
        assert site.state_layout.alpha_blend.tolist() == [0.0] * 4
    unwrap(handle)


def test_a_dormant_layer_is_the_plain_module(loop):
    model = loop.parts.model
    plain = SmallConvNet()
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert all("forward" not in vars(getattr(model, name)) for name in ("conv1", "conv2", "conv3"))


def test_outputs_and_gradients_are_those_of_the_unwrapped_model(loop):
    x = loop.task.micro_batches(3)[0][0]
    plain = copy.deepcopy(loop.parts.model)  # a copy is not wrapped
    grads = []
    for model in (loop.parts.model, plain):
        model.zero_grad()
        model(x).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
        model.zero_grad()
    assert torch.equal(loop.parts.model(x), plain(x))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_the_optimiser_trains_every_parameter(loop):
    held = {id(p) for group in loop.parts.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in loop.parts.model.parameters()}


def test_telemetry_is_on_and_has_a_line_to_the_bus(loop):
    assert loop.handle.telemetry_enabled
    assert loop.session.reports.sampler is not None
    assert loop.session.run.line.connected.is_set()


def test_checkpoints_have_a_schedule(stage, loop):
    assert loop.session.checkpoint_every_steps > 0
    steps = [int(folder.name.removeprefix("step-")) for folder in (stage.run / "checkpoints").iterdir()]
    inserted = [event["step"] for event in stage.events("transition") if event["to"] == "GRAFTING"]
    assert set(inserted) & set(steps)  # one at a change of the model's shape
