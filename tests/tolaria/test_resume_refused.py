"""A checkpoint that is not of this run's model, optimiser or seeds: said by name, and nothing has changed."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from esper.errors import PreconditionFailed
from esper.kasmina.lifecycle import IN_HOST, State
from esper.tolaria.checkpoint import CheckpointStore
from tests.flow.local import start
from tests.tolaria.quiet import everything
from tests.tolaria.runs import GROWTH, STEPS, begin, follow, let_go, noisy
from tests.tolaria.tasks import NoisyConvNet


class Wider(NoisyConvNet):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 12)


class Deeper(NoisyConvNet):
    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(2, 2)


class Shallower(NoisyConvNet):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 10, bias=False)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run with a graft on trial that was stopped, and its newest checkpoint."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    local = begin(folder, checkpoint_every_steps=10)
    follow(local, 64)
    let_go(local)
    manifest, tensors = CheckpointStore(folder / "checkpoints").latest()
    assert manifest.grafts
    return local.shelf, manifest, tensors


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"make_model": Wider}, r"head\.weight is \[12, 6\] in the model and \[10, 6\] in the snapshot of step \d+"),
        ({"make_model": Deeper}, r"another topology: it lacks \['extra\.bias', 'extra\.weight'\] and has \[\] besides"),
        ({"make_model": Shallower}, r"another topology: it lacks \[\] and has \['head\.bias'\] besides; make"),
        (
            {"make_optimizer": lambda model: torch.optim.SGD(model.parameters(), 0.1), "make_scheduler": None},
            "a run whose optimiser is AdamW with 1 parameter groups, and here it is SGD with 1",
        ),
        ({"make_scheduler": None}, "a run whose scheduler is CosineAnnealingLR, and here it is none"),
        ({"target_layers": ["conv1"]}, r"has seeds \[.*'conv2/0'.*\] that are not here, and lacks \[\]; give"),
        ({"seeds_per_layer": 5}, r"has seeds \[\] that are not here, and lacks \['conv1/4', .*\]; give esper\.wrap"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_before_anything_is_changed(stopped, tmp_path, change, said):
    shelf, manifest, tensors = stopped
    local = start(replace(noisy(), **change), tmp_path / "other", steps=STEPS, growth=GROWTH, shelf=shelf)
    before = everything(local.session)
    with pytest.raises(PreconditionFailed, match=said):
        local.session.resume(manifest, tensors)
    assert everything(local.session) == before
    assert not local.run.executor.grafts
    let_go(local)


def test_the_same_checkpoint_fits_the_run_it_is_of(stopped, tmp_path):
    """Else the refusals would prove little."""
    shelf, manifest, tensors = stopped
    local = start(noisy(), tmp_path / "same", steps=STEPS, growth=GROWTH, shelf=shelf)
    local.session.resume(manifest, tensors)
    assert local.session.steps_done == manifest.step
    assert any(seed.state in IN_HOST and seed.state is not State.FOSSILIZED for seed in local.run.executor.table)
    assert {name for name, _ in local.run.parts.model.named_parameters()} > {
        name for name, _ in noisy().build_model().named_parameters()
    }
    let_go(local)
