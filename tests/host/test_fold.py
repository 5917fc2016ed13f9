"""Folding a fossil: the same function in plain weights, or the right reason why not."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from esper.blueprint.ir import CHANNELS, INPUT, Graph, Initialiser, Node, Parameter, of_channels
from esper.blueprint.lower import lower
from esper.host.fold import fold
from esper.host.forward import attach, detach
from esper.host.graft import Graft, Strategy
from tests import builders

DOUBLE = {"rtol": 1e-13, "atol": 1e-13}

DENSE = {
    "linear": (lambda: nn.Linear(5, 6), (4, 5)),
    "linear_tokens": (lambda: nn.Linear(5, 6), (2, 7, 5)),
    "conv1d": (lambda: nn.Conv1d(5, 6, 3, padding=1, stride=2), (2, 5, 9)),
    "conv2d": (lambda: nn.Conv2d(5, 6, 3, padding=1, padding_mode="circular"), (2, 5, 7, 7)),
    "linear_3d_dilated": (lambda: nn.Conv2d(5, 6, (1, 3), dilation=2), (2, 5, 7, 9)),
}
NORMS = {
    "layer_norm": (lambda: nn.LayerNorm(6), (4, 3, 6)),
    "layer_norm_2d": (lambda: nn.LayerNorm([6, 6]), (4, 6, 6)),
    "batch_norm_1d": (lambda: nn.BatchNorm1d(6), (4, 6, 5)),
    "batch_norm_vector": (lambda: nn.BatchNorm1d(6), (4, 6)),
    "batch_norm_2d": (lambda: nn.BatchNorm2d(6), (4, 6, 3, 3)),
    "group_norm": (lambda: nn.GroupNorm(3, 6), (4, 6, 3, 3)),
}
AFFINE = ["affine", "low_rank", "scale"]


def folding(make, shape, title, *, strategy=Strategy.RESIDUAL, span=None, outer=None):
    """(model, example, site, graft) in double, the graft attached at alpha 1."""
    layer = builders.stir(builders.seeded(make)).double()
    model = nn.Sequential(layer) if outer is None else outer(layer)
    example = torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (site,) = builders.sites(model, lambda _, module: module is layer, example).values()
    at = (
        site.interface
        if span is None
        else builders.interface(site.interface.kind, span[1] - span[0], dtype=torch.float64)
    )
    graft = builders.graft(at, title=title, strategy=strategy, span=span, layout=site.layout)
    attach(site, 0, graft)
    return model, example, site, graft


@pytest.mark.parametrize("title", AFFINE)
@pytest.mark.parametrize("name", DENSE)
def test_a_dense_layer_absorbs_an_affine_branch(name, title):
    model, example, site, graft = folding(*DENSE[name], title)
    keys = [key for key in model.state_dict() if "esper" not in key]
    branched = model(example)
    assert fold(site, graft, model) == ""
    detach(site, 0)
    torch.testing.assert_close(model(example), branched, **DOUBLE)
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", NORMS)
def test_a_norm_absorbs_a_scale_per_channel(name, mode):
    model, example, site, graft = folding(*NORMS[name], "scale")
    plain = copy.deepcopy(model)
    assert fold(site, graft, model) == ""
    detach(site, 0)
    for each in (plain, model):
        each.train(mode == "train")
    torch.testing.assert_close(model(example), plain(example), **DOUBLE)


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_absorbs_a_shift_and_refuses_what_mixes_channels(name):
    model, example, site, graft = folding(*NORMS[name], "affine")
    assert fold(site, graft, model) == f"a {type(site.module).__name__} absorbs a scale per channel only"
    with torch.no_grad():
        graft.body.weight.copy_(torch.diag(torch.linspace(-1, 1, len(graft.body.weight))))
    branched = model.eval()(example)
    assert fold(site, graft, model) == ""
    detach(site, 0)
    torch.testing.assert_close(model(example), branched, **DOUBLE)


def test_a_sum_of_affine_paths_is_affine():
    graph = Graph(
        nodes=(
            Node("mapped", "linear", (INPUT,), ("w",), (("out", CHANNELS),)),
            Node("scaled", "scale", ("mapped",), ("s",)),
            Node("sum", "add", ("scaled", INPUT)),
        ),
        parameters=(
            Parameter("w", (CHANNELS, CHANNELS), Initialiser.ZEROS),
            Parameter("s", (CHANNELS,), Initialiser.ONES),
        ),
        output="sum",
    )
    model, example, site, graft = folding(*DENSE["conv1d"], "affine")
    graft.body = builders.stir(lower(graph, site.interface))
    branched = model(example)
    assert fold(site, graft, model) == ""
    detach(site, 0)
    torch.testing.assert_close(model(example), branched, **DOUBLE)


def test_a_low_rank_operator_and_moves_of_channels_are_affine():
    half = of_channels(divide=2)
    nodes = (
        Node("thin", "low_rank", (INPUT,), ("down", "up", "b"), (("out", CHANNELS), ("rank", half))),
        Node("left", "split", ("thin",), (), (("part", 0), ("parts", 2))),
        Node("right", "split", (INPUT,), (), (("part", 1), ("parts", 2))),
        Node("both", "concat", ("right", "left")),
        Node("mixed", "channel_shuffle", ("both",), (), (("groups", 3),)),
        Node("moved", "bias", ("mixed",), ("b",)),
    )
    shapes = {"down": (half, CHANNELS), "up": (CHANNELS, half), "b": (CHANNELS,)}
    parameters = tuple(Parameter(name, shape, Initialiser.ZEROS) for name, shape in shapes.items())
    model, example, site, graft = folding(*DENSE["conv2d"], "affine")
    graft.body = builders.stir(lower(Graph(nodes, parameters, "moved"), site.interface))
    branched = model(example)
    assert fold(site, graft, model) == ""
    detach(site, 0)
    torch.testing.assert_close(model(example), branched, **DOUBLE)


def test_single_precision_weights_are_folded_in_double():
    layer = builders.stir(nn.Linear(5, 6))
    model = nn.Sequential(layer)
    site = builders.sites(model, "0", builders.rows())["0"]
    graft = builders.graft(title="low_rank")
    matrix = (graft.body.up_weight.double() @ graft.body.down_weight.double()).detach()
    wanted = ((torch.eye(6).double() + matrix) @ layer.weight.double()).detach().float()
    attach(site, 0, graft)
    assert fold(site, graft, model) == ""
    assert torch.equal(layer.weight, wanted)


# Refusals. Each leaves every weight as it was.


def refused(parts, model=None):
    model, _, site, graft = parts
    before = builders.state_of(model)
    reason = fold(site, graft, model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    return reason


def test_a_branch_that_bends_is_kept():
    assert refused(folding(*DENSE["linear"], "bottleneck_mlp")) == "the branch is not affine: it uses gelu"
    assert refused(folding(*DENSE["conv2d"], "conv3")) == "the branch is not affine: it uses conv, relu"


def test_a_branch_on_a_chunk_is_kept():
    assert refused(folding(*DENSE["linear"], "low_rank", span=(1, 5))) == "the branch works on a chunk of the channels"


@pytest.mark.parametrize("strategy", [Strategy.CONVEX, Strategy.GATED])
def test_other_strategies_are_kept(strategy):
    assert (
        refused(folding(*DENSE["linear"], "low_rank", strategy=strategy)) == f"a {strategy.value} graft is not folded"
    )


def test_a_site_with_another_graft_is_kept():
    parts = folding(*DENSE["linear"], "low_rank")
    attach(parts[2], 1, builders.graft(parts[2].interface))
    assert refused(parts) == "the site carries other grafts, which see the branch's output"


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (nn.ReLU, (4, 6)),
        (lambda: nn.Embedding(9, 6), None),
        (lambda: nn.LayerNorm(6, elementwise_affine=False), (4, 6)),
        (lambda: nn.BatchNorm1d(6, affine=False), (4, 6)),
    ],
)
def test_a_site_without_weights_of_its_own_keeps_the_branch(make, shape):
    layer = make()
    model = nn.Sequential(layer)
    example = torch.randint(9, (4, 3)) if shape is None else torch.randn(shape)
    site = builders.sites(model, "0", example)["0"]
    graft = builders.graft(site.interface, title="low_rank", layout=site.layout)
    attach(site, 0, graft)
    assert "has no weight of its own that could absorb a branch" in refused((model, example, site, graft))


@pytest.mark.parametrize("make", [lambda: nn.Linear(5, 6, bias=False), lambda: nn.LayerNorm(6, bias=False)])
def test_a_shift_needs_a_bias(make):
    layer = make()
    width = 5 if isinstance(layer, nn.Linear) else 6
    parts = folding(lambda: layer, (4, width), "affine")
    model, example, site, graft = parts
    with torch.no_grad():
        graft.body.weight.copy_(torch.eye(6))
    assert refused(parts) == "0 has no bias to absorb the branch's shift"
    with torch.no_grad():
        graft.body.bias.zero_()
    branched = model(example)
    assert fold(site, graft, model) == ""
    detach(site, 0)
    torch.testing.assert_close(model(example), branched, **DOUBLE)


@pytest.mark.parametrize("layer", [lambda: nn.Conv1d(6, 6, 3, groups=2), lambda: nn.Conv1d(6, 6, 3, groups=6)])
def test_a_grouped_convolution_keeps_a_branch_that_mixes_its_groups(layer):
    parts = folding(layer, (2, 6, 9), "low_rank")
    assert "groups of a Conv1d" in refused(parts)


def test_a_grouped_convolution_absorbs_a_branch_within_its_groups():
    model, example, site, graft = folding(lambda: nn.Conv2d(6, 6, 3, groups=2), (2, 6, 5, 5), "affine")
    with torch.no_grad():
        graft.body.weight[:3, 3:] = 0
        graft.body.weight[3:, :3] = 0
    branched = model(example)
    assert fold(site, graft, model) == ""
    detach(site, 0)
    torch.testing.assert_close(model(example), branched, **DOUBLE)


class Tied(nn.Module):
    """Scores by the embedding's own weights."""

    def __init__(self, layer):
        super().__init__()
        self.embed, self.head = nn.Embedding(6, 5), layer
        self.embed.weight = layer.weight

    def forward(self, x):
        return self.head(x) + self.embed(torch.tensor(0)).sum()


