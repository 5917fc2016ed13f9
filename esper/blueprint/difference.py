"""What is otherwise in one graph than in another, as sentences. None if and only if they have one id."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

from esper.blueprint.canonical import Canonical, Step, canonical
from esper.blueprint.check import shape_text
from esper.blueprint.ir import INPUT, Graph
from esper.blueprint.operators import OPERATORS
from esper.blueprint.text import settings_text


@dataclass(frozen=True, slots=True)
class Change:
    """`mark`: - is only in the first graph, + only in the second, ~ in both and otherwise."""

    mark: str
    text: str

    def __str__(self) -> str:
        return f"{self.mark} {self.text}"


def difference(first: Graph, second: Graph) -> list[Change]:
    """Changes from `first` to `second`, in the order of evaluation. Raises InvalidBlueprint where one is ill-formed."""
    a, b = canonical(first), canonical(second)
    if a.text == b.text:
        return []
    pairs, lone = _paired(a, b)
    changes = [_lone("-", a, i) for i in lone[0]] + [_lone("+", b, i) for i in lone[1]]
    values, parameters = {0: 0} | dict(pairs), dict[int, int]()
    for i, j in pairs:
        changes += (Change("~", text) for text in _node(a, b, i, j, values, parameters))
    last = (len(a.steps), len(b.steps))
    if values.get(last[0]) != last[1]:
        changes.append(Change("~", f"the output is {_name(b, last[1])} instead of {_name(a, last[0])}"))
    return changes


def _paired(a: Canonical, b: Canonical) -> tuple[list[tuple[int, int]], tuple[list[int], list[int]]]:
    """Steps (counted from 1) that stand for each other, and those of each graph that stand alone."""
    pairs: list[tuple[int, int]] = []
    lone: tuple[list[int], list[int]] = ([], [])
    matcher = difflib.SequenceMatcher(None, [_key(s) for s in a.steps], [_key(s) for s in b.steps], autojunk=False)
    for _, a0, a1, b0, b1 in matcher.get_opcodes():
        both = min(a1 - a0, b1 - b0)
        pairs += [(a0 + i + 1, b0 + i + 1) for i in range(both)]
        lone[0].extend(range(a0 + both + 1, a1 + 1))
        lone[1].extend(range(b0 + both + 1, b1 + 1))
    return pairs, lone


def _key(step: Step) -> tuple[str, str]:
    return step.node.operator, str(sorted((name, str(value)) for name, value in step.attributes.items()))


def _lone(mark: str, form: Canonical, i: int) -> Change:
    step = form.steps[i - 1]
    inputs = ", ".join(_name(form, source) for source in step.inputs)
    return Change(mark, f"{step.node.name} = {step.node.operator}({inputs}) {settings_text(step)}".rstrip())


def _node(
    a: Canonical, b: Canonical, i: int, j: int, values: dict[int, int], parameters: dict[int, int]
) -> Iterator[str]:
    """How a step of the second graph is otherwise than the one it stands for; `parameters` grows."""
    one, other = a.steps[i - 1], b.steps[j - 1]
    what = f"{other.node.name} ({other.node.operator})"
    if one.node.operator != other.node.operator:
        yield f"{what}: {other.node.operator} instead of {one.node.operator}"
    for name in sorted({*one.attributes, *other.attributes}):
        before, after = one.attributes.get(name), other.attributes.get(name)
        if before != after and one.node.operator == other.node.operator:
            yield f"{what}: {name} is {after} instead of {before}"
    mapped, taken = [values.get(source, -1) for source in one.inputs], list(other.inputs)
    if OPERATORS[one.node.operator].commutative and OPERATORS[other.node.operator].commutative:
        mapped, taken = sorted(mapped), sorted(taken)
    if mapped != taken:
        before_, after_ = (", ".join(_name(f, n) for n in s.inputs) for f, s in ((a, one), (b, other)))
        yield f"{what}: takes {after_} instead of {before_}"
    if len(one.parameters) != len(other.parameters):
        yield f"{what}: {len(other.parameters)} parameters instead of {len(one.parameters)}"
    for p, q in zip(one.parameters, other.parameters, strict=False):
        old, new = a.parameters[p], b.parameters[q]
        if old.shape != new.shape:
            yield f"{what}: {new.name} is {shape_text(new.shape)} instead of {shape_text(old.shape)}"
        if old.initialiser != new.initialiser:
            yield f"{what}: {new.name} starts from {new.initialiser.value} instead of {old.initialiser.value}"
        known = parameters.get(p)
        if (known is None and q in parameters.values()) or known not in (None, q):
            yield f"{what}: {new.name} is shared with other nodes than {old.name}"
        parameters.setdefault(p, q)


def _name(form: Canonical, value: int) -> str:
    return form.steps[value - 1].node.name if value else INPUT
