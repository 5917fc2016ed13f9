"""Gradients that DistributedDataParallel passes over; one rank, so that the mean can be anything that shows."""

import copy
import io
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from esper.blueprint.interface import Kind
from esper.blueprint.lower import lower
from esper.blueprint.matching import match
from esper.errors import PreconditionFailed
from esper.host.newborns import NewbornGradients, average
from esper.karn.templates import TEMPLATES
from tests import builders


@pytest.fixture(scope="module", autouse=True)
def group():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        yield
        dist.destroy_process_group()


class Host(nn.Module):
    """A layer, and a branch that may be born later."""

    def __init__(self, make_output=lambda y: y) -> None:
        super().__init__()
        self.first = nn.Linear(5, 4)
        self.branch: nn.Module | None = None
        self.make_output = make_output
        self.by_checkpoint = False

    def forward(self, x: Tensor):
        h = self.first(x)
        if self.branch is not None:
            h = h + (checkpoint(self.branch, h, use_reentrant=True) if self.by_checkpoint else self.branch(h))
        return self.make_output(h)


class Scene:
    """A wrapped host whose averages are seen, and come out doubled."""

    def __init__(self, model: Host | None = None, **options: object) -> None:
        self.model = model or Host()
        self.seen: list[Tensor] = []
        self.ddp = DistributedDataParallel(self.model, **options)
        self.newborns = NewbornGradients(self.model, self.grafts, self.mean)

    def grafts(self) -> list[nn.Module]:
        return [self.model.branch] if self.model.branch is not None else []

    def mean(self, flat: Tensor) -> None:
        self.seen.append(flat.clone())
        flat.mul_(2)

    def grow(self) -> nn.Linear:
        self.model.branch = nn.Linear(4, 4)
        return self.model.branch

    def backward(self) -> dict[str, Tensor | None]:
        """The gradients after one step's backward."""
        self.model.zero_grad(set_to_none=True)
        self.ddp(builders.rows()).square().mean().backward()
        return self.gradients()

    def gradients(self) -> dict[str, Tensor | None]:
        return {name: None if p.grad is None else p.grad.clone() for name, p in self.model.named_parameters()}


@pytest.fixture
def scene():
    made = Scene()
    yield made
    made.newborns.remove()


def alone(model: Host) -> dict[str, Tensor]:
    plain = copy.deepcopy(model)
    plain.zero_grad(set_to_none=True)
    plain(builders.rows()).square().mean().backward()
    return {name: p.grad for name, p in plain.named_parameters()}


def test_only_newborns_are_averaged_in_one_flat_bucket(scene):
    scene.backward()
    assert scene.seen == []
    branch = scene.grow()
    before = alone(scene.model)
    after = scene.backward()
    assert [len(flat) for flat in scene.seen] == [sum(p.numel() for p in branch.parameters()) + 2]
    assert torch.equal(after["branch.weight"], 2 * before["branch.weight"])
    assert torch.equal(after["branch.bias"], 2 * before["branch.bias"])
    assert torch.equal(after["first.weight"], before["first.weight"])


def test_it_is_done_when_backward_returns(scene):
    scene.grow()
    scene.ddp(builders.rows()).square().mean().backward()
    assert len(scene.seen) == 1


def test_not_inside_no_sync(scene):
    scene.grow()
    with scene.ddp.no_sync():
        first = scene.backward()
    assert scene.seen == [] and torch.equal(first["branch.weight"], alone(scene.model)["branch.weight"])
    scene.ddp(builders.rows()).square().mean().backward()  # accumulated, then averaged as a whole
    assert torch.allclose(scene.gradients()["branch.weight"], 4 * first["branch.weight"])
    assert len(scene.seen) == 1


def test_wrapped_again_nothing_is_left_to_do(scene):
    scene.grow()
    scene.ddp = DistributedDataParallel(scene.model)
    scene.backward()
    assert scene.seen == []


def test_a_graft_in_the_wrapper_that_is_gone_is_named_before_anything_hangs(scene):
    scene.grow()
    scene.ddp = DistributedDataParallel(scene.model)
    scene.backward()
    scene.model.branch = None
    with pytest.raises(PreconditionFailed, match=r"holds 2 parameters .* wrap the model again"):
        scene.backward()


def test_one_that_is_frozen_too(scene):
    branch = scene.grow()
    scene.ddp = DistributedDataParallel(scene.model)
    scene.backward()
    branch.requires_grad_(False)
    with pytest.raises(PreconditionFailed, match="holds 2 parameters"):
        scene.backward()


def test_unused_parameters_are_no_fault_where_the_wrapper_looks_for_them():
    model = Host()
    model.branch = nn.Linear(4, 4)
    scene = Scene(model, find_unused_parameters=True)
    scene.backward()
    model.branch = nn.Linear(4, 4)
    scene.backward()
    assert len(scene.seen) == 1


