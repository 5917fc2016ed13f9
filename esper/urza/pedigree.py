"""Every blueprint's parents, kept in memory and brought up to the store, so that a large family is found fast.

Blueprints are numbers here, the revisions that created them, and a parent's is lower than its child's. Edges come
by child: walked in that order, or against it, one pass reaches a family however many generations it has. A blueprint's
parents never change, so a family asked for again has only what came since to be walked.
"""

from array import array
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Members = npt.NDArray[np.bool_]
_BATCH = 50_000
_MAX_FAMILIES = 16  # kept, at a byte a revision; that asked for longest ago is let go


class Edges(Protocol):
    """What of the store is read here; see reader.py."""

    async def new_edges(self, after: int, limit: int) -> list[tuple[int, int]]: ...


@dataclass(slots=True)
class _Family:
    """By revision, whether it is reached from a start, as far as the first `walked` edges say."""

    reached: bytearray
    walked: int


class Pedigree:
    """One per library; 16 bytes an edge, and the families that were asked for last."""

    def __init__(self) -> None:
        self._families: OrderedDict[tuple[int, bool], _Family] = OrderedDict()
        self._children = array("q")
        self._parents = array("q")

    async def follow(self, store: Edges) -> None:
        """Read the edges that came since."""
        while fresh := await store.new_edges(self._children[-1] if self._children else 0, _BATCH):
            self._children.extend(child for child, _ in fresh)
            self._parents.extend(parent for _, parent in fresh)

    def descendants(self, start: int, size: int) -> Members:
        """[size] by revision: `start`, and what was made of it, at any depth."""
        family = self._family(start, down=True)
        reached, first = family.reached, family.walked
        _extend(reached, size)
        for child, parent in zip(self._children[first:], self._parents[first:], strict=True):
            if reached[parent]:
                reached[child] = 1
        family.walked = len(self._children)
        return _members(reached, size)

    def ancestors(self, start: int, size: int) -> Members:
        """[size] by revision: `start`, and what it was made of, at any depth."""
        family = self._family(start, down=False)
        reached, last = family.reached, family.walked
        _extend(reached, size)
        for child, parent in zip(reversed(self._children[:last]), reversed(self._parents[:last]), strict=True):
            if reached[child]:
                reached[parent] = 1
        family.walked = 0  # edges above a blueprint that is here are all here
        return _members(reached, size)

    def _family(self, start: int, *, down: bool) -> _Family:
        """As it was left, or a new one: down from the start's edges, or up from them."""
        key = start, down
        if key not in self._families:
            self._families[key] = _Family(_only(start, start + 1), bisect_right(self._children, start))
            if len(self._families) > _MAX_FAMILIES:
                self._families.popitem(last=False)
        self._families.move_to_end(key)
        return self._families[key]


def _extend(reached: bytearray, size: int) -> None:
    reached.extend(bytes(max(0, size - len(reached))))


def _members(reached: bytearray, size: int) -> Members:
    """A copy, that the family may grow beside it."""
    return np.frombuffer(bytes(reached[:size]), np.bool_)


def members(blueprint_revision: int, size: int) -> Members:
    """[size] by revision: one blueprint alone; 0: none."""
    return np.frombuffer(_only(blueprint_revision, size), np.bool_)


def _only(revision: int, size: int) -> bytearray:
    reached = bytearray(size)
    if revision:
        reached[revision] = 1
    return reached
