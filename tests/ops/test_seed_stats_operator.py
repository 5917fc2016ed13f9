"""The registered operator: opcheck, grad mode, compilation, functorch, autocast."""

import warnings

import pytest
import torch

from esper.ops import seed_stats

from .seed_stats_cases import Case, make, rows, table

SOME = [
    Case((3, 5), -1),
    Case((2, 3, 6), -1, ((1, 5), (0, 3))),
    Case((2, 6, 2, 3), 1, ((0, 2), (4, 6)), "channels_last"),
    Case((3, 4, 6), -1, ((1, 5),), "strided"),
]


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("case", SOME, ids=str)
def test_opcheck(using, backend, case, grad):
    values, stats = make(case, torch.float32).requires_grad_(grad), torch.zeros(case.slots, 8)
    with using(backend), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # raised inside torch by its own tools
        torch.library.opcheck(
            torch.ops.esper.seed_stats.default, (values, case.bounds, case.channel_dim % values.ndim, 0.9, stats)
        )


def test_under_grad_mode_no_history_is_recorded_and_values_keep_theirs():
    x = torch.randn(4, 6, requires_grad=True)
    h, stats = torch.relu(x), table(1)
    seed_stats(h, stats, channel_dim=1)
    assert not stats.requires_grad
    h.sum().backward()
    assert torch.equal(x.grad, (x > 0).float())
    assert torch.equal(stats, rows(Case((4, 6), 1), h.detach(), decay=0.99))


def test_autocast_reads_what_it_is_given():
    values = torch.randn(4, 6)
    plain, cast = table(1), table(1)
    seed_stats(values, plain, channel_dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seed_stats(values, cast, channel_dim=1)
    assert torch.equal(plain, cast)


def test_under_compile_it_is_one_operator_in_one_graph():
    torch._dynamo.reset()

    def run(x, stats):
        h = torch.relu(x)
        seed_stats(h, stats, [(0, 4), (2, 6)], channel_dim=1)
        return h * 2

    x, plain, compiled = torch.randn(4, 6), table(2), table(2)
    want = run(x, plain)
    assert torch.equal(torch.compile(run, backend="aot_eager", fullgraph=True)(x, compiled), want)
    assert torch.equal(plain, compiled)
    torch._dynamo.reset()


@pytest.mark.parametrize("in_dim", [0, 1, 2])
def test_vmap_takes_the_batch_for_more_rows_of_the_chunk(in_dim):
    values, stats, want = torch.randn(3, 3, 3), table(1), table(1)
    torch.vmap(lambda x: torch.ops.esper.seed_stats(x, [0, 3], 0, 0.9, stats), in_dims=in_dim, out_dims=None)(values)
    torch.ops.esper.seed_stats(values.movedim(in_dim, 0).contiguous(), [0, 3], 1, 0.9, want)
    torch.testing.assert_close(stats, want, equal_nan=True)


@pytest.mark.parametrize("stats_dim", [0, 1, 2])
@pytest.mark.parametrize("values_dim", [None, 1])
def test_vmap_gives_each_example_its_rows_where_stats_have_the_batch(values_dim, stats_dim):
    values = torch.randn(2, 3, 5)
    stats = torch.stack([table(1) for _ in range(3)], stats_dim)

    def run(x, row):
        torch.ops.esper.seed_stats(x, [0, x.shape[1]], 1, 0.9, row)

    torch.vmap(run, in_dims=(values_dim, stats_dim), out_dims=None)(values, stats)
    for example in range(3):
        chunk = values if values_dim is None else values.select(values_dim, example)
        want = table(1)
        torch.ops.esper.seed_stats(chunk, [0, chunk.shape[1]], 1, 0.9, want)
        torch.testing.assert_close(stats.select(stats_dim, example), want, equal_nan=True)
