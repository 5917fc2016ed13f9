"""Which modules targets name, and which models and modules are refused before any probe."""

import re

import pytest
import torch
from torch import nn

from esper.errors import WrapRefused
from esper.host.sites import select
from tests import builders


def names(model, targets):
    return [name for name, _ in select(model, targets)]


def test_none_stands_for_linear_and_convolutions():
    assert names(builders.conv_net(norm=True), None) == ["0", "4", "7"]


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (nn.Tanh, ["1", "3"]),
        ([nn.Tanh, "0"], ["0", "1", "3"]),
        ((nn.Tanh, "0"), ["0", "1", "3"]),
        ("4", ["4"]),
        ("[02]", ["0", "2"]),
        (lambda name, module: isinstance(module, nn.Linear) and module.out_features == 3, ["4"]),
        (["4", "0"], ["0", "4"]),  # in the model's order
        ({nn.Linear}, ["0", "2", "4"]),
    ],
)
def test_types_patterns_callables_and_lists_of_them(targets, expected):
    assert names(builders.perceptron(), targets) == expected


def test_patterns_match_whole_qualified_names():
    model = nn.ModuleDict({"encoder": builders.perceptron(), "decoder": builders.perceptron()})
    assert names(model, "encoder.*") == [f"encoder.{i}" for i in range(5)]
    assert names(model, "*.0") == ["encoder.0", "decoder.0"]
    with pytest.raises(WrapRefused):
        select(model, "ENCODER.0")


def test_a_name_that_looks_like_a_pattern_still_names_its_module():
    model = nn.ModuleDict({"block[0]": nn.Linear(2, 2), "block0": nn.Linear(2, 2)})
    assert names(model, "block[0]") == ["block[0]", "block0"]


def test_a_subclass_is_of_its_base_type():
    class Special(nn.Linear):
        pass

    assert names(nn.Sequential(Special(2, 2)), nn.Linear) == ["0"]


@pytest.mark.parametrize("targets", ["nothing.*", nn.Conv2d, [], lambda name, module: False])
def test_nothing_matched_lists_what_could_have_been_named(targets):
    with pytest.raises(WrapRefused) as refused:
        select(builders.perceptron(), targets)
    assert "0 (Linear), 1 (Tanh), 2 (Linear), 3 (Tanh), 4 (Linear)" in str(refused.value)


def test_the_target_that_matched_nothing_is_spelled_out():
    with pytest.raises(WrapRefused, match=re.escape("no layer matches Conv2d, enc.*; this model has")):
        select(builders.perceptron(), [nn.Conv2d, "enc.*"])
    with pytest.raises(WrapRefused, match="no layer matches no target"):
        select(builders.perceptron(), [])


def test_a_long_list_of_candidates_is_cut_with_its_length():
    with pytest.raises(WrapRefused, match="and 5 more"):
        select(nn.Sequential(*[nn.Linear(1, 1) for _ in range(25)]), "x")


def test_a_model_of_unknown_layers_offers_its_blocks():
    class Own(nn.Module):
        pass

    with pytest.raises(WrapRefused, match=r"name a block as a whole: inner \(Own\)"):
        select(nn.ModuleDict({"inner": Own()}), None)
    with pytest.raises(WrapRefused, match="it has no submodule"):
        select(Own(), None)


def test_the_model_itself_is_no_site():
    assert "" not in names(nn.Sequential(nn.Linear(1, 1)), "*")


@pytest.mark.parametrize("inside", [False, True])
def test_data_parallel_is_refused_by_name(inside):
    parallel = nn.DataParallel(builders.perceptron())
    model = nn.Sequential(parallel) if inside else parallel
    with pytest.raises(WrapRefused, match=r"nn\.DataParallel.*DistributedDataParallel") as refused:
        select(model, nn.Linear)
    assert str(refused.value).startswith("0 is" if inside else "the model is")


def test_script_modules_are_refused_by_name():
    scripted = torch.jit.script(nn.Linear(2, 2))
    with pytest.raises(WrapRefused, match="0 is a ScriptModule"):
        select(nn.Sequential(scripted), "0")
    with pytest.raises(WrapRefused, match="the model is a ScriptModule"):
        select(torch.jit.script(nn.Sequential(nn.Linear(2, 2))), nn.Linear)


def test_a_forward_of_its_own_is_refused_by_name():
    model = builders.perceptron()
    model[2].forward = lambda x: x
    with pytest.raises(WrapRefused, match=r"2 already has a forward of its own.*esper\.unwrap"):
        select(model, nn.Linear)
    assert names(model, "0") == ["0"]  # others can still be chosen


def test_a_module_under_two_names_is_one_site_under_the_first():
    shared = nn.Linear(2, 2)
    assert names(nn.ModuleDict({"a": shared, "b": shared}), nn.Linear) == ["a"]
