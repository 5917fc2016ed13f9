"""seed_stats on a CUDA device: cuda and triton against the float64 reference, and inside a CUDA graph."""

import pytest
import torch

from esper.ops import backends, seed_stats
from esper.ops.seed_stats import ABS_MAX, MEAN, VARIANCE
from tests.ops.blend_cases import DTYPES, names_of
from tests.ops.seed_stats_cases import CASES, MANY, Case, assert_right, make, rows, table
from tests.requirements import require

pytestmark = pytest.mark.gpu

KERNELS = ["cuda", "triton"]
LARGE = [
    *MANY,
    Case((64, 40_001), -1),
    Case((4_096, 96), -1, ((0, 32), (32, 96), (7, 90))),
    Case((8, 64, 28, 28), 1, ((0, 16), (32, 64))),
    Case((8, 64, 28, 28), 1, ((3, 17),), "channels_last"),  # packs do not fit
    Case((1, 8, 1_000, 1_001), 1),  # a channel spans many blocks
]


@pytest.fixture(params=KERNELS)
def backend(request):
    require("gpu", "" if torch.cuda.is_available() else "torch sees no CUDA device: run `make gpu` where there is one")
    require(request.param, backends.why_not(request.param, "cuda"))
    with backends.forced(request.param):
        yield request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=names_of(DTYPES))
@pytest.mark.parametrize("case", CASES + LARGE, ids=names_of(CASES + LARGE))
def test_rows_are_the_references(backend, case, dtype):
    assert_right(case, make(case, dtype, device="cuda"))


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_two_runs_are_bit_equal(backend, case):
    values = make(case, torch.float32, device="cuda")
    assert torch.equal(rows(case, values), rows(case, values))


@pytest.mark.parametrize("case", LARGE[:3], ids=str)
def test_what_is_not_finite_is_counted_and_left_out(backend, case):
    values = make(case, torch.float32, device="cuda")
    values.view(-1)[::13] = float("nan")
    values.view(-1)[5::17] = float("inf")
    values[-1].fill_(float("-inf"))
    assert_right(case, values)
    assert_right(case, values, limit=0.0)


def test_variance_of_data_far_from_0_is_exact(backend):
    case = Case((512, 1_024), -1)
    values = make(case, torch.float32, mean=1000.0, device="cuda")
    (row,) = rows(case, values).tolist()
    assert row[MEAN] == pytest.approx(values.double().mean().item(), rel=1e-7)
    assert row[VARIANCE] == pytest.approx(values.double().var(correction=0).item(), rel=1e-5)


def test_a_thread_counts_more_than_16_bits_hold(backend):
    """Every element in one bin: 81,920 for each of the 1,024 blocks' 256 threads. 43 GB."""
    free, _ = torch.cuda.mem_get_info()
    require("50 GB of GPU memory", "" if free > 50e9 else f"{free / 1e9:.0f} GB are free")
    values = torch.ones(5 << 15, 1 << 17, device="cuda", dtype=torch.bfloat16)
    stats = table(1, device="cuda")
    seed_stats(values, stats, channel_dim=0)
    assert stats[0, :7].tolist() == [1, 0, 0, 0, 0, 1, 0]


def test_offsets_past_2_to_the_31(backend):
    free, _ = torch.cuda.mem_get_info()
    require("8 GB of GPU memory", "" if free > 8e9 else f"{free / 1e9:.0f} GB are free")
    values = torch.zeros((1 << 31) // 4096 + 3, 4096, device="cuda", dtype=torch.bfloat16)
    values[-1, -1] = 3
    stats = table(1, device="cuda")
    seed_stats(values, stats, [(4095, 4096)], channel_dim=1)
    assert stats[0, ABS_MAX].item() == 3


def test_a_graph_replays_with_the_range_of_the_moment(backend):
    case = Case((256, 1_024), -1, ((0, 512), (512, 1_024)))
    values = make(case, torch.float32, device="cuda")
    stats, want = table(2, 0.0, "cuda"), table(2, 0.0, "cuda")

    def run(out: torch.Tensor) -> None:
        seed_stats(values, out, list(case.spans), channel_dim=-1, decay=0.5)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(stats.clone())  # compiles and allocates outside the capture
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(stats)
    for scale in (1.0, 0.25):
        values.mul_(scale)
        graph.replay()
        run(want)
        torch.testing.assert_close(stats, want, equal_nan=True)


def test_the_current_stream_is_used(backend):
    values = torch.zeros(1 << 24, device="cuda")
    stats = table(1, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)
        values.fill_(2.0)
        seed_stats(values, stats, channel_dim=0)
    torch.cuda.synchronize()
    assert stats[0, MEAN].item() == 2


def test_nothing_waits_for_the_device(backend):
    values, stats = torch.randn(64, 64, device="cuda"), table(1, device="cuda")
    seed_stats(values, stats, channel_dim=1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        seed_stats(values, stats, channel_dim=1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_tensors_on_two_devices_are_refused():
    require("gpu", "" if torch.cuda.is_available() else "torch sees no CUDA device: run `make gpu` where there is one")
    require("cuda", backends.why_not("cuda", "cuda"))
    with pytest.raises(RuntimeError, match="stats is on cpu, values on cuda:0"):
        torch.ops.esper_native.seed_stats(torch.zeros(2, 8, device="cuda"), [0, 8], 1, 0.9, table(1))
