"""blend_: every implementation against the float64 reference, gated slots, gradients, and what is refused."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.errors import InvalidRequest
from esper.ops import blend, blend_

from .blend_cases import CASES, DTYPES, Case, Inputs, assert_rounded, cases, magnitudes, make, names_of
from .conftest import INTERPRETED
from .in_place_cases import ACTIVE, OFF, ON, in_place, states

KERNELS = ["triton"] if INTERPRETED else ["cpp"]  # see test_blend.py
BACKENDS = KERNELS if INTERPRETED else ["auto", "reference", "cpp"]
NAN = float("nan")
DENSE = [case for case in CASES if case.layout != "strided"]


def patterns(slots: int) -> list[tuple[bool, ...]]:
    """All, none, and one of each."""
    alternating = tuple(slot % 2 == 0 for slot in range(slots))
    return sorted({(True,) * slots, (False,) * slots, alternating, tuple(not takes for takes in alternating)})


def want(inputs: Inputs, taking: tuple[bool, ...]) -> torch.Tensor:
    """The same out of place, over the slots that take part."""
    chosen = [slot for slot, takes in enumerate(taking) if takes]
    if not chosen:
        return inputs.host * 1.0
    spans = tuple(inputs.case.pairs[slot] for slot in chosen)
    part = Inputs(
        replace(inputs.case, spans=spans),
        inputs.host,
        [inputs.seeds[slot] for slot in chosen],
        inputs.alphas[chosen],
        inputs.grad,
    )
    return part.reference()


def assert_right(inputs: Inputs, taking: tuple[bool, ...]) -> None:
    """blend_'s value and every gradient are the float64 reference's, rounded once; with NaN where nothing is read."""
    if inputs.case.convex:
        inputs.alphas.requires_grad_(False)
    exact = inputs.double()
    of_out, of_gradients = magnitudes(inputs)
    with torch.no_grad():
        for seed, takes in zip(inputs.seeds, taking, strict=True):
            if not takes:
                seed.fill_(NAN)
    out, wanted = in_place(inputs, taking), want(exact, taking)
    assert out.dtype == inputs.host.dtype
    assert_rounded("out", out.detach(), wanted.detach(), of_out)
    leaves = [leaf for leaf in inputs.leaves if leaf.requires_grad]
    got = torch.autograd.grad(out, leaves, inputs.grad)
    right = torch.autograd.grad(
        wanted, [leaf for leaf in exact.leaves if leaf.requires_grad], exact.grad, materialize_grads=True
    )
    names = ["d_host", *(f"d_seeds[{s}]" for s in range(len(inputs.seeds))), "d_alphas"]
    for name, leaf, g, w, m in zip(names, leaves, got, right, of_gradients, strict=False):
        assert g.dtype == leaf.dtype, name
        assert_rounded(name, g, w, m, sum_of=inputs.host.numel() if name == "d_alphas" else 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=names_of(DTYPES))
@pytest.mark.parametrize("case", DENSE, ids=names_of(DENSE))
@pytest.mark.parametrize("backend", BACKENDS)
def test_value_and_gradients_are_the_references(using, backend, case, dtype):
    with using(backend):
        for taking in patterns(len(case.pairs)):
            assert_right(make(case, dtype), taking)


@pytest.mark.parametrize("dtype", DTYPES, ids=names_of(DTYPES))
@pytest.mark.parametrize("backend", KERNELS)
@given(case=cases().filter(lambda case: case.layout != "strided"), data=st.data())
@settings(max_examples=20 if INTERPRETED else 60)
def test_a_kernel_is_right_whatever_the_shape(using, backend, dtype, case, data):
    taking = tuple(data.draw(st.booleans()) for _ in case.pairs)
    with using(backend):
        assert_right(make(case, dtype), taking)


MANY = [
    Case((3, 70_001), -1),
    Case((3, 20_000), -1, ((0, 19_999), (3, 20_000))),
    Case((900, 37), -1, ((5, 20), (20, 37)), convex=True),
    Case((2, 5, 90, 91), 1, ((1, 4),), convex=True),
    Case((2, 5, 90, 91), 1, layout="channels_last"),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=names_of(DTYPES))
@pytest.mark.parametrize("case", MANY, ids=str)
def test_cpp_is_right_over_many_tiles(using, case, dtype):
    with using("cpp"):
        for taking in patterns(len(case.pairs)):
            assert_right(make(case, dtype), taking)


@pytest.mark.parametrize("dtype", DTYPES, ids=names_of(DTYPES))
@pytest.mark.parametrize("convex", [False, True], ids=["residual", "convex"])
@pytest.mark.parametrize("backend", KERNELS)
def test_it_gives_blends_result_bit_for_bit(using, backend, convex, dtype):
    inputs = make(Case((7, 40), -1, ((0, 10), (10, 40)), convex=convex), dtype)
    host, seeds, alphas = inputs.host.detach(), [s.detach() for s in inputs.seeds], inputs.alphas.detach()
    with using(backend):
        out = blend(host, seeds, alphas, inputs.case.spans, channel_dim=1, convex=convex)
        assert (
            blend_(host, seeds, alphas, states(True, True), ACTIVE, inputs.case.spans, channel_dim=1, convex=convex)
            is host
        )
    assert torch.equal(host, out)


@pytest.mark.parametrize("backend", BACKENDS)
def test_untouched_memory_keeps_its_nan_and_a_dormant_seed_is_not_read(using, backend):
    host, before = torch.full((3, 9), NAN), torch.full((3, 9), NAN)
    host[:, 2:4] = before[:, 2:4] = 1.0
    seeds = [torch.full((3, 3), NAN), torch.ones(3, 2), torch.full((3, 4), NAN)]
    spans = [(1, 4), (2, 4), (5, 9)]
    with using(backend):
        blend_(host, seeds, torch.tensor([1.0, 0.5, 1.0]), states(False, True, False), ACTIVE, spans, channel_dim=1)
    before[:, 2:4] = 1.5
    assert torch.equal(host.view(torch.int32), before.view(torch.int32))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_gradient_does_not_reach_a_seed_that_took_no_part(using, backend):
    inputs = make(Case((2, 6), -1, ((0, 3), (3, 6))))
    inputs.grad.fill_(NAN)
    with using(backend):
        got = torch.autograd.grad(in_place(inputs, (True, False)), inputs.leaves, inputs.grad)
    assert got[1].isnan().all() and got[2].eq(0).all() and got[3][1] == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_which_states_take_part_is_read_when_it_runs(using, backend):
    host, seed, state = torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([200], dtype=torch.uint8)
    with using(backend):
        for value, sum_ in ((200, 0), (63, 0), (OFF, 0), (62, 6), (6, 12), (ON, 18)):
            state.fill_(value)
            blend_(host, [seed], torch.ones(1), state, ACTIVE, channel_dim=1)
            assert host.sum() == sum_


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("case", [CASES[4], CASES[9]], ids=str)
def test_it_differentiates_twice(using, backend, case):
    inputs = make(case, torch.float64)
    alphas = inputs.alphas.detach().requires_grad_(not case.convex)
    taking = tuple(slot != 1 for slot in range(len(inputs.seeds)))

    def run(host, alphas, *seeds):
        made = replace_inputs(inputs, host, alphas, seeds)
        return in_place(made, taking)

    with using(backend):
        assert torch.autograd.gradcheck(run, (inputs.host, alphas, *inputs.seeds))
        assert torch.autograd.gradgradcheck(run, (inputs.host, alphas, *inputs.seeds))


def replace_inputs(inputs: Inputs, host, alphas, seeds) -> Inputs:
    return Inputs(inputs.case, host, list(seeds), alphas, inputs.grad)


def test_results_do_not_depend_on_the_number_of_threads(using):
    case = Case((11, 30_011), -1, ((0, 20_000), (20_000, 30_000)))
    kept = torch.get_num_threads()
    with using("cpp"):
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(in_place(make(case), (True, True)).detach())
    torch.set_num_threads(kept)
    assert all(torch.equal(results[0], other) for other in results[1:])


# Autograd's graph


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_later_backward_through_a_saved_host_raises(using, backend):
    x = torch.randn(2, 3, requires_grad=True)
    host = x * 1.0
    square = host * host
    with using(backend), torch.no_grad():
        blend_(host, [torch.ones(2, 3)], torch.ones(1), states(True), ACTIVE, channel_dim=1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.sum().backward()


def test_a_view_is_written_through_and_its_base_has_the_gradient(using):
    x, seed = torch.randn(2, 6, requires_grad=True), torch.randn(2, 3, 2, requires_grad=True)
    with using("cpp"):
        base = x * 2
        blend_(base.view(2, 3, 2), [seed], torch.tensor([0.5]), states(True), ACTIVE, channel_dim=1)
        assert torch.equal(base, 2 * x + 0.5 * seed.view(2, 6))
        d_x, d_seed = torch.autograd.grad(base.sum(), (x, seed))
    assert d_x.eq(2).all() and d_seed.eq(0.5).all()


def test_a_host_without_a_gradient_takes_its_seeds(using):
    seed = torch.randn(2, 3, requires_grad=True)
    with using("cpp"):
        out = blend_(torch.zeros(2, 3), [seed], torch.tensor([0.5]), states(True), ACTIVE, channel_dim=1)
    assert torch.autograd.grad(out.sum(), seed)[0].eq(0.5).all()


class KeepsItsOutput(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        out = x.exp()
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0]


KEEPING = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softmax": lambda x: x.softmax(-1),
    "logsoftmax": lambda x: x.log_softmax(-1),
    "exp": torch.exp,
    "sqrt": lambda x: x.square().sqrt(),
    "linalgvectornorm": lambda x: torch.linalg.vector_norm(x, dim=0, keepdim=True),
    "relu ": lambda x: torch.relu(x).view(-1, 6),
    "relu  ": lambda x: (x * 1).relu_(),
    "leakyrelu": lambda x: torch.nn.functional.leaky_relu_(x * 1),
    "keepsitsoutput": KeepsItsOutput.apply,
}


@pytest.mark.parametrize("entry", ["function", "operator"])
@pytest.mark.parametrize("name", KEEPING)
def test_an_op_that_keeps_its_output_is_named_and_nothing_is_written(using, name, entry):
    host = KEEPING[name](torch.randn(3, 6, requires_grad=True))
    before = host.detach().clone()
    seed = torch.ones_like(before)
    with using("cpp"), pytest.raises(InvalidRequest, match=f"blend_: host was made by {name.strip()}, which keeps its"):
        if entry == "function":
            blend_(host, [seed], torch.ones(1), states(True), ACTIVE, channel_dim=1)
        else:
            torch.ops.esper.blend_(host, [seed], torch.ones(1), states(True), ACTIVE, [0, 6], 1, False)
    assert torch.equal(host, before)


@pytest.mark.parametrize(
    "op",
    [
        torch.nn.functional.gelu,
        torch.nn.functional.silu,
        lambda x: torch.nn.functional.layer_norm(x, (6,)),
        lambda x: x @ torch.randn(6, 6),
    ],
)
def test_an_op_that_does_not_keep_its_output_is_right(using, op):
    x, seed = torch.randn(3, 6, requires_grad=True), torch.randn(3, 6)
    torch.manual_seed(0)
    with using("cpp"):
        torch.manual_seed(0)
        out = blend_(op(x), [seed], torch.tensor([0.5]), states(True), ACTIVE, channel_dim=1)
        torch.manual_seed(0)
        plain = op(x) + 0.5 * seed
    grad = torch.randn(3, 6)
    torch.testing.assert_close(torch.autograd.grad(out, x, grad), torch.autograd.grad(plain, x, grad))


def test_an_output_whose_graph_is_gone_may_be_overwritten(using):
    x = torch.randn(2, 6, requires_grad=True)
    host = torch.relu(x)
    host.sum().backward()
    with using("cpp"):
        blend_(host, [torch.ones(2, 6)], torch.ones(1), states(True), ACTIVE, channel_dim=1)
    assert torch.equal(host, x.relu() + 1)
