"""Predict a design's forward time and peak memory on a target, from what the evaluator measured of others there.

Ridge regression of the logarithm of a reading on logarithms of exact costs (Hoerl, Kennard 1970,
doi:10.1080/00401706.1970.10488634), its strength chosen by what it makes of readings it was not fitted on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from esper.blueprint.canonical import blueprint_id
from esper.blueprint.infer import infer
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.ir import Graph
from esper.blueprint.operators import OPERATORS

FEWEST = 40  # measurements of a target, below which nothing is predicted
FOLDS = 5  # and the fewest designs that the measurements must be of
_MOST_LOG = 43.0  # of a prediction's logarithm: what is further out is no reading, and must fit 64 bits
_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
_TYPES = (torch.float64, torch.float16, torch.bfloat16)  # beside float32

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class Measurement:
    """One kernel measured on an input of `batch` elements with `positions` positions each."""

    graph: Graph
    interface: Interface
    target: str
    batch: int
    positions: int
    forward_us: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Predictor:
    """Fitted to `count` measurements of one target.

    The errors: median of |predicted / seen - 1| over designs held out. `inputs`: (kind, element type, batch,
    positions) that were measured, which alone the errors speak for.
    """

    target: str
    count: int
    latency_error: float
    memory_error: float
    inputs: frozenset[tuple[Kind, torch.dtype, int, int]]
    _latency: Array
    _memory: Array

    def predict(self, graph: Graph, interface: Interface, batch: int, positions: int) -> tuple[float, float]:
        """(forward time in microseconds, peak bytes). Raises InvalidBlueprint where it cannot be lowered there."""
        row = features(graph, interface, batch, positions)
        forward_us, peak_bytes = (np.exp(min(row @ weights, _MOST_LOG)) for weights in (self._latency, self._memory))
        return float(forward_us), float(peak_bytes)


def fit(measurements: Sequence[Measurement], target: str) -> tuple[Predictor | None, str]:
    """(a predictor for `target`, reason); None where there are too few measurements to know how far it is off."""
    mine = [m for m in measurements if m.target == target and m.forward_us > 0 and m.peak_bytes > 0]
    if len(mine) < FEWEST:
        return None, f"{len(mine)} measurements on {target}, at least {FEWEST} are needed"
    designs = _numbered([blueprint_id(m.graph) for m in mine])
    if (different := int(designs.max()) + 1) < FOLDS:
        return None, f"{len(mine)} measurements on {target} are of {different} designs, at least {FOLDS} are needed"
    rows = np.stack([features(m.graph, m.interface, m.batch, m.positions) for m in mine])
    latency, latency_error = _fitted(rows, np.log([m.forward_us for m in mine]), designs)
    memory, memory_error = _fitted(rows, np.log([float(m.peak_bytes) for m in mine]), designs)
    reason = f"{len(mine)} measurements on {target}; held out: time {latency_error:.0%}, memory {memory_error:.0%} off"
    inputs = frozenset((m.interface.kind, m.interface.dtype, m.batch, m.positions) for m in mine)
    return Predictor(target, len(mine), latency_error, memory_error, inputs, latency, memory), reason


def features(graph: Graph, interface: Interface, batch: int, positions: int) -> Array:
    """[K] of one design on an input; its first element is 1."""
    cost = infer(graph, interface, positions)
    elements = batch * positions * interface.channels
    kinds = [OPERATORS[node.operator] for node in graph.nodes]
    looks = sum(kind.mixes_positions for kind in kinds)
    weighted = sum(bool(kind.roles) for kind in kinds)
    products = batch * cost.cost.products.at(positions)
    sizes = [
        cost.activation_elements(batch, positions) + 2 * cost.parameter_count + elements,
        cost.forward_flops(batch, positions),
        products,
        elements,
        cost.parameter_count,
        batch * positions * positions if looks else 0,
    ]
    logs = np.log1p(np.array(sizes, dtype=np.float64))
    counts = np.array([len(kinds), looks, weighted], dtype=np.float64)
    place = np.array([interface.kind.position_dims == dims for dims in (1, 2)], dtype=np.float64)
    layout = np.array([interface.kind.channels_first, *(interface.dtype == one for one in _TYPES)], dtype=np.float64)
    return np.concatenate([[1.0], logs, logs**2 / 10, counts, np.log(counts + 1), place, layout])


def _numbered(names: Sequence[str]) -> Array:
    """[N] From 0, in the order names come first; the same for the same name."""
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    return np.array([places[name] for name in names])


def _folds(designs: Array) -> Array:
    """[N] Of 0 to FOLDS - 1; a design that was measured at several interfaces is in one."""
    fold: Array = np.unique(designs, return_inverse=True)[1] % FOLDS
    return fold


def _fitted(rows: Array, wanted: Array, designs: Array) -> tuple[Array, float]:
    """Weights fitted to all, and the median error of those fitted without the designs they are tried on.

    The strength is chosen anew, by the same means, without what is held out: the error is not that of a choice.
    """
    fold = _folds(designs)
    off = []
    for k in range(FOLDS):
        kept, out = fold != k, fold == k
        weights = _ridge(rows[kept], wanted[kept], _strength(rows[kept], wanted[kept], designs[kept]))
        off.append(_error(rows[out] @ weights, wanted[out]))
    return _ridge(rows, wanted, _strength(rows, wanted, designs)), float(np.median(np.concatenate(off)))


def _strength(rows: Array, wanted: Array, designs: Array) -> float:
    """The one whose fits to four fifths of the designs are least off on the rest."""
    fold = _folds(designs)

    def off(strength: float) -> float:
        errors = [
            _error(rows[fold == k] @ _ridge(rows[fold != k], wanted[fold != k], strength), wanted[fold == k])
            for k in range(FOLDS)
        ]
        return float(np.median(np.concatenate(errors)))

    return min(_STRENGTHS, key=off)


def _error(predicted: Array, seen: Array) -> Array:
    """|predicted / seen - 1| of two logarithms."""
    off: Array = np.abs(np.exp(predicted - seen) - 1)
    return off


def _ridge(rows: Array, wanted: Array, strength: float) -> Array:
    """The intercept, the first element, is not held small."""
    penalty = strength * np.eye(rows.shape[1])
    penalty[0, 0] = 0.0
    weights: Array = np.linalg.lstsq(rows.T @ rows + penalty, rows.T @ wanted, rcond=None)[0]
    return weights