def test_tied_weights_keep_the_branch():
    parts = folding(*DENSE["linear"], "low_rank", outer=Tied)
    assert refused(parts) == "head shares its weights with embed, which would change too"


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_weights_that_do_not_learn_keep_a_branch_that_does(name):
    model, _, site, graft = folding(*DENSE["linear"], "low_rank")
    getattr(site.module, name).requires_grad_(False)
    assert fold(site, graft, model) == "0 does not learn, and the branch does"
    graft.requires_grad_(False)
    assert fold(site, graft, model) == ""


def test_weights_that_are_computed_keep_the_branch():
    parts = folding(lambda: parametrizations.weight_norm(nn.Linear(5, 6)), (4, 5), "low_rank")
    assert "has no weight of its own" in refused(parts)


def test_a_bias_that_is_computed_keeps_the_branch():
    def make():
        layer = nn.Linear(5, 6)
        nn.utils.parametrize.register_parametrization(layer, "bias", nn.Tanh())
        return layer

    parts = folding(make, (4, 5), "low_rank")
    assert refused(parts).endswith("'s bias is computed from other parameters")


def test_a_subclass_that_computes_otherwise_keeps_the_branch():
    class Doubles(nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    assert refused(folding(lambda: Doubles(5, 6), (4, 5), "low_rank")) == "Doubles computes otherwise than Linear"


def test_a_subclass_with_the_same_forward_is_folded():
    class Named(nn.Linear):
        pass

    model, example, site, graft = folding(lambda: Named(5, 6), (4, 5), "low_rank")
    branched = model(example)
    assert fold(site, graft, model) == ""
    detach(site, 0)
    torch.testing.assert_close(model(example), branched, **DOUBLE)


def test_the_fold_needs_no_graph_and_keeps_parameters_the_same_objects():
    model, _, site, graft = folding(*DENSE["linear"], "low_rank")
    weight = site.module.weight
    assert isinstance(graft, Graft)
    fold(site, graft, model)
    assert site.module.weight is weight and weight.is_leaf and weight.requires_grad
