"""Decide which steps of a graph one kernel can compute: maximal connected sets that may run as one, and why others not.

A set may run as one if no path leaves it and comes back, and no two sets wait for each other: the graph with every
set drawn together has no cycle.
"""

import torch

from esper.artifact.regions import PAIR, Region, described, value_type
from esper.blueprint.plan import Plan
from esper.blueprint.signature import Extent
from esper.tezzeret.pairs import unpaid, why_no_pair
from esper.tezzeret.rules import RULES
from esper.tezzeret.unfused import UNFUSED, why_no_broadcast

MOST_ROW_CHANNELS = 4096  # a program holds all channels of a position, in registers
MOST_MAP_CHANNELS = 256  # and of several neighbouring positions, where these are neighbours in memory
_TILE = 1024  # elements: 8 for each of 128 threads, 16 bytes in bfloat16
_MAP_ROWS = 16
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def find_regions(concrete: Plan) -> tuple[tuple[Region, ...], dict[int, str]]:
    """(regions, step -> why it is in none). Every step, numbered from 1, is in exactly one of the two."""
    reasons = {}
    for step in range(1, len(concrete.form.steps) + 1):
        if reason := why_not(step, concrete):
            reasons[step] = reason
    groups = _paying(concrete, reasons)
    found = []
    for group in groups:
        if len(group) == 1:
            reasons[group[0]] = "no neighbour to fuse with: torch has a kernel for one operator"
        else:
            found.append(group)
    return tuple(_region(number, steps, concrete) for number, steps in enumerate(found, start=1)), reasons


def why_not(step: int, concrete: Plan) -> str:
    """Why a step, numbered from 1, cannot be in a region; empty where it can."""
    operator = concrete.form.steps[step - 1].node.operator
    if operator not in RULES:
        return f"no rule for {operator}: {UNFUSED[operator]}"
    if operator == "broadcast" and (reason := why_no_broadcast(step, concrete)):
        return reason
    if concrete.interface.dtype not in _DTYPES:
        return f"kernels compute in float32, which is less than {concrete.interface.dtype}"
    channels, extent = value_type(step, concrete)
    maps = concrete.interface.kind.channels_first and extent is Extent.FULL
    most = MOST_MAP_CHANNELS if maps else MOST_ROW_CHANNELS
    if channels > most:
        return f"{channels} channels a position; a program holds at most {most}"
    return why_no_pair(step, concrete, maps=maps) if operator == PAIR else ""


def _paying(concrete: Plan, reasons: dict[int, str]) -> list[tuple[int, ...]]:
    """Groups in which every low-rank pair pays; one that does not gets its reason, and the others are drawn anew."""
    while True:
        groups = _merged(concrete, reasons)
        left = [(step, reason) for step, reason in (unpaid(group, concrete) for group in groups) if step]
        if not left:
            return groups
        reasons.update(left)


def _merged(concrete: Plan, reasons: dict[int, str]) -> list[tuple[int, ...]]:
    """Neighbours of one shape drawn together, edge by edge, until no two more can be."""
    steps = concrete.form.steps
    group = list(range(len(steps) + 1))  # value -> its group's smallest member
    edges = [(i, at) for at, step in enumerate(steps, start=1) for i in step.inputs if i]
    fusable = [
        (a, b) for a, b in edges if not {a, b} & reasons.keys() and value_type(a, concrete) == value_type(b, concrete)
    ]
    pairs = [at for at, step in enumerate(steps, start=1) if step.node.operator == PAIR and at not in reasons]
    fusable.sort(key=lambda edge: not set(edge) & set(pairs))  # a pair's own neighbours first: they make it pay
    changed = True
    while changed:
        changed = False
        for a, b in fusable:
            if group[a] == group[b]:
                continue
            trial = [min(group[a], group[b]) if g in (group[a], group[b]) else g for g in group]
            # registers hold the lines of one low-rank pair
            if _acyclic(trial, edges) and len({trial[at] for at in pairs}) == len(pairs):
                group, changed = trial, True
    members: dict[int, list[int]] = {}
    for step in range(1, len(steps) + 1):
        if step not in reasons:
            members.setdefault(group[step], []).append(step)
    return [tuple(listed) for listed in members.values()]


def _acyclic(group: list[int], edges: list[tuple[int, int]]) -> bool:
    """Whether groups can be put in an order in which each comes after all it reads."""
    waits: dict[int, set[int]] = {g: set() for g in group}
    for a, b in edges:
        if group[a] != group[b]:
            waits[group[b]].add(group[a])
    while waits:
        ready = {g for g, others in waits.items() if not others}
        if not ready:
            return False
        waits = {g: others - ready for g, others in waits.items() if g not in ready}
    return True


def _region(number: int, steps: tuple[int, ...], concrete: Plan) -> Region:
    channels, extent = value_type(steps[0], concrete)
    columns = 1 << (channels - 1).bit_length()
    maps = concrete.interface.kind.channels_first and extent is Extent.FULL
    rows = max(_MAP_ROWS if maps else 1, _TILE // columns)
    return described(number, steps, concrete, rows, columns)
