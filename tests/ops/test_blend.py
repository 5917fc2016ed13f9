"""blend's numbers: every implementation against the float64 reference, value and every gradient."""

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings

from esper.ops import blend, blend_reference, layout

from .blend_cases import CASES, DTYPES, Case, assert_right, cases, make, names_of
from .conftest import INTERPRETED

# Triton interprets its kernels only if told so before it is imported: test_triton_interpreted.py runs this file again.
KERNELS = ["triton"] if INTERPRETED else ["cpp"]
BACKENDS = KERNELS if INTERPRETED else ["auto", "reference", "cpp"]


@pytest.mark.parametrize("dtype", DTYPES, ids=names_of(DTYPES))
@pytest.mark.parametrize("case", CASES, ids=names_of(CASES))
@pytest.mark.parametrize("backend", BACKENDS)
def test_value_and_gradients_are_the_references(using, backend, case, dtype):
    with using(backend):
        assert_right(make(case, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=names_of(DTYPES))
@pytest.mark.parametrize("backend", KERNELS)
@given(case=cases())
@settings(max_examples=20 if INTERPRETED else 60)
def test_a_kernel_is_right_whatever_the_shape(using, backend, dtype, case):
    with using(backend):
        assert_right(make(case, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=names_of(DTYPES))
@pytest.mark.parametrize(
    "case",
    [
        Case((3, 70_001), -1),  # several tiles to a row
        Case((3, 20_000), -1, ((0, 19_999), (3, 20_000))),
        Case((900, 37), -1, ((5, 20), (20, 37)), convex=True),  # several rows to a tile
        Case((2, 5, 90, 91), 1, ((1, 4),), convex=True),
        Case((2, 5, 90, 91), 1, layout="channels_last"),
    ],
    ids=str,
)
def test_cpp_is_right_over_many_tiles(using, case, dtype):
    with using("cpp"):
        assert_right(make(case, dtype))


def test_the_reference_is_the_formula():
    host = torch.tensor([[1.0, 2.0, 4.0]])
    seeds, alphas = [torch.tensor([[10.0, 20.0]]), torch.tensor([[100.0]])], torch.tensor([0.5, 0.25])
    assert blend_reference(host, seeds, alphas, [0, 2, 1, 2], 1, False).tolist() == [[6.0, 37.0, 4.0]]
    assert blend_reference(host, seeds, alphas, [0, 2, 2, 3], 1, True).tolist() == [[5.5, 11.0, 28.0]]


SMALL = [case for case in CASES if 0 < math.prod(case.shape) <= 200]  # gradcheck takes no empty output


@pytest.mark.parametrize("case", SMALL, ids=names_of(SMALL))
def test_the_reference_differentiates_twice(case):
    inputs = make(case, torch.float64)

    def reference(host, alphas, *seeds):
        return blend_reference(host, seeds, alphas, *inputs.flat()[3:])

    assert torch.autograd.gradcheck(reference, (inputs.host, inputs.alphas, *inputs.seeds))
    assert torch.autograd.gradgradcheck(reference, (inputs.host, inputs.alphas, *inputs.seeds))


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("case", [CASES[3], CASES[4], CASES[9]], ids=str)
def test_blend_differentiates_twice(using, backend, case):
    inputs = make(case, torch.float64)

    def run(host, alphas, *seeds):
        return blend(host, seeds, alphas, case.spans, channel_dim=case.channel_dim, convex=case.convex)

    with using(backend):
        assert torch.autograd.gradcheck(run, (inputs.host, inputs.alphas, *inputs.seeds))
        assert torch.autograd.gradgradcheck(run, (inputs.host, inputs.alphas, *inputs.seeds))


@pytest.fixture
def threads() -> Iterator[None]:
    kept = torch.get_num_threads()
    yield
    torch.set_num_threads(kept)


def results(inputs) -> list[torch.Tensor]:
    out = inputs.blend()
    return [out, *torch.autograd.grad(out, inputs.leaves, inputs.grad)]


@pytest.mark.parametrize("convex", [False, True], ids=["residual", "convex"])
def test_results_do_not_depend_on_the_number_of_threads(using, threads, convex):
    inputs = make(Case((11, 30_011), -1, ((0, 20_000), (20_000, 30_000)), convex=convex))
    with using("cpp"):
        torch.set_num_threads(1)
        want = results(inputs)
        for count in (2, 3):
            torch.set_num_threads(count)
            assert all(torch.equal(g, w) for g, w in zip(results(inputs), want, strict=True))


@pytest.mark.parametrize("backend", KERNELS)
def test_two_runs_are_bit_equal(using, backend):
    inputs = make(Case((5, 4_099), -1, ((0, 3_000), (1_000, 4_099))))
    with using(backend):
        assert all(torch.equal(a, b) for a, b in zip(results(inputs), results(inputs), strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=names_of(DTYPES))
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("convex", [False, True], ids=["residual", "convex"])
def test_the_ends_of_a_ramp_are_exact(using, backend, convex, dtype):
    inputs = make(Case((3, 700), -1, convex=convex), dtype)
    host, seed = inputs.host.detach(), inputs.seeds[0].detach() * 1e3
    with using(backend):
        at_0 = blend(host, [seed], torch.zeros_like(inputs.alphas), channel_dim=-1, convex=convex)
        at_1 = blend(host, [seed], torch.ones_like(inputs.alphas), channel_dim=-1, convex=convex)
    assert torch.equal(at_0, host)
    if convex:
        assert torch.equal(at_1, seed)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy, inside Triton's interpreter
@pytest.mark.parametrize("backend", KERNELS)
def test_a_nan_stays_where_it_is(using, backend):
    inputs = make(Case((2, 12), -1, ((0, 4), (6, 9))))
    with torch.no_grad():
        inputs.seeds[0].fill_(float("nan"))
        inputs.alphas[1] = float("inf")
    with using(backend), torch.no_grad():
        out = inputs.blend()
    assert out[:, :4].isnan().all()
    assert torch.equal(out[:, 4:6], inputs.host[:, 4:6])
    assert torch.equal(out[:, 9:], inputs.host[:, 9:])


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("layout_name", ["contiguous", "channels_last", "transposed"])
def test_a_dense_tensor_is_not_copied(using, monkeypatch, backend, layout_name):
    inputs = make(Case((2, 8, 3, 5), 1, ((0, 3), (3, 8)), layout=layout_name))
    monkeypatch.setattr(layout, "_copy", lambda *_: pytest.fail("a dense tensor was copied"))
    with using(backend):
        out, *_ = results(inputs)
    assert out.stride() == inputs.host.stride()


@pytest.mark.parametrize("convex", [False, True], ids=["residual", "convex"])
def test_nothing_but_alphas_is_kept_where_alphas_are_not_trained(using, convex):
    inputs = make(Case((4, 6), -1, convex=convex))
    inputs.alphas.requires_grad_(False)
    kept = []
    with using("cpp"), torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        out = inputs.blend()
        got = torch.autograd.grad(out, inputs.leaves[:-1], inputs.grad)
    assert kept == [inputs.alphas.shape]
    want = torch.autograd.grad(inputs.reference(), inputs.leaves[:-1], inputs.grad)
    torch.testing.assert_close(got, want)


def test_an_expanded_gradient_is_accepted(using):
    inputs = make(Case((2, 8, 3, 4), 1, ((1, 4),), layout="channels_last"))
    with using("cpp"):
        got = torch.autograd.grad(inputs.blend().sum(), inputs.leaves)
    torch.testing.assert_close(got, torch.autograd.grad(inputs.reference().sum(), inputs.leaves))


def test_alphas_may_be_a_list(using):
    inputs = make(Case((4, 6), -1, ((0, 3), (3, 6))))
    alphas = [torch.tensor(0.3, requires_grad=True), torch.tensor([0.6], requires_grad=True)]
    with using("cpp"):
        out = blend(inputs.host, inputs.seeds, alphas, inputs.case.spans, channel_dim=-1)
    want = blend_reference(inputs.host, inputs.seeds, torch.tensor([0.3, 0.6]), [0, 3, 3, 6], 1, False)
    torch.testing.assert_close(out, want)
    assert all(g is not None for g in torch.autograd.grad(out.sum(), alphas))


def test_a_ramp_is_an_update_in_place(using):
    """The op reads alphas when it runs: nothing about their value is cached."""
    inputs = make(Case((2, 3), -1))
    alphas = torch.zeros(1)
    with using("cpp"), torch.no_grad():
        assert torch.equal(blend(inputs.host, inputs.seeds, alphas, channel_dim=-1), inputs.host)
        alphas.fill_(1.0)
        assert torch.equal(blend(inputs.host, inputs.seeds, alphas, channel_dim=-1), inputs.host + inputs.seeds[0])
