"""The canonical form again, written from docs/blueprint-ir.md alone and not from esper.blueprint.canonical."""

import hashlib
import struct

import pytest
from hypothesis import given, settings

from esper.blueprint.canonical import canonical
from esper.blueprint.ir import Dimension
from esper.blueprint.operators import OPERATORS
from esper.karn.templates import TEMPLATES

from .strategies import graphs

COMMUTE = ("add", "mul")


def h(*parts):
    return hashlib.sha256("\n".join(parts).encode("utf-8")).hexdigest()


def size(d):
    return f"max({d.minimum},c*{d.multiply}/{d.divide})" if d.of_channels else f"{d.minimum}"


def written(value):
    if isinstance(value, Dimension):
        return size(value)
    return struct.pack(">d", value).hex() if isinstance(value, float) else f"{value}"


class Reading:
    def __init__(self, graph):
        self.declared = {p.name: f"{p.initialiser.value}[{','.join(map(size, p.shape))}]" for p in graph.parameters}
        self.key_of, nodes = {"input": "input"}, {n.name: n for n in graph.nodes}
        self.keys = []  # distinct expressions, inputs before users

        def visit(name):
            if name not in self.key_of:
                node = nodes[name]
                inputs = [visit(i) for i in node.inputs]
                defaults = {s.name: s.default for s in OPERATORS[node.operator].settings if s.default is not None}
                values = defaults | dict(node.attributes)
                silent = {(s.name, s.default) for s in OPERATORS[node.operator].settings if s.implied}
                text = ",".join(f"{k}={written(v)}" for k, v in sorted(values.items()) if (k, v) not in silent)
                ordered = sorted(inputs, key=repr) if node.operator in COMMUTE else inputs
                key = (node.operator, tuple(ordered), node.parameters, text)
                self.key_of[name] = key
                if key not in self.keys:
                    self.keys.append(key)
            return self.key_of[name]

        self.output = visit(graph.output)

    def values(self, colour):
        found = {"input": h("input")}
        for operator, inputs, parameters, text in self.keys:
            mine = [found[i] for i in inputs]
            mine = sorted(mine) if operator in COMMUTE else mine
            key = (operator, inputs, parameters, text)
            found[key] = h(operator, text, ",".join(mine), ",".join(colour[p] for p in parameters))
        return found

    def refine(self, colour):
        while True:
            value = self.values(colour)
            marks = {key: [] for key in [*self.keys, "input"]}
            uses = {p: [] for p in colour}
            marks[self.output] = ["output"]
            for key in reversed(self.keys):
                place = h("place", value[key], *sorted(marks[key]))
                for i, source in enumerate(key[1]):
                    marks[source].append(h(place, "any" if key[0] in COMMUTE else str(i)))
                for i, p in enumerate(key[2]):
                    uses[p].append(h(place, str(i)))
            finer = {p: h(c, *sorted(uses[p])) for p, c in colour.items()}
            if len(set(finer.values())) <= len(set(colour.values())):
                return colour
            colour = finer

    def bytes(self):
        colour = self.refine({p: h("parameter", d) for p, d in self.declared.items()})
        while len(set(colour.values())) < len(colour):
            tied = min(c for c in colour.values() if list(colour.values()).count(c) > 1)
            # the last one here, where the implementation may take any other
            one = [p for p, c in colour.items() if c == tied][-1]
            colour = self.refine(colour | {one: h("marked", tied)})
        value, number, place, lines = self.values(colour), {"input": "v0"}, {}, []

        def leave(key):
            if key not in number:
                inputs = sorted(key[1], key=lambda i: value[i]) if key[0] in COMMUTE else key[1]
                arguments = [leave(i) for i in inputs]
                parameters = [place.setdefault(p, f"p{len(place)}") for p in key[2]]
                number[key] = f"v{len(number)}"
                lines.append(f"{number[key]} = {key[0]}({','.join(arguments)};{','.join(parameters)};{key[3]})")
            return number[key]

        leave(self.output)
        head = ["esper blueprint 1", *(f"{i} = {self.declared[p]}" for p, i in place.items())]
        return "".join(line + "\n" for line in head + lines).encode("ascii")


@settings(max_examples=100)
@given(graphs(tuple(OPERATORS)))
def test_random_graphs_have_the_documented_bytes(graph):
    assert Reading(graph).bytes() == canonical(graph).text


@pytest.mark.parametrize("title", TEMPLATES)
def test_templates_have_the_documented_bytes(title):
    assert Reading(TEMPLATES[title].graph).bytes() == canonical(TEMPLATES[title].graph).text
