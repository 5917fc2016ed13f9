"""Where the nodes of a graph are drawn: in layers, inputs above users, without overlap, the same every time.

Sugiyama's method (doi:10.1109/TSMC.1981.4308636): layers by longest path, a corner in every layer that an edge
passes, order by the mean of the neighbours', then places pulled towards them.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

GAP, LAYER_GAP, CORNER = 28.0, 46.0, 8.0
_SWEEPS = 12


@dataclass(frozen=True, slots=True)
class Box:
    """A node's rectangle, in the picture's units."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Layout:
    """`boxes` by node; `routes`: by edge, the points from its source's lower side to its user's upper."""

    boxes: tuple[Box, ...]
    routes: tuple[tuple[tuple[float, float], ...], ...]
    width: float
    height: float


def layout(sizes: Sequence[tuple[float, float]], edges: Sequence[tuple[int, int]]) -> Layout:
    """`sizes`: width and height by node; `edges`: (source, user), a source's number being below its user's."""
    depth = [0] * len(sizes)
    for source, user in sorted(edges, key=lambda edge: edge[1]):
        depth[user] = max(depth[user], depth[source] + 1)
    widths = [width for width, _ in sizes]
    layers: list[list[int]] = [[] for _ in range(max(depth) + 1)]
    for node, at in enumerate(depth):
        layers[at].append(node)
    chains = []
    for source, user in edges:
        chain = [source]
        for at in range(depth[source] + 1, depth[user]):
            chain.append(len(widths))
            layers[at].append(len(widths))
            widths.append(CORNER)
        chains.append([*chain, user])
    above: list[list[int]] = [[] for _ in widths]
    below: list[list[int]] = [[] for _ in widths]
    for chain in chains:
        for a, b in itertools.pairwise(chain):
            above[b].append(a)
            below[a].append(b)
    centres = _places(_ordered(layers, above, below), widths, above, below)
    heights = [max((sizes[n][1] for n in layer if n < len(sizes)), default=CORNER) for layer in layers]
    tops = [sum(heights[:i]) + LAYER_GAP * i for i in range(len(layers))]
    level = {n: i for i, layer in enumerate(layers) for n in layer}
    boxes = tuple(Box(centres[n] - w / 2, tops[depth[n]], w, h) for n, (w, h) in enumerate(sizes))
    routes = []
    for chain in chains:
        points = [(centres[chain[0]], boxes[chain[0]].y + boxes[chain[0]].height)]
        for n in chain[1:-1]:
            points += [(centres[n], tops[level[n]]), (centres[n], tops[level[n]] + heights[level[n]])]
        routes.append((*points, (centres[chain[-1]], boxes[chain[-1]].y)))
    width = max(centres[n] + widths[n] / 2 for n in range(len(widths)))
    return Layout(boxes, tuple(routes), width, tops[-1] + heights[-1])


def _ordered(layers: list[list[int]], above: list[list[int]], below: list[list[int]]) -> list[list[int]]:
    """Layers whose nodes stand in the order of their neighbours' means."""
    place = {n: float(i) for layer in layers for i, n in enumerate(layer)}
    for sweep in range(_SWEEPS):
        near, order = (above, layers) if sweep % 2 == 0 else (below, layers[::-1])
        for layer in order:
            means = {n: sum(place[m] for m in near[n]) / len(near[n]) if near[n] else place[n] for n in layer}
            layer.sort(key=lambda n: (means[n], n))
            place |= {n: float(i) for i, n in enumerate(layer)}
    return layers


def _places(
    layers: list[list[int]], widths: list[float], above: list[list[int]], below: list[list[int]]
) -> dict[int, float]:
    """Centres: each layer's order kept, no two closer than a gap, as near to the neighbours' mean as that allows."""
    centres: dict[int, float] = {}
    for layer in layers:
        edge = 0.0
        for n in layer:
            centres[n] = edge + widths[n] / 2
            edge += widths[n] + GAP
    for sweep in range(_SWEEPS):
        near, order = (above, layers) if sweep % 2 == 0 else (below, layers[::-1])
        for layer in order:
            wanted = [sum(centres[m] for m in near[n]) / len(near[n]) if near[n] else centres[n] for n in layer]
            apart = [(widths[a] + widths[b]) / 2 + GAP for a, b in itertools.pairwise(layer)]
            centres |= zip(layer, _apart(wanted, apart), strict=True)
    left = min(centres[n] - widths[n] / 2 for n in centres)
    return {n: x - left for n, x in centres.items()}


def _apart(wanted: list[float], apart: list[float]) -> list[float]:
    """The mean of pushing to the right and pushing to the left, both of which keep the distances."""
    right, left = list(wanted), list(wanted)
    for i, distance in enumerate(apart):
        right[i + 1] = max(right[i + 1], right[i] + distance)
    for i, distance in reversed(list(enumerate(apart))):
        left[i] = min(left[i], left[i + 1] - distance)
    return [(a + b) / 2 for a, b in zip(left, right, strict=True)]
