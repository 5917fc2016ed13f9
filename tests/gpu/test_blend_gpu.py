"""blend on a CUDA device: cuda and triton against the float64 reference, and inside a CUDA graph."""

import pytest
import torch

from esper.ops import backends, blend, blend_
from tests.ops.blend_cases import CASES, DTYPES, Case, assert_right, make, names_of
from tests.ops.in_place_cases import ACTIVE, OFF, ON, states
from tests.ops.test_blend_in_place import DENSE, patterns
from tests.ops.test_blend_in_place import assert_right as assert_right_in_place
from tests.requirements import require

pytestmark = pytest.mark.gpu

KERNELS = ["cuda", "triton"]
LARGE = [
    Case((64, 40_001), -1),  # one long row with a tail
    Case((64, 4_096), -1, ((0, 2_048), (1_024, 4_096))),
    Case((4_096, 96), -1, ((0, 32), (32, 96)), convex=True),
    Case((8, 64, 28, 28), 1, ((0, 16), (32, 64)), convex=True),
    Case((8, 64, 28, 28), 1, ((3, 17),), layout="channels_last"),  # packs do not fit
]


@pytest.fixture(params=KERNELS)
def backend(request):
    require("gpu", "" if torch.cuda.is_available() else "torch sees no CUDA device: run `make gpu` where there is one")
    require(request.param, backends.why_not(request.param, "cuda"))
    with backends.forced(request.param):
        yield request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=names_of(DTYPES))
@pytest.mark.parametrize("case", CASES + LARGE, ids=names_of(CASES + LARGE))
def test_value_and_gradients_are_the_references(backend, case, dtype):
    assert_right(make(case, dtype, device="cuda"))


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_two_runs_are_bit_equal(backend, case):
    inputs = make(case, device="cuda")
    runs = [torch.autograd.grad(inputs.blend(), inputs.leaves, inputs.grad) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_a_graph_replays_with_the_alpha_of_the_moment(backend, case):
    inputs = make(case, device="cuda")
    host, seeds, alphas = inputs.host.detach(), [s.detach() for s in inputs.seeds], inputs.alphas.detach()

    def run() -> torch.Tensor:
        return blend(host, seeds, alphas, case.spans, channel_dim=case.channel_dim, convex=case.convex)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.no_grad():
        run()  # compiles and allocates outside the capture
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        out = run()
    for value in (0.25, 1.0):
        alphas.fill_(value)
        graph.replay()
        with torch.no_grad():
            torch.testing.assert_close(out, run())


def test_a_training_step_is_captured(backend):
    case = Case((256, 1_024), -1, ((0, 512), (512, 1_024)))
    inputs = make(case, device="cuda")

    def step() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(inputs.blend(), inputs.leaves, inputs.grad)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        inputs.alphas.mul_(0.5)
    graph.replay()
    torch.testing.assert_close(captured, step())


def test_the_current_stream_is_used(backend):
    """Work queued before the op on the same stream is seen by it."""
    host = torch.zeros(1 << 24, device="cuda")
    seed, alphas = torch.ones_like(host), torch.ones(1, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()), torch.no_grad():
        torch.cuda._sleep(100_000_000)
        seed.fill_(2.0)
        out = blend(host, [seed], alphas, channel_dim=0)
        total = out.sum()
    torch.cuda.synchronize()
    assert total.item() == 2.0 * host.numel()


def test_offsets_past_2_to_the_31(backend):
    """An element past what 32 bits count. 13 GB."""
    free, _ = torch.cuda.mem_get_info()
    require("16 GB of GPU memory", "" if free > 16e9 else f"{free / 1e9:.0f} GB are free")
    rows, width = (1 << 31) // 4096 + 3, 4096
    host = torch.zeros(rows, width, device="cuda", dtype=torch.bfloat16)
    seed = torch.ones(rows, width // 2, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        out = blend(host, [seed], torch.ones(1, device="cuda"), [(width // 2, width)], channel_dim=-1)
    assert out[-1, width // 2 :].eq(1).all()
    assert out[-1, : width // 2].eq(0).all()


# In place


@pytest.mark.parametrize("dtype", DTYPES, ids=names_of(DTYPES))
@pytest.mark.parametrize("case", DENSE + LARGE, ids=names_of(DENSE + LARGE))
def test_in_place_value_and_gradients_are_the_references(backend, case, dtype):
    for taking in patterns(len(case.pairs)):
        assert_right_in_place(make(case, dtype, device="cuda"), taking)


def test_a_graph_replays_with_the_states_of_the_moment(backend):
    case = Case((64, 4_096), -1, ((0, 2_048), (1_024, 4_096)))
    inputs = make(case, device="cuda")
    host, seeds, alphas = inputs.host.detach(), [s.detach() for s in inputs.seeds], inputs.alphas.detach()
    gate, start = states(False, False, device="cuda"), host.clone()

    def run(host: torch.Tensor) -> None:
        blend_(host, seeds, alphas, gate, ACTIVE, case.spans, channel_dim=-1)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(start.clone())  # compiles outside the capture
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(host)
    for pattern in ((OFF, OFF), (ON, OFF), (OFF, ON), (ON, ON)):
        gate.copy_(torch.tensor(pattern, dtype=torch.uint8))
        host.copy_(start)
        graph.replay()
        expected = start.clone()
        with backends.forced("reference"):
            run(expected)
        torch.testing.assert_close(host, expected)
        if pattern == (OFF, OFF):
            assert torch.equal(host, start)


def test_untouched_memory_keeps_its_nan_and_a_dormant_seed_is_not_read(backend):
    nan = float("nan")
    host = torch.full((64, 512), nan, device="cuda")
    host[:, 256:] = 1.0
    seeds = [torch.full((64, 256), nan, device="cuda"), torch.ones(64, 256, device="cuda")]
    gate = states(False, True, device="cuda")
    blend_(host, seeds, torch.ones(2, device="cuda"), gate, ACTIVE, [(0, 256), (256, 512)], channel_dim=1)
    assert host[:, :256].isnan().all() and host[:, 256:].eq(2).all()


def test_in_place_offsets_past_2_to_the_31(backend):
    """9 GB."""
    free, _ = torch.cuda.mem_get_info()
    require("12 GB of GPU memory", "" if free > 12e9 else f"{free / 1e9:.0f} GB are free")
    rows, width = (1 << 31) // 4096 + 3, 4096
    host = torch.zeros(rows, width, device="cuda", dtype=torch.bfloat16)
    seed = torch.ones(rows, width // 2, device="cuda", dtype=torch.bfloat16)
    gate, alphas = states(True, device="cuda"), torch.ones(1, device="cuda")
    blend_(host, [seed], alphas, gate, ACTIVE, [(width // 2, width)], channel_dim=-1)
    assert host[-1, width // 2 :].eq(1).all()
    assert host[-1, : width // 2].eq(0).all()


def test_tensors_on_two_devices_are_refused():
    require("gpu", "" if torch.cuda.is_available() else "torch sees no CUDA device: run `make gpu` where there is one")
    require("cuda", backends.why_not("cuda", "cuda"))
    host = torch.zeros(2, 8, device="cuda")
    with torch.no_grad(), pytest.raises(RuntimeError, match="alphas is on cpu, host on cuda:0"):
        torch.ops.esper_native.blend(host, [host], torch.ones(1), [0, 8], 1, False)
