"""advance_state on a CUDA device: cuda and triton against the host's own formula, and inside a CUDA graph."""

import pytest
import torch
from hypothesis import given, settings

from esper.ops import advance_state_reference, backends
from tests.ops.state_cases import assert_same, expected, make, tables
from tests.requirements import require

pytestmark = pytest.mark.gpu


@pytest.fixture(params=["cuda", "triton"])
def backend(request):
    require("gpu", "" if torch.cuda.is_available() else "torch sees no CUDA device: run `make gpu` where there is one")
    require(request.param, backends.why_not(request.param, "cuda"))
    with backends.forced(request.param):
        yield request.param


@given(drawn=tables())
@settings(max_examples=60, deadline=None)
def test_a_step_is_the_hosts_own_formula_bit_for_bit(backend, drawn):
    table = drawn.to("cuda")
    table.advance()
    assert_same(table.to("cpu"), expected(drawn))


@pytest.mark.parametrize("seeds", [0, 1, 31, 33, 1024, 1025, 100_000])
def test_a_table_of_any_size_takes_several_steps(backend, seeds):
    table, want = make(seeds).to("cuda"), make(seeds)
    for _ in range(3):
        table.advance()
        advance_state_reference(*want.flat())
    assert_same(table.to("cpu"), want)


def test_each_replay_of_a_graph_is_one_step(backend):
    want = make(1500)
    table = want.to("cuda")
    warm = table.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        warm.advance()  # compiles outside the capture
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        table.advance()
    assert_same(table.to("cpu"), want)  # a capture runs nothing
    for _ in range(4):
        graph.replay()
        want = expected(want)
    assert_same(table.to("cpu"), want)


def test_the_current_stream_is_used(backend):
    """Work queued before the op on the same stream is seen by it."""
    want = make(100)
    table = want.to("cuda")
    table.clone().advance()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)
        table.step.fill_(2000)
        table.advance()
    torch.cuda.synchronize()
    want.step.fill_(2000)
    assert_same(table.to("cpu"), expected(want))


def test_it_is_one_launch(backend):
    table = make(4096).to("cuda")
    table.advance()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        table.advance()
        torch.cuda.synchronize()
    kernels = [
        event.name for event in profile.events() if "advance_kernel" in event.name or "elementwise" in event.name
    ]
    assert len(kernels) == 1, kernels
