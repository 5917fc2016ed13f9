"""Pictures: whole SVG, colours of the page, nothing fetched, nothing shared between two."""

import math
import re
import sys
from xml.etree import ElementTree

import pytest

from esper.nissa import plots
from esper.nissa.plots import MAX_POINTS, spans, thin
from esper.nissa.seeds import Stay

from .scenario import STATES

LIFE = [Stay(STATES["GERMINATED"], 10, ""), Stay(STATES["GRAFTING"], 20, ""), Stay(STATES["FOSSILIZED"], 50, "")]


@pytest.fixture(scope="module")
def pictures():
    validations = {"run": [(50, 0.5), (100, 0.4)], "never-grown": [(100, 0.6)], "other": [(1, 1.0)]}
    return {
        "losses": plots.losses([(i, 1 / (i + 1)) for i in range(4000)], validations, [30]),
        "lanes": plots.lanes({"fc1/0": LIFE, "$x<y>$/1": LIFE[:1]}, {"fc1/0": [(20, 0.0), (50, 1.0)]}, 100),
        "parameters": plots.parameters([(0, 1000), (50, 1064)]),
        "costs": plots.costs(1e12, 2e12),
    }


def test_each_is_one_svg_element_that_parses_and_scales(pictures):
    for name, picture in pictures.items():
        root = ElementTree.fromstring(picture)
        assert (root.tag, root.get("aria-label")) == ("svg", name)
        assert root.get("viewBox") and root.get("width") is None


def test_nothing_is_fetched_and_no_style_reaches_the_page(pictures):
    for picture in pictures.values():
        assert not re.search(r"https?:|@import|<script|<style|<image|url\((?!#)", picture)


def test_colours_are_the_pages(pictures):
    for picture in pictures.values():
        assert not re.search(r"#[0-9a-f]{6}\b", picture)
    used = {name: set(re.findall(r"var\(--([a-z0-9-]+)\)", picture)) for name, picture in pictures.items()}
    assert {"run", "never-grown", "alert", "text", "grid"} <= used["losses"]
    assert {"state-2", "state-5", "state-9"} <= used["lanes"]


def test_every_colour_has_a_value_on_a_light_and_a_dark_page(pictures):
    from pathlib import Path

    template = (Path(plots.__file__).parent / "templates" / "report.html.j2").read_text()
    light, dark = template.split("@media (prefers-color-scheme: dark)")
    for variable in plots._VARIABLES:
        assert f"--{variable}:" in light and f"--{variable}:" in dark, variable


def test_ids_are_apart(pictures):
    ids = [set(re.findall(r'\bid="([^"]*)"', picture)) for picture in pictures.values()]
    assert sum(map(len, ids)) == len(set().union(*ids))
    for picture in pictures.values():
        own = set(re.findall(r'\bid="([^"]*)"', picture))
        assert set(re.findall(r'(?:href="|url\()#([^")]*)', picture)) <= own


def test_the_same_data_gives_the_same_bytes(pictures):
    assert plots.costs(1e12, 2e12) == pictures["costs"]


def test_seed_names_are_text_whatever_is_in_them(pictures):
    assert "$x&lt;y&gt;$/1" in pictures["lanes"]


def test_losses_that_fall_far_are_drawn_on_a_logarithmic_scale(pictures):
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", plots.losses([(0, 100.0), (10, 0.1)], {}, []))
    assert len(labels) > 2
    flat = plots.losses([(0, 1.0), (10, 0.9)], {}, [])
    assert "0.9" in flat


def test_numbers_that_are_not_finite_are_left_out():
    assert thin([(1, math.nan), (2, 1.0), (3, math.inf)]) == [(2, 1.0)]
    plots.losses([(1, math.nan)], {"run": [(1, math.inf)]}, [])


@pytest.mark.parametrize("count", [0, 1, MAX_POINTS, MAX_POINTS + 1, 10 * MAX_POINTS + 7])
def test_curves_are_thinned_and_keep_their_ends_and_mean(count):
    curve = [(step, float(step)) for step in range(count)]
    found = thin(curve)
    assert len(found) <= MAX_POINTS
    assert found[-1:] == curve[-1:] or found[-1][0] == count - 1
    if count:
        assert math.isclose(sum(v for _, v in found) / len(found), (count - 1) / 2, rel_tol=0.01, abs_tol=1e-9)


def test_spans_are_the_stays_that_took_time():
    life = [*LIFE, Stay(STATES["CULLED"], 50, ""), Stay(STATES["DORMANT"], 60, "")]
    assert spans(life, 100) == [(10, 20, 2), (20, 50, 5), (50, 60, 10)]
    assert spans(LIFE, 40) == [(10, 20, 2), (20, 50, 5)]
    assert spans([], 40) == []


def test_importing_the_module_does_not_import_matplotlib():
    import subprocess

    program = (
        "import sys, esper.nissa.plots, esper.nissa.report; print('matplotlib' in sys.modules, 'jinja2' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "False"]
