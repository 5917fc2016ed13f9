"""All pairs of factor values in few rows: a greedy covering array of strength 2. Pure."""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence

Choice = tuple[str, str]  # factor, value
Pair = frozenset[Choice]
Row = dict[str, str]
Factors = Mapping[str, Sequence[str]]


def covering(factors: Factors, excluded: Collection[Pair] = ()) -> list[Row]:
    """Rows with one value per factor, in which every pair of values of two factors occurs that is not in `excluded`.

    No row holds an excluded pair. The same arguments give the same rows. Raises ValueError for a pair that is
    not excluded itself and yet fits into no row, because the excluded ones leave some factor without a value.
    """
    missing = dict.fromkeys(pair for pair in pairs(factors) if pair not in excluded)
    rows = []
    while missing:
        first = next(iter(missing))
        row = _complete(dict(first), factors, excluded, missing)
        if row is None:
            raise ValueError(f"no row can hold {describe(first)}: exclude it too, or exclude less")
        for pair in held(row):
            missing.pop(pair, None)
        rows.append({factor: row[factor] for factor in factors})
    return rows


def pairs(factors: Factors) -> Iterator[Pair]:
    """Every pair of values of two different factors."""
    for one, other in itertools.combinations(factors, 2):
        for a, b in itertools.product(factors[one], factors[other]):
            yield frozenset({(one, a), (other, b)})


def held(row: Row) -> Iterator[Pair]:
    """The pairs that occur in a row."""
    return (frozenset(two) for two in itertools.combinations(row.items(), 2))


def allowed(row: Row, excluded: Collection[Pair]) -> bool:
    return not any(pair in excluded for pair in held(row))


def describe(pair: Pair) -> str:
    return " with ".join(f"{factor}={value}" for factor, value in sorted(pair))


def _complete(row: Row, factors: Factors, excluded: Collection[Pair], missing: Collection[Pair]) -> Row | None:
    """`row` with a value for every factor, those first that bring most missing pairs; None where none fits."""
    factor = next((name for name in factors if name not in row), None)
    if factor is None:
        return row

    def gain(value: str) -> int:
        return sum(frozenset({(factor, value), choice}) in missing for choice in row.items())

    for value in sorted(factors[factor], key=gain, reverse=True):
        if any(frozenset({(factor, value), choice}) in excluded for choice in row.items()):
            continue
        found = _complete({**row, factor: value}, factors, excluded, missing)
        if found is not None:
            return found
    return None
