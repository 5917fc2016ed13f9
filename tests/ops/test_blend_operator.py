"""The registered operator: opcheck, compilation, functorch, autocast, and what differentiating it does."""

import warnings
from collections.abc import Iterator
from typing import ClassVar

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from esper.ops import blend, blend_reference

from .blend_cases import Case, make

SOME = [
    Case((3, 5), -1),
    Case((3, 5), -1, convex=True),
    Case((2, 3, 6), -1, ((1, 5), (0, 3))),
    Case((2, 6, 2, 3), 1, ((0, 2), (4, 6)), convex=True, layout="channels_last"),
    Case((3, 4, 6), -1, ((1, 5),), layout="strided"),
    Case((2, 8, 3, 4), 1, convex=True, layout="mixed"),
]


@pytest.fixture(autouse=True)
def clean_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    with warnings.catch_warnings():
        # raised inside torch by its own tools
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.")
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("case", SOME, ids=str)
def test_opcheck(using, backend, case):
    inputs = make(case)
    host, seeds, alphas, *call = inputs.flat()
    sums = [seed.detach() for seed in seeds]
    under = host.detach() if case.convex else None
    with using(backend):
        torch.library.opcheck(torch.ops.esper.blend.default, inputs.flat())
        torch.library.opcheck(
            torch.ops.esper.blend_backward.default, (inputs.grad, under, sums, alphas.detach(), *call)
        )
        torch.library.opcheck(torch.ops.esper.blend_backward.default, (inputs.grad, None, [], alphas.detach(), *call))


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("case", SOME, ids=str)
def test_the_operator_has_the_functions_gradients(using, backend, case):
    inputs = make(case)
    with using(backend):
        out = torch.ops.esper.blend(*inputs.flat())
        got = torch.autograd.grad(out, inputs.leaves, inputs.grad)
    want = torch.autograd.grad(inputs.reference(), inputs.leaves, inputs.grad)
    torch.testing.assert_close(got, want)


