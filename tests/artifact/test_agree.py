"""The comparison that every compiled form is put to: it notices value, each gradient, shape and NaN."""

import math

import pytest
import torch

from esper.artifact.agree import check_agreement, difference, differences, outcome
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.lower import lower
from esper.errors import KernelFault
from esper.karn.templates import TEMPLATES

GRAPH, WHERE = TEMPLATES["low_rank"].graph, Interface(Kind.TOKENS, 8)
BODY = lower(GRAPH, WHERE)


def right(h, *parameters):
    return BODY.functional(parameters, h)


class Scaled(torch.autograd.Function):
    """Right in forward; the gradient is off by a factor."""

    @staticmethod
    def forward(_ctx, x):
        return x.clone()

    @staticmethod
    def backward(_ctx, gradient):
        return gradient * 1.001


def test_the_lowering_agrees_with_itself():
    assert check_agreement(GRAPH, WHERE, right) == 0.0


@pytest.mark.parametrize(
    ("form", "tensor"),
    [
        (lambda h, a, b: right(h, a, b) * 1.001, "output"),
        (lambda h, a, b: right(Scaled.apply(h), a, b), "input gradient"),
        (lambda h, a, b: right(h, Scaled.apply(a), b), "gradient of down_weight"),
        (lambda h, a, b: right(h, a, Scaled.apply(b)), "gradient of up_weight"),
        (lambda h, a, b: right(h, a, b) + math.nan, "output"),
        (lambda h, a, b: right(h, a, b)[..., None], "output"),
        (lambda h, a, b: right(h, a, b) * (1.001 if h.shape[0] == 1 else 1), "output"),
    ],
)
def test_what_is_off_is_named(form, tensor):
    with pytest.raises(KernelFault, match=f"differs from the reference in its {tensor} by"):
        check_agreement(GRAPH, WHERE, form)


def test_differences_are_relative_and_what_is_zero_in_exact_arithmetic_is_not_blown_up():
    big, nothing = torch.tensor([100.0]), torch.tensor([1e-9])
    assert difference(big + 1, big) == pytest.approx(0.01)
    assert difference(torch.zeros(1), nothing) == 1.0
    assert differences([big, torch.zeros(1)], [big, nothing])[1] < 1e-7
    assert difference(torch.zeros(2), torch.zeros(3)) == math.inf
    assert math.isnan(difference(torch.tensor([math.nan]), big))
    assert difference(torch.zeros(0, 3), torch.zeros(0, 3)) == 0.0


def test_an_outcome_draws_nothing_from_the_process_generator():
    before = torch.get_rng_state()
    outcome(right, WHERE.example(2, 3, generator=torch.Generator().manual_seed(0)), BODY.ordered_parameters())
    assert torch.equal(torch.get_rng_state(), before)
