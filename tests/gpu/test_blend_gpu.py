"""blend on a CUDA device: cuda and triton against the float64 reference, and inside a CUDA graph."""

import pytest
import torch

from esper.ops import backends, blend
from tests.ops.blend_cases import CASES, DTYPES, Case, assert_right, make, names_of
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


def test_tensors_on_two_devices_are_refused():
    require("gpu", "" if torch.cuda.is_available() else "torch sees no CUDA device: run `make gpu` where there is one")
    require("cuda", backends.why_not("cuda", "cuda"))
    host = torch.zeros(2, 8, device="cuda")
    with torch.no_grad(), pytest.raises(RuntimeError, match="alphas is on cpu, host on cuda:0"):
        torch.ops.esper_native.blend(host, [host], torch.ones(1), [0, 8], 1, False)
