"""The report's plots, as inline SVG that follows the page's colours. matplotlib is imported when one is drawn.

Colours are drawn as placeholders and become CSS variables, so that one picture serves a
light and a dark page. Ids are prefixed, so that several pictures share a page.
"""

import io
import math
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from esper.nissa.codec import state_name
from esper.nissa.seeds import DORMANT, Stay
from esper.nissa.summary import Curve

# Placeholder colours, one for each CSS variable of the template.
_VARIABLES = {
    "text": "#010101",
    "grid": "#020202",
    "run": "#030303",
    "never-grown": "#040404",
    "static-final": "#050505",
    "alert": "#060606",
    **{f"state-{number}": f"#07{number:02d}07" for number in range(1, 13)},
}
MAX_POINTS = 1500
MAX_LANES = 40
# Losses that differ by more are drawn on a logarithmic scale.
LOG_SPREAD = 50.0
LARGEST = 1e30
# rcParams are the process's own; two reports may be written at once.
_drawing = threading.Lock()


def losses(train: Curve, validations: Mapping[str, Curve], rollbacks: Sequence[int]) -> str:
    """Training loss of the run, held-out losses of every arm, a line where a rollback went back to."""

    def draw(axes: Any) -> None:
        curve = thin(train)
        axes.plot(*_columns(curve), color=_VARIABLES["run"], linewidth=1, alpha=0.7, label="run, training")
        for arm, points in sorted(validations.items()):
            colour = _VARIABLES.get(arm, _VARIABLES["text"])
            label = f"{_label(arm)}, held out"
            axes.plot(
                *_columns(thin(sorted(points))), color=colour, marker="o", markersize=3, linewidth=1.2, label=label
            )
        for step in rollbacks:
            axes.axvline(step, color=_VARIABLES["alert"], linewidth=1, linestyle=":")
        axes.set(xlabel="step", ylabel="loss")
        if _spread([value for _, value in curve]) > LOG_SPREAD:
            axes.set_yscale("log")
        _legend(axes)

    return _svg("losses", draw, height=3.4)


def parameters(curve: Curve) -> str:
    """Parameters of the model over time."""

    def draw(axes: Any) -> None:
        axes.step(*_columns(thin(curve)), where="post", color=_VARIABLES["run"], linewidth=1.5)
        axes.set(xlabel="step", ylabel="parameters")
        axes.set_ylim(0, 1.1 * max(1, *(value for _, value in curve)))

    return _svg("parameters", draw, height=2.2)


def costs(train_flops: float, nursery_flops: float) -> str:
    """Where the floating-point operations went."""

    def draw(axes: Any) -> None:
        axes.barh([0], [train_flops], color=_VARIABLES["run"], label="training", height=0.5)
        label = "nursery, twins, measurements"
        axes.barh([0], [nursery_flops], left=[train_flops], color=_VARIABLES["never-grown"], label=label, height=0.5)
        axes.set(yticks=[], xlabel="floating-point operations")
        _legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)

    return _svg("costs", draw, height=1.3)


def lanes(stays: Mapping[str, Sequence[Stay]], alphas: Mapping[str, Curve], last_step: int) -> str:
    """One lane per seed, coloured by state, with its alpha as a line from the lane's foot (0) to its top (1)."""

    def draw(axes: Any) -> None:
        for lane, (seed, of_seed) in enumerate(stays.items()):
            for begin, end, state in spans(of_seed, last_step):
                colour = _VARIABLES.get(f"state-{state}", _VARIABLES["text"])
                axes.broken_barh([(begin, end - begin)], (lane - 0.4, 0.8), facecolor=colour, gid=state_name(state))
            line = thin(alphas.get(seed, []))
            axes.plot([s for s, _ in line], [lane + 0.4 - 0.8 * a for _, a in line], color=_VARIABLES["text"])
        axes.set_yticks(range(len(stays)), [_label(seed) for seed in stays])
        axes.set(xlabel="step", xlim=(0, max(last_step, 1)), ylim=(len(stays) - 0.5, -0.5))

    return _svg("lanes", draw, height=0.9 + 0.34 * len(stays))


def spans(stays: Sequence[Stay], last_step: int) -> list[tuple[int, int, int]]:
    """(begin, end, state) of each stay that took time and was not dormant."""
    ends = [*(stay.step for stay in stays[1:]), last_step]
    rows = [(stay.step, end, stay.state) for stay, end in zip(stays, ends[: len(stays)], strict=True)]
    return [row for row in rows if row[1] > row[0] and row[2] != DORMANT]


def thin(curve: Curve) -> Curve:
    """At most MAX_POINTS points: means of neighbours, at the last one's step; of values that can be drawn."""
    curve = [(step, value) for step, value in curve if drawable(value)]
    size = -(-len(curve) // MAX_POINTS)
    if size <= 1:
        return curve
    groups = [curve[at : at + size] for at in range(0, len(curve), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def drawable(value: float) -> bool:
    """Whether a value is finite, and of a size that an axis can have."""
    return math.isfinite(value) and abs(value) < LARGEST


def _label(name: str) -> str:
    """A name in the characters that the measuring font surely has."""
    return "".join(letter if " " <= letter <= "~" else "?" for letter in name)


def _spread(values: Sequence[float]) -> float:
    """Largest by smallest; 1 where some are not positive."""
    return max(values) / min(values) if values and min(values) > 0 else 1.0


def _columns(curve: Curve) -> tuple[list[int], list[float]]:
    return [step for step, _ in curve], [value for _, value in curve]


def _legend(axes: Any, **where: Any) -> None:
    axes.legend(frameon=False, fontsize=8, labelcolor=_VARIABLES["text"], **where)


def _svg(name: str, draw: Callable[[Any], None], height: float) -> str:
    """The picture `draw` makes on a pair of axes, 7.2 inches wide."""
    import matplotlib
    from matplotlib.figure import Figure

    text = _VARIABLES["text"]
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "text.parse_math": False,
        "font.size": 9,
        "axes.edgecolor": _VARIABLES["grid"],
        "axes.labelcolor": text,
        "text.color": text,
        "xtick.color": text,
        "ytick.color": text,
    }
    with _drawing, matplotlib.rc_context(settings):
        figure = Figure(figsize=(7.2, height), layout="constrained")
        axes = figure.subplots()
        axes.grid(True, color=_VARIABLES["grid"], linewidth=0.5)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        out = io.StringIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    return _inline(out.getvalue(), name)


def _inline(document: str, name: str) -> str:
    """The svg element alone: no prologue, metadata, size or fonts of its own, ids that are `name`'s, CSS colours."""
    svg = document[document.index("<svg") :]
    # The style would apply to the whole page; the template has it for pictures only.
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r" ?font-family: [^;\"]*;?", "", svg)
    head, _, body = svg.partition(">")
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None, "matplotlib writes a viewBox"
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = body.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    for variable, colour in _VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    return f'<svg {box.group(0)} role="img" aria-label="{name}">{body}'