class Grafted(torch.nn.Module):
    """A site with neighbours, as a compiler sees it."""

    def __init__(self, convex: bool) -> None:
        super().__init__()
        self.host, self.seed, self.convex = torch.nn.Linear(6, 8), torch.nn.Linear(8, 8), convex
        self.register_buffer("alphas", torch.tensor([0.25]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.nn.functional.gelu(self.host(x))
        return torch.relu(blend(h, [self.seed(h)], self.alphas, channel_dim=-1, convex=self.convex))


def step(module: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    module.zero_grad()
    out = module(x)
    out.square().sum().backward()
    return [out.detach(), *(p.grad for p in module.parameters())]


@pytest.fixture
def as_if_first():
    """Nothing that earlier tests compiled, or told the compiler, counts."""
    torch.compiler.reset()
    with torch.compiler.set_stance("default"):
        yield


@pytest.mark.usefixtures("as_if_first")
@pytest.mark.parametrize("convex", [False, True], ids=["residual", "convex"])
@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_site_is_one_graph_and_equals_the_eager_one(compiler, convex):
    torch.manual_seed(0)
    module, x = Grafted(convex), torch.randn(4, 6)
    compiled = torch.compile(module, backend=compiler, fullgraph=True)
    torch.testing.assert_close(step(compiled, x), step(module, x))
    module.alphas.fill_(0.75)  # a ramp neither recompiles nor is baked in
    with torch.compiler.set_stance("fail_on_recompile"):
        torch.testing.assert_close(step(compiled, x), step(module, x))


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_chunk_equals_the_eager_one(compiler):
    inputs = make(Case((2, 6, 3, 3), 1, ((0, 4), (2, 6))))

    def run(host, first, second, alphas):
        return blend(host, [first, second], alphas, [(0, 4), (2, 6)], channel_dim=1)

    got = torch.compile(run, backend=compiler, fullgraph=True)(*inputs.leaves)
    torch.testing.assert_close(got, inputs.reference())
    torch.testing.assert_close(
        torch.autograd.grad(got, inputs.leaves, inputs.grad),
        torch.autograd.grad(inputs.reference(), inputs.leaves, inputs.grad),
    )


def test_the_operator_itself_compiles():
    inputs = make(SOME[3])
    compiled = torch.compile(torch.ops.esper.blend, backend="aot_eager", fullgraph=True)
    got = torch.autograd.grad(compiled(*inputs.flat()), inputs.leaves, inputs.grad)
    torch.testing.assert_close(got, torch.autograd.grad(inputs.reference(), inputs.leaves, inputs.grad))


def test_export_leaves_no_operator_of_ours_behind():
    """An exported site loads with torch alone."""
    program = torch.export.export(Grafted(convex=False), (torch.randn(4, 6),))
    targets = {str(node.target) for node in program.graph.nodes}
    assert not any("esper" in target for target in targets)


IN_DIMS = [(0, 0, None), (1, 0, 0), (None, 0, None), (0, None, 0)]
SPAN = (1, 4)


def batched(in_dims: tuple[int | None, ...]) -> list[torch.Tensor]:
    """host [2, 6], seed [2, 3] and alphas [1], with a batch of 3 where in_dims says."""
    sizes = ((2, 6), (2, 3), (1,))
    made = [
        torch.randn(size) if dim is None else torch.randn(3, *size).movedim(0, dim)
        for size, dim in zip(sizes, in_dims, strict=True)
    ]
    return [t.requires_grad_() for t in made]


def one_by_one(in_dims, arguments, convex) -> torch.Tensor:
    """What vmap must give, by a loop."""
    rows = []
    for b in range(3):
        chosen = (t if dim is None else t.select(dim, b) for t, dim in zip(arguments, in_dims, strict=True))
        host, seed, alphas = chosen
        rows.append(blend_reference(host, [seed], alphas, [*SPAN], 1, convex))
    return torch.stack(rows)


@pytest.mark.parametrize("convex", [False, True], ids=["residual", "convex"])
@pytest.mark.parametrize("backend", ["auto", "cpp"])
@pytest.mark.parametrize("in_dims", IN_DIMS, ids=str)
def test_vmap(using, backend, convex, in_dims):
    arguments = batched(in_dims)
    with using(backend):
        got = torch.vmap(lambda h, s, a: blend(h, [s], a, [SPAN], channel_dim=-1, convex=convex), in_dims)(*arguments)
    want = one_by_one(in_dims, arguments, convex)
    torch.testing.assert_close(got, want)
    grad = torch.randn_like(want)
    torch.testing.assert_close(torch.autograd.grad(got, arguments, grad), torch.autograd.grad(want, arguments, grad))


@pytest.mark.parametrize("convex", [False, True], ids=["residual", "convex"])
@pytest.mark.parametrize("in_dims", IN_DIMS, ids=str)
def test_vmap_of_the_operator(using, convex, in_dims):
    arguments = [t.detach() for t in batched(in_dims)]
    with using("cpp"):
        got = torch.vmap(lambda h, s, a: torch.ops.esper.blend(h, [s], a, [*SPAN], 1, convex), in_dims)(*arguments)
    torch.testing.assert_close(got, one_by_one(in_dims, arguments, convex))


def test_vmap_of_the_operators_backward(using):
    """d_alphas is a sum over one example, not over the batch."""
    grads, host, seed, alphas = torch.randn(3, 2, 6), torch.randn(2, 6), torch.randn(2, 6), torch.tensor([0.3])

    def backward(grad):
        return torch.ops.esper.blend_backward(grad, host, [seed], alphas, [0, 6], 1, True)

    with using("cpp"):
        got = torch.vmap(backward)(grads)
        want = [torch.stack(made) for made in zip(*(backward(grad) for grad in grads), strict=True)]
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("backend", ["auto", "cpp"])
def test_per_sample_gradients(using, backend):
    host, seed, alphas = torch.randn(5, 2, 6), torch.randn(5, 2, 6), torch.tensor([0.3])

    def ours(alphas, host, seed):
        return blend(host, [seed], alphas, channel_dim=-1, convex=True).square().sum()

    def plain(alphas, host, seed):
        return (host + alphas * (seed - host)).square().sum()

    with using(backend):
        got = torch.vmap(torch.func.grad(ours), in_dims=(None, 0, 0))(alphas, host, seed)
    torch.testing.assert_close(got, torch.vmap(torch.func.grad(plain), in_dims=(None, 0, 0))(alphas, host, seed))


@pytest.mark.parametrize("entry", ["function", "operator"])
@pytest.mark.parametrize("backend", ["auto", "cpp"])
def test_under_autocast_a_seed_takes_its_hosts_dtype(using, backend, entry):
    host = torch.randn(4, 6).bfloat16().requires_grad_()
    seed, alphas = torch.randn(4, 6, requires_grad=True), torch.tensor([0.3], requires_grad=True)
    with using(backend), torch.autocast("cpu", dtype=torch.bfloat16):
        if entry == "function":
            out = blend(host, [seed], alphas, channel_dim=-1)
        else:
            out = torch.ops.esper.blend(host, [seed], alphas, [0, 6], 1, False)
        assert torch.is_autocast_enabled("cpu")
    assert out.dtype == torch.bfloat16
    d_host, d_seed, d_alphas = torch.autograd.grad(out.float().sum(), (host, seed, alphas))
    assert (d_host.dtype, d_seed.dtype, d_alphas.dtype) == (torch.bfloat16, torch.float32, torch.float32)


def test_autocast_leaves_a_float32_site_float32(using):
    with using("cpp"), torch.autocast("cpu", dtype=torch.bfloat16):
        out = blend(torch.randn(4, 6), [torch.randn(4, 6).bfloat16()], torch.ones(1), channel_dim=-1)
    assert out.dtype == torch.float32


def test_nothing_reads_a_value(using):
    """Fake tensors have none: an .item() would raise."""
    with using("cpp"), FakeTensorMode():
        host, seeds, alphas = torch.randn(2, 6), [torch.randn(2, 3)], torch.ones(1)
        assert blend(host, seeds, alphas, [(3, 6)], channel_dim=-1).shape == (2, 6)


def test_a_subclass_goes_through_the_operator(using):
    class Counting(torch.Tensor):
        seen: ClassVar[list[str]] = []

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            cls.seen.append(str(function))
            return super().__torch_function__(function, types, args, kwargs or {})

    host = torch.randn(2, 6).as_subclass(Counting)
    with using("cpp"):
        blend(host, [torch.randn(2, 6)], torch.ones(1), channel_dim=-1)
    assert any("blend" in name for name in Counting.seen)
