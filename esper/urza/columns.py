"""What ranking reads of the kernels of one interface, column by column, so that a search looks at each in nanoseconds.

A copy of columns of the store, kept sorted by artifact id; tables.py brings it up to date.
Tags are kept by set, as kernels share few sets, and found by tag.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from esper.urza.codec import Candidate

Mask = npt.NDArray[np.bool_]
_TYPES: Mapping[str, Any] = {
    "artifact_id": "S64",
    "status": np.int32,
    "target": np.int32,
    "parameter_count": np.int64,
    "forward_us_p50": np.float64,
    "peak_bytes": np.int64,
    "interest": np.float64,
    "risk": np.float64,
    "blueprint": np.int64,  # the revision that created it
    "tag_set": np.int32,
}


class Readings(NamedTuple):
    """One row, as Python's own numbers."""

    artifact_id: str
    parameter_count: int
    forward_us_p50: float
    peak_bytes: int
    interest: float
    risk: float
    tags: frozenset[str]


class TagSets:
    """Distinct sets of tags, numbered from 0, and for each tag the numbers of those that have it."""

    def __init__(self) -> None:
        self._numbers: dict[frozenset[str], int] = {}
        self._sets: list[frozenset[str]] = []
        self._with: dict[str, array[int]] = {}

    def number(self, tags: frozenset[str]) -> int:
        """The number of a set, a new one if it was not seen before."""
        known = self._numbers.setdefault(tags, len(self._sets))
        if known == len(self._sets):
            self._sets.append(tags)
            for tag in tags:
                self._with.setdefault(tag, array("q")).append(known)
        return known

    def of(self, number: int) -> frozenset[str]:
        return self._sets[number]

    def counts(self, tags: Set[str]) -> npt.NDArray[np.int32]:
        """How many of `tags` each set has."""
        found = np.zeros(len(self._sets), np.int32)
        for tag in tags & self._with.keys():
            found[np.array(self._with[tag])] += 1
        return found


class Columns:
    """The kernels of one interface, whatever their status. `revision`: the store's, that they are of."""

    def __init__(self) -> None:
        self.revision = 0
        self.tags = TagSets()
        self._columns = {name: np.zeros(0, kind) for name, kind in _TYPES.items()}

    def __len__(self) -> int:
        return len(self._columns["artifact_id"])

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self._columns[name]

    def put(self, kernels: Sequence[Candidate]) -> None:
        """Add kernels, or replace those of the same id; ids are distinct."""
        kernels = sorted(kernels, key=lambda one: one.artifact_id)
        fresh = {name: np.array([self._cell(name, one) for one in kernels], kind) for name, kind in _TYPES.items()}
        ids = self["artifact_id"]
        places = np.searchsorted(ids, fresh["artifact_id"])
        known = np.zeros(len(kernels), bool)
        inside = places < len(ids)
        known[inside] = ids[places[inside]] == fresh["artifact_id"][inside]
        for name, column in self._columns.items():
            column[places[known]] = fresh[name][known]
            self._columns[name] = np.insert(column, places[~known], fresh[name][~known])

    def readings(self, rows: npt.NDArray[np.intp]) -> Iterator[Readings]:
        """What a table says of some of its rows, in the order of `rows`."""
        columns = [self[name][rows].tolist() for name in (*Readings._fields[:-1], "tag_set")]
        for raw_id, *figures, tag_set in zip(*columns, strict=True):
            yield Readings._make((raw_id.decode(), *figures, self.tags.of(tag_set)))

    def _cell(self, name: str, one: Candidate) -> Any:
        if name == "tag_set":
            return self.tags.number(one.tags)
        return getattr(one, name)
