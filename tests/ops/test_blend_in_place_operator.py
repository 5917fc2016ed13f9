"""The registered operator blend_: opcheck, compilation, vmap, autocast."""

import math
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from esper.errors import InvalidRequest
from esper.ops import blend_

from .blend_cases import Case, make
from .in_place_cases import ACTIVE, in_place, states

NAN = float("nan")
HOST, SEED, ONE, GATE, SPAN = torch.zeros(2, 8), torch.zeros(2, 8), torch.ones(1), states(True), [0, 8]


def call(host, seeds):
    return blend_(host, seeds, ONE, GATE, ACTIVE, channel_dim=1)


SOME = [
    Case((3, 5), -1),
    Case((3, 5), -1, convex=True),
    Case((2, 3, 6), -1, ((1, 5), (0, 3))),
    Case((2, 6, 2, 3), 1, ((0, 2), (4, 6)), convex=True, layout="channels_last"),
]


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("trained", [False, True], ids=["plain", "seeds trained"])
@pytest.mark.parametrize("case", SOME, ids=str)
def test_opcheck(using, backend, trained, case):
    host, seeds, alphas, *rest = make(case).flat()
    seeds = [seed.detach().requires_grad_(trained) for seed in seeds]
    gate = states(*(slot == 0 for slot in range(len(seeds))))
    with using(backend), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.")
        arguments = (host.detach(), seeds, alphas.detach(), gate, ACTIVE, *rest)
        torch.library.opcheck(torch.ops.esper.blend_.default, arguments)


def test_the_operator_has_the_functions_gradients(using):
    inputs = make(SOME[2])
    with using("cpp"):
        host = inputs.host * 1.0
        torch.ops.esper.blend_(host, inputs.seeds, inputs.alphas, states(False, True), ACTIVE, *inputs.flat()[3:])
        got = torch.autograd.grad(host, inputs.leaves, inputs.grad)
        right = torch.autograd.grad(in_place(inputs, (False, True)), inputs.leaves, inputs.grad)
    torch.testing.assert_close(got, right)


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_it_is_one_graph_equals_the_eager_one_and_passes_over_a_dormant_nan(compiler):
    inputs = make(Case((2, 6, 3), 1, ((0, 4), (4, 6))))
    with torch.no_grad():
        inputs.seeds[1].fill_(NAN)
    gate = states(True, False)

    def run(host, first, second, alphas, gate):
        return blend_(host * 1.0, [first, second], alphas, gate, ACTIVE, [(0, 4), (4, 6)], channel_dim=1)

    torch.compiler.reset()
    with torch.compiler.set_stance("default"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.")
        got = torch.compile(run, backend=compiler, fullgraph=True)(*inputs.leaves, gate)
    right = in_place(inputs, (True, False))
    torch.testing.assert_close(got, right)
    torch.testing.assert_close(
        torch.autograd.grad(got, inputs.leaves, inputs.grad)[:2],
        torch.autograd.grad(right, inputs.leaves, inputs.grad)[:2],
    )
    torch.compiler.reset()


@pytest.mark.parametrize("entry", ["function", "operator"])
@pytest.mark.parametrize(
    "in_dims", [(0, 0, None, None), (1, None, None, None), (0, 0, 0, None), (0, 0, None, 0)], ids=str
)
def test_vmap(using, entry, in_dims):
    sizes = ((2, 6), (2, 3), (1,))
    host, seed, alphas = (
        torch.randn(s) if d is None else torch.randn(3, *s).movedim(0, d) for s, d in zip(sizes, in_dims, strict=False)
    )
    gate = states(True) if in_dims[3] is None else states(True, False, True).reshape(3, 1)
    rows = []
    for b in range(3):
        one = [t if d is None else t.select(d, b) for t, d in zip((host, seed, alphas, gate), in_dims, strict=True)]
        rows.append(blend_(one[0].clone(), [one[1]], *one[2:], ACTIVE, [(1, 4)], channel_dim=1))

    def run(host, seed, alphas, gate):
        if entry == "function":
            blend_(host, [seed], alphas, gate, ACTIVE, [(1, 4)], channel_dim=1)
        else:
            torch.ops.esper.blend_(host, [seed], alphas, gate, ACTIVE, [1, 4], 1, False)
        return host

    with using("cpp"):
        got = torch.vmap(run, in_dims)(host, seed, alphas, gate)
    torch.testing.assert_close(got, torch.stack(rows))


def test_vmap_of_the_operator_needs_a_batch_of_hosts():
    with pytest.raises(InvalidRequest, match="blend_: host has no batch"):
        torch.vmap(lambda seed: torch.ops.esper.blend_(HOST, [seed], ONE, GATE, ACTIVE, SPAN, 1, False))(
            torch.zeros(3, 2, 8)
        )


@pytest.mark.parametrize("entry", ["function", "operator"])
def test_under_autocast_a_seed_takes_its_hosts_dtype(using, entry):
    host, seed = torch.zeros(2, 8, dtype=torch.bfloat16), torch.randn(2, 8, requires_grad=True)
    with using("cpp"), torch.autocast("cpu", dtype=torch.bfloat16):
        if entry == "function":
            call(host, [seed])
        else:
            torch.ops.esper.blend_(host, [seed], ONE, GATE, ACTIVE, SPAN, 1, False)
    assert torch.equal(host, seed.bfloat16())
    assert torch.autograd.grad(host.float().sum(), seed)[0].dtype == torch.float32


def test_nothing_reads_a_value(using):
    """Fake tensors have none: an .item() would raise."""
    with using("cpp"), FakeTensorMode():
        host = torch.randn(2, 6)
        gate = torch.ones(1, dtype=torch.uint8)
        assert blend_(host, [torch.randn(2, 3)], torch.ones(1), gate, ACTIVE, [(3, 6)], channel_dim=-1) is host


def test_nothing_is_drawn_where_there_is_no_element():
    assert math.prod(call(torch.zeros(0, 8), [torch.zeros(0, 8)]).shape) == 0
