"""Every blueprint's parents, kept in memory and brought up to the store, so that a large family is found fast.

Blueprints are numbers here, the revisions that created them, and a parent's is lower than its child's. Edges come
by child: walked in that order, or against it, one pass reaches a family however many generations it has.
"""

from array import array
from bisect import bisect_right
from typing import Protocol

import numpy as np
import numpy.typing as npt

Members = npt.NDArray[np.bool_]
_BATCH = 50_000


class Edges(Protocol):
    """What of the store is read here; see reader.py."""

    async def new_edges(self, after: int, limit: int) -> list[tuple[int, int]]: ...


class Pedigree:
    """One per library; 16 bytes an edge."""

    def __init__(self) -> None:
        self._children = array("q")
        self._parents = array("q")

    async def follow(self, store: Edges) -> None:
        """Read the edges that came since."""
        while fresh := await store.new_edges(self._children[-1] if self._children else 0, _BATCH):
            self._children.extend(child for child, _ in fresh)
            self._parents.extend(parent for _, parent in fresh)

    def descendants(self, start: int, size: int) -> Members:
        """[size] by revision: `start`, and what was made of it, at any depth."""
        reached, first = _only(start, size), bisect_right(self._children, start)
        for child, parent in zip(self._children[first:], self._parents[first:], strict=True):
            if reached[parent]:
                reached[child] = 1
        return np.frombuffer(reached, np.bool_)

    def ancestors(self, start: int, size: int) -> Members:
        """[size] by revision: `start`, and what it was made of, at any depth."""
        reached, last = _only(start, size), bisect_right(self._children, start)
        for child, parent in zip(reversed(self._children[:last]), reversed(self._parents[:last]), strict=True):
            if reached[child]:
                reached[parent] = 1
        return np.frombuffer(reached, np.bool_)


def members(blueprint_revision: int, size: int) -> Members:
    """[size] by revision: one blueprint alone; 0: none."""
    return np.frombuffer(_only(blueprint_revision, size), np.bool_)


def _only(revision: int, size: int) -> bytearray:
    reached = bytearray(size)
    if revision:
        reached[revision] = 1
    return reached
