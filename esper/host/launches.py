"""Which grafts of a site join in one launch, and that launch.

Grafts on disjoint chunks of the channels do not see each other, so that their order does
not matter. A graft over all channels, or over some that an earlier one changes, sees the
earlier one's result, and joins after it.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from esper.ops.blend import blend

MAX_SLOTS = 64  # of one launch, which backend `cuda` holds in its parameters

Span = tuple[int, int]
Slot = tuple[Tensor, Tensor, Span | None]  # branch, 0-dim alpha, channels


class Place(Protocol):
    """What of a graft decides which launch it is in."""

    @property
    def blends(self) -> bool: ...
    @property
    def span(self) -> Span | None: ...
    @property
    def strategy(self) -> object: ...


P = TypeVar("P", bound=Place)


def launches(grafts: Sequence[P]) -> list[list[P]]:
    """The grafts in order, cut where one cannot join those just before it.

    Those of one launch are either one graft, or live ones of one strategy on disjoint chunks. Only neighbours in the
    order are put together, so that branches draw random numbers in the order of insertion.
    """
    made: list[list[P]] = []
    for graft in grafts:
        if made and _fits(graft, made[-1]):
            made[-1].append(graft)
        else:
            made.append([graft])
    return made


def _fits(graft: Place, launch: Sequence[Place]) -> bool:
    first, span = launch[0], graft.span
    if not (graft.blends and first.blends) or graft.strategy is not first.strategy or len(launch) == MAX_SLOTS:
        return False
    return span is not None and all(_disjoint(span, other.span) for other in launch)


def _disjoint(span: Span, other: Span | None) -> bool:
    return other is not None and (span[1] <= other[0] or other[1] <= span[0])


def blend_slots(host: Tensor, slots: Sequence[Slot], channel_dim: int, convex: bool) -> Tensor:
    """Blend branches into a site's output [..., C, ...]: one over all channels, or several over disjoint chunks."""
    if len(slots) == 1:
        branch, alpha, span = slots[0]
        spans = None if span is None else [span]
        return blend(host, [branch], alpha.reshape(1), spans, channel_dim=channel_dim, convex=convex)
    ordered, alphas = _with_alphas(slots)
    branches = [branch for branch, _, _ in ordered]
    chunks = [span for _, _, span in ordered if span is not None]
    return blend(host, branches, alphas, chunks, channel_dim=channel_dim, convex=convex)


def _with_alphas(slots: Sequence[Slot]) -> tuple[Sequence[Slot], Tensor | list[Tensor]]:
    """The slots and their alphas [S]: in the seed table's order a view of it where they are neighbours there.

    Else the alphas one by one, which costs a launch to put them together.
    """
    alphas = [alpha for _, alpha, _ in slots]
    table = None if torch.compiler.is_compiling() else alphas[0]._base  # compiled code fuses the copy
    if table is None or table.ndim != 1 or not table.is_contiguous():
        return slots, alphas
    if any(alpha._base is not table or alpha.requires_grad for alpha in alphas):
        return slots, alphas
    ordered = sorted(slots, key=lambda slot: slot[1].storage_offset())
    first = ordered[0][1].storage_offset()
    if [alpha.storage_offset() - first for _, alpha, _ in ordered] != list(range(len(slots))):
        return slots, alphas
    return ordered, table.narrow(0, first - table.storage_offset(), len(slots))