def test_frozen_newborns_are_left_out(scene):
    scene.grow().requires_grad_(False)
    scene.backward()
    assert scene.seen == []


def test_asking_for_a_gradient_is_no_backward(scene):
    scene.grow()
    x = builders.rows().requires_grad_()
    output = scene.ddp(x)
    torch.autograd.grad(output.sum(), x, retain_graph=True)
    assert scene.seen == []
    output.square().mean().backward()
    assert len(scene.seen) == 1


def test_a_checkpointed_branch_is_waited_for(scene):
    scene.grow()
    scene.model.by_checkpoint = True
    after = scene.backward()
    before = alone(scene.model)
    assert torch.allclose(after["branch.weight"], 2 * before["branch.weight"])


def test_evaluation_costs_nothing(scene):
    scene.grow()
    with torch.no_grad():
        scene.ddp(builders.rows())
        scene.model(builders.rows())
    assert scene.seen == []


def test_training_outside_the_wrapper_is_refused(scene):
    loss = scene.model(builders.rows()).square().mean()
    with pytest.raises(PreconditionFailed, match="called outside DistributedDataParallel"):
        loss.backward()


@dataclass
class Output:
    scores: Tensor
    note: str = ""


@pytest.mark.parametrize(
    "make", [lambda y: (y, 1), lambda y: {"y": [y]}, lambda y: Output(y)], ids=["tuple", "dict", "dataclass"]
)
def test_outputs_may_be_nested(make):
    scene = Scene(Host(make))
    scene.grow()
    output = scene.ddp(builders.rows())
    tensor = output[0] if isinstance(output, tuple) else output["y"][0] if isinstance(output, dict) else output.scores
    tensor.square().mean().backward()
    assert len(scene.seen) == 1


class Opaque:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def test_an_output_that_cannot_be_seen_into_is_refused_by_name():
    scene = Scene(Host(Opaque))
    scene.ddp(builders.rows())
    scene.grow()
    with pytest.raises(PreconditionFailed, match="the model returns Opaque"):
        scene.ddp(builders.rows())


def test_a_copy_is_not_watched(scene):
    scene.grow()
    for other in (copy.deepcopy(scene.model),):
        other(builders.rows()).square().mean().backward()
    assert scene.seen == []


def test_a_wrapped_model_is_saved_and_read_back():
    model = builders.seeded(builders.perceptron)
    newborns = NewbornGradients(model, list, lambda flat: None)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(again(builders.rows()), model(builders.rows()))
    newborns.remove()
    assert not model._forward_hooks


def test_removed_it_leaves_nothing(scene):
    scene.grow()
    scene.backward()
    scene.newborns.remove()
    scene.seen.clear()
    scene.backward()
    assert scene.seen == [] and not scene.model._forward_hooks
    assert all(not p._post_accumulate_grad_hooks for p in scene.model.parameters() if p._post_accumulate_grad_hooks)


# The mean itself, between two ranks that take turns


def averaged(mine: list[Tensor | None], theirs: list[Tensor | None]) -> list[Tensor | None]:
    """What a rank with gradients `mine` has beside one with `theirs`."""

    def parameters(gradients):
        made = [nn.Parameter(torch.zeros(2, dtype=d)) for d in (torch.float32, torch.float64, torch.float32)]
        for parameter, gradient in zip(made, gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter.dtype)
        return made

    flats: list[Tensor] = []
    average(parameters(theirs), lambda flat: flats.append(flat.clone()))
    waiting = iter(flats)
    own = parameters(mine)
    average(own, lambda flat: flat.add_(next(waiting)).div_(2))
    return [p.grad for p in own]


ONES, TWOS = torch.ones(2), torch.full((2,), 2.0)


def test_a_rank_without_a_gradient_counts_as_zero():
    first, second, third = averaged([None, ONES, TWOS], [TWOS, None, TWOS])
    assert first.tolist() == [1, 1] and second.tolist() == [0.5, 0.5] and third.tolist() == [2, 2]
    assert second.dtype is torch.float64


def test_where_no_rank_has_one_there_is_none():
    assert averaged([None, ONES, None], [None, ONES, ONES])[0] is None
    assert averaged([None, None, None], [None, None, None]) == [None, None, None]


@pytest.mark.parametrize("title", TEMPLATES)
def test_no_branch_has_buffers(title):
    """They would be the ranks' own: DDP looks for buffers that came later only where it knew of some."""
    interfaces = [builders.interface(kind, 8) for kind in Kind]
    fitting = [interface for interface in interfaces if match(TEMPLATES[title].graph, interface)[0]]
    for interface in fitting:
        assert not list(lower(TEMPLATES[title].graph, interface).buffers())
    assert fitting or title == "causal_depthwise"
