"""The generator of the matrix: every pair that may occur does, in a row, and none that may not."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.matrix.covering import allowed, covering, describe, held, pairs
from tests.matrix.exclusions import EXCLUDED, EXCLUSIONS
from tests.matrix.factors import FACTORS


@st.composite
def tables(draw):
    """Factors and excluded pairs, few enough to try every row."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    factors = {f"f{i}": [f"v{j}" for j in range(size)] for i, size in enumerate(sizes)}
    return factors, draw(st.sets(st.sampled_from(list(pairs(factors))), max_size=8))


def every_row(factors):
    return [dict(zip(factors, values, strict=True)) for values in itertools.product(*factors.values())]


@given(tables())
def test_every_pair_that_fits_occurs_and_no_excluded_one_does(table):
    factors, excluded = table
    fits = {pair for row in every_row(factors) if allowed(row, excluded) for pair in held(row)}
    stranded = set(pairs(factors)) - excluded - fits
    if stranded:
        with pytest.raises(ValueError, match="no row can hold") as raised:
            covering(factors, excluded)
        assert any(describe(pair) in str(raised.value) for pair in stranded)
        return
    rows = covering(factors, excluded)
    assert {pair for row in rows for pair in held(row)} == fits
    assert all(list(row) == list(factors) and allowed(row, excluded) for row in rows)


@given(tables())
def test_every_row_is_needed_when_it_is_made(table):
    factors, _ = table
    seen = set()
    for row in covering(factors):
        assert set(held(row)) - seen
        seen |= set(held(row))


@given(st.integers(1, 6), st.integers(1, 6))
def test_two_factors_take_their_product(a, b):
    factors = {"a": [str(i) for i in range(a)], "b": [str(i) for i in range(b)]}
    assert len(covering(factors)) == a * b


def test_a_strength_of_two_is_far_fewer_than_all():
    factors = {f"f{i}": [str(j) for j in range(4)] for i in range(8)}
    assert 16 <= len(covering(factors)) <= 64  # of 65,536


def test_the_matrix_holds_every_pair_of_its_factors_but_the_excluded():
    rows = covering(FACTORS, EXCLUDED)
    assert {pair for row in rows for pair in held(row)} == set(pairs(FACTORS)) - EXCLUDED
    largest = sorted(len(values) for values in FACTORS.values())[-2:]
    assert len(rows) <= 1.5 * largest[0] * largest[1]


def test_what_is_excluded_names_values_that_exist():
    assert set(pairs(FACTORS)) >= EXCLUDED
    assert all(exclusion.reason for exclusion in EXCLUSIONS)
