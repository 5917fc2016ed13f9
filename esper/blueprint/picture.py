"""A graph as a picture: SVG that needs nothing but itself, the same for the same graph."""

import itertools
from html import escape

from esper.blueprint.canonical import Canonical, Step, blueprint_id, canonical
from esper.blueprint.check import shape_text
from esper.blueprint.ir import INPUT, Graph
from esper.blueprint.layout import Box, Layout, layout
from esper.blueprint.signature import Extent
from esper.blueprint.text import settings_text

MARGIN, LINE, PAD, CHARACTER = 16.0, 15.0, 8.0, 6.7  # of the picture, a text line, inside a box, a character's width
# a style sheet inside a page is the whole page's: every rule is bound to the picture's class
_RULES = {
    "text": "font:11px ui-monospace,monospace;fill:#1b1f24",
    "text.op": "font-weight:bold;font-size:12px",
    ".box": "fill:#f6f8fa;stroke:#57606a",
    ".weighted": "fill:#ddf4ff",
    ".pooled": "stroke-dasharray:4 3",
    ".end": "fill:#fff8c5",
    ".edge": "fill:none;stroke:#57606a;stroke-width:1.2",
}
_STYLE = "".join(f".blueprint {of}{{{rule}}}" for of, rule in _RULES.items())


def picture(graph: Graph, name: str = "") -> str:
    """The SVG element. `name` goes into its title. Raises InvalidBlueprint where the graph is ill-formed."""
    form = canonical(graph)
    number = blueprint_id(graph)
    texts = [[INPUT, "-> c"], *(_text(step, form) for step in form.steps)]
    sizes = [(max(map(len, lines)) * CHARACTER + 2 * PAD, len(lines) * LINE + 2 * PAD) for lines in texts]
    edges = list(dict.fromkeys((source, i) for i, step in enumerate(form.steps, 1) for source in step.inputs))
    placed = layout(sizes, edges)
    title = f"Blueprint {name or number[:16]}"
    names = [INPUT, *(step.node.name for step in form.steps)]
    parts = [
        *(_edge(placed, at, names[source], names[user]) for at, (source, user) in enumerate(edges)),
        *(_box(placed.boxes[i], lines, names[i], _classes(form, i)) for i, lines in enumerate(texts)),
    ]
    width, height = (f"{size + 2 * MARGIN:.0f}" for size in (placed.width, placed.height))
    # its own ids, so that several pictures can stand on one page
    ids = f"t{number[:12]} d{number[:12]}"
    arrow = (
        f'<defs><marker id="a{number[:12]}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0L8 4L0 8z" fill="#57606a"/></marker></defs>'
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-labelledby="{ids}" class="blueprint" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    )
    words = f'<title id="t{number[:12]}">{escape(title)}</title><desc id="d{number[:12]}">{escape(_said(form))}</desc>'
    body = "\n".join(parts).replace("url(#arrow)", f"url(#a{number[:12]})")
    return f"{head}\n{words}\n<style>{_STYLE}</style>{arrow}\n{body}\n</svg>\n"


def _text(step: Step, form: Canonical) -> list[str]:
    """The lines in a node's box."""
    settings = settings_text(step)
    parameters = [form.parameters[place] for place in step.parameters]
    pooled = " pooled" if step.value.extent is Extent.POOLED else ""
    return [
        step.node.operator,
        step.node.name,
        *([settings] if settings else []),
        *(f"{p.name} {shape_text(p.shape)} {p.initialiser.value}" for p in parameters),
        f"-> {step.value.channels}{pooled}",
    ]


def _said(form: Canonical) -> str:
    """The graph in words, for who cannot see it."""
    names = [INPUT, *(step.node.name for step in form.steps)]
    steps = (f"{s.node.name} is {s.node.operator} of {', '.join(names[i] for i in s.inputs)}" for s in form.steps)
    return f"{len(form.steps)} operators over the input; {'; '.join(steps)}; the output is {names[-1]}."


def _classes(form: Canonical, at: int) -> str:
    if at == 0:
        return "box end"
    step = form.steps[at - 1]
    weighted, pooled = bool(step.parameters), step.value.extent is Extent.POOLED
    return "box" + (" weighted" if weighted else "") + (" pooled" if pooled else "")


def _box(box: Box, lines: list[str], name: str, classes: str) -> str:
    x, y = box.x + MARGIN, box.y + MARGIN
    middle = x + box.width / 2
    rows = "".join(
        f'<text x="{middle:.1f}" y="{y + PAD + (i + 0.75) * LINE:.1f}" text-anchor="middle"'
        + (' class="op"' if i == 0 else "")
        + f">{escape(line)}</text>"
        for i, line in enumerate(lines)
    )
    shape = f'x="{x:.1f}" y="{y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="4"'
    return f'<g data-node="{escape(name)}"><rect class="{classes}" {shape}/>{rows}</g>'


def _edge(placed: Layout, at: int, source: str, user: str) -> str:
    """A curve from layer to layer, upright where it meets one."""
    points = [(x + MARGIN, y + MARGIN) for x, y in placed.routes[at]]
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for (x, y), (to_x, to_y) in itertools.pairwise(points):
        bend = (y + to_y) / 2
        path += f"C{x:.1f} {bend:.1f} {to_x:.1f} {bend:.1f} {to_x:.1f} {to_y:.1f}"
    ends = f'data-from="{escape(source)}" data-to="{escape(user)}"'
    return f'<path class="edge" {ends} d="{path}" marker-end="url(#arrow)"/>'
