"""seed_stats' numbers: every implementation against the reference in float64."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.ops import layout, seed_stats, seed_stats_reference
from esper.ops.seed_stats import (
    ABS_MAX,
    COLUMNS,
    DEAD_RATIO,
    ENTROPY,
    LIMIT,
    MEAN,
    NON_FINITE,
    VARIANCE,
    ZERO_RATIO,
)

from .blend_cases import DTYPES, names_of
from .conftest import INTERPRETED
from .seed_stats_cases import CASES, MANY, Case, assert_right, cases, make, rows, table

# Triton interprets its kernels only if told so before it is imported: test_triton_interpreted.py runs this file again.
KERNELS = ["triton"] if INTERPRETED else ["cpp"]
BACKENDS = KERNELS if INTERPRETED else ["auto", "reference", "cpp"]
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|divide by zero|overflow):RuntimeWarning")  # interpreted


def test_the_reference_is_numpys():
    h = np.random.default_rng(0).normal(size=(5, 4, 3)).clip(0)
    h[:, 1] = 0
    stats = table(1, limit=2.5)
    seed_stats_reference(torch.from_numpy(h), [0, 4], 1, 0.5, stats)
    counts, _ = np.histogram(h.clip(-2.5, 2.5), bins=32, range=(-2.5, 2.5))
    shares = counts[counts > 0] / counts.sum()
    want = {
        MEAN: h.mean(),
        VARIANCE: h.var(),
        ZERO_RATIO: (h == 0).mean(),
        DEAD_RATIO: 0.25,
        ENTROPY: -(shares * np.log(shares)).sum(),
        ABS_MAX: h.max(),
        NON_FINITE: 0,
        LIMIT: max(h.max(), 1.25),
    }
    assert stats[0].tolist() == pytest.approx([want[column] for column in range(COLUMNS)], rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=names_of(DTYPES))
@pytest.mark.parametrize("case", CASES, ids=names_of(CASES))
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_are_the_references(using, backend, case, dtype):
    with using(backend):
        assert_right(case, make(case, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=names_of(DTYPES))
@pytest.mark.parametrize("case", MANY, ids=names_of(MANY))
def test_cpp_is_right_over_many_tiles(using, case, dtype):
    with using("cpp"):
        assert_right(case, make(case, dtype))


SPECIAL = st.sampled_from([0.0, -0.0, 1.0, -2.5, 1e-40, 3e38, -3e38, 1e20, math.inf, -math.inf, math.nan, 2.0, -2.0])


@pytest.mark.parametrize("dtype", DTYPES, ids=names_of(DTYPES))
@pytest.mark.parametrize("backend", KERNELS)
@given(case=cases(), limit=st.sampled_from([0.0, math.nan, math.inf, -1.0, 0.75, 2.0, 1e-30]), data=st.data())
@settings(max_examples=20 if INTERPRETED else 60)
def test_a_kernel_is_right_whatever_the_shape_and_the_values(using, backend, dtype, case, limit, data):
    values = make(case, dtype, mean=data.draw(st.sampled_from([0.0, 3.0])))
    for special in data.draw(st.lists(SPECIAL, max_size=4)):
        if values.numel():
            at = data.draw(st.tuples(*(st.integers(0, size - 1) for size in case.shape)))
            values[at] = special
    with using(backend):
        assert_right(case, values, limit if math.isfinite(limit) and limit > 0 else 0.0)
        assert_same_range(case, values, limit)


def assert_same_range(case, values, limit):
    """What an unusable range gives is what 0 gives, but that it stays where nothing was seen."""
    if math.isfinite(limit) and limit > 0:
        return
    got, want = rows(case, values, limit), rows(case, values, 0.0)
    seen = ~want[:, MEAN].isnan() | ~want[:, ABS_MAX].isnan()
    torch.testing.assert_close(got[seen], want[seen], rtol=0, atol=0, equal_nan=True)
    assert got[:, ENTROPY].isnan().all()
    kept = got[~seen, LIMIT]
    torch.testing.assert_close(kept, torch.full_like(kept, limit), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", [Case((40, 257), -1), Case((4, 8, 9, 9), 1, layout="channels_last")], ids=str)
def test_variance_of_data_far_from_0_is_exact(using, backend, case, dtype):
    values = make(case, dtype, mean=1000.0)
    with using(backend):
        (row,) = rows(case, values).tolist()
    assert row[MEAN] == pytest.approx(values.double().mean().item(), rel=1e-7)
    assert row[VARIANCE] == pytest.approx(values.double().var(correction=0).item(), rel=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_finite_is_counted_and_left_out(using, backend):
    values = torch.tensor([[math.nan, 0.0, 1.0], [math.inf, 0.0, 3.0], [-math.inf, 0.0, math.nan]])
    with using(backend):
        (row,) = rows(Case((3, 3), 1), values).tolist()
        (none,) = rows(Case((3,), 0), values[:, 0].contiguous()).tolist()
        (empty,) = rows(Case((0, 3), 1), values[:0]).tolist()
    assert row[MEAN] == pytest.approx(0.8)
    assert row[ZERO_RATIO] == pytest.approx(0.6)
    assert row[DEAD_RATIO] == pytest.approx(1 / 3)  # the first column has no finite element and is not dead
    assert (row[ABS_MAX], row[NON_FINITE], row[LIMIT]) == (3, 4, 3)
    assert all(math.isnan(none[column]) for column in (MEAN, VARIANCE, ZERO_RATIO, ENTROPY, ABS_MAX))
    assert (none[DEAD_RATIO], none[NON_FINITE], none[LIMIT]) == (0, 3, 2)
    assert all(math.isnan(empty[column]) for column in (MEAN, VARIANCE, ZERO_RATIO, DEAD_RATIO, ENTROPY, ABS_MAX))
    assert (empty[NON_FINITE], empty[LIMIT]) == (0, 2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_range_is_what_was_seen_and_fades(using, backend):
    case = Case((2, 4), 1)
    stats = table(1, limit=0.0)
    with using(backend):
        for scale, measured, limit in ((4.0, False, 4.0), (1.0, True, 2.0), (0.5, True, 1.0), (8.0, True, 8.0)):
            values = torch.tensor([[1.0, -0.5, 0.25, 0.0], [0.5, 0.5, 0.5, 0.5]]) * scale
            seed_stats(values, stats, channel_dim=case.channel_dim, decay=0.5)
            assert math.isfinite(stats[0, ENTROPY]) == measured
            assert stats[0, LIMIT] == limit


@pytest.mark.parametrize("backend", BACKENDS)
def test_entropy_runs_from_0_to_ln_32(using, backend):
    centres = torch.linspace(-1, 1, 65)[1::2]
    beyond = torch.tensor([-9.0, -1.0, 1.0, 9.0])
    with using(backend):
        entropies = [rows(Case(x.shape, 0), x, 1.0)[0, ENTROPY].item() for x in (centres, beyond, torch.ones(9))]
    assert entropies == pytest.approx([math.log(32), math.log(2), 0], abs=1e-6)


@pytest.fixture
def threads() -> Iterator[None]:
    kept = torch.get_num_threads()
    yield
    torch.set_num_threads(kept)


def test_results_do_not_depend_on_the_number_of_threads(using, threads):
    case = Case((11, 30_011), -1, ((0, 20_000), (20_000, 30_011)))
    values = make(case, torch.float32)
    with using("cpp"):
        torch.set_num_threads(1)
        want = rows(case, values)
        for count in (2, 3):
            torch.set_num_threads(count)
            assert torch.equal(rows(case, values), want)


@pytest.mark.parametrize("backend", KERNELS)
def test_two_runs_are_bit_equal(using, backend):
    case = Case((5, 4_099), -1, ((0, 3_000), (1_000, 4_099)))
    values = make(case, torch.float32)
    with using(backend):
        assert torch.equal(rows(case, values), rows(case, values))


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("layout_name", ["contiguous", "channels_last", "transposed"])
def test_a_dense_tensor_is_not_copied(using, monkeypatch, backend, layout_name):
    case = Case((2, 8, 3, 5), 1, ((0, 3), (3, 8)), layout_name)
    values = make(case, torch.float32)
    monkeypatch.setattr(layout.torch, "empty_like", lambda *_: pytest.fail("a dense tensor was copied"))
    with using(backend):
        rows(case, values)
