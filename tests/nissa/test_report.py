"""report.html: everything on one page, nothing from outside, and honest about what is missing."""

import html.parser
import re

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from esper.api.nissa.v1 import observability_pb2 as pb
from esper.errors import Exhausted, PreconditionFailed
from esper.nissa import plots, report
from esper.nissa.report import position_of, render, write_report
from esper.nissa.summary import record_of

from .feed import recorded
from .scenario import RUN, ancestors, hello, moved, seed, status
from .strategies import events

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(html.parser.HTMLParser):
    """Tags that are open, text by section, attributes that fetch."""

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.fetched = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "action", "data") and not value.startswith("#"):
                self.fetched.append((tag, name, value))

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def whole():
    return render(record_of(RUN, recorded("/runs/1")), {})


def test_the_page_is_well_formed_and_fetches_nothing(whole):
    page = Page(whole)
    assert page.open == []
    assert page.fetched == []
    assert "<script" not in whole and "@import" not in whole and "http:" not in whole and "https:" not in whole
    assert "default-src 'none'" in whole


def test_the_page_has_every_section_and_picture(whole):
    for head in ("Result", "Losses", "Seeds", "Parameters", "Cost", "Fossils", "Culls", "Decisions", "Notes"):
        assert f"<h2>{head}</h2>" in whole
    assert re.findall(r'<svg [^>]*aria-label="(\w+)"', whole) == ["losses", "lanes", "parameters", "costs"]


def test_the_page_says_what_happened(whole):
    text = Page(whole).text
    assert "run run-1 task digits policy heuristic random seed 7" in text
    assert "stalled_steps 0" in text
    assert "never-grown 0.45 0.8900 1,000 1 TFLOP" in text
    assert "keep fc1/0: gain +3.10 % ± 0.60 % against its twin on 512 examples, false-keep rate 3.00 %" in text
    assert "a" * 64 in text
    assert "+0.10 % ± 0.60 % against its twin gain 0.10 % is below 1 %" in text
    assert "3 decisions changed nothing" in text


def test_words_from_outside_are_text(whole):
    assert "a &lt;b&gt;bold&lt;/b&gt; note &amp; more" in whole


def test_the_genealogy_of_what_was_kept_names_parents_moves_and_papers():
    known = {entry.blueprint_id: entry for entry in ancestors()}
    page = render(record_of(RUN, recorded()), {"a" * 64: status("a" * 64, "karn_1")}, known)
    text = Page(page).text
    assert "fc1/0 karn_1 of low_rank and <i>gate</i> karn made for map[8] float32: add gelu, then remove add" in text
    assert "low_rank library Hu et al. 2021, arXiv:2106.09685" in text
    assert "&lt;i&gt;gate&lt;/i&gt;" in page and "<i>gate" not in page
    assert "has not told" not in text


def test_a_kept_design_is_drawn_once_and_the_page_stays_whole():
    known = {entry.blueprint_id: entry for entry in ancestors()}
    kernels = {"a" * 64: status("a" * 64, "karn_1")}
    page = render(record_of(RUN, recorded()), kernels, known)
    assert page.count('class="blueprint"') == 1
    assert "<title id=" in page and "Blueprint karn_1 of low_rank and &lt;i&gt;gate&lt;/i&gt;</title>" in page
    whole = Page(page)
    assert (whole.open, whole.fetched) == ([], []) and "http:" not in page
    assert render(record_of(RUN, recorded()), kernels, known) == page


def test_a_graph_that_cannot_be_read_is_not_drawn_and_the_rest_is_told():
    known = {entry.blueprint_id: entry for entry in ancestors()}
    known["c" * 64].graph.output = "nowhere"
    page = render(record_of(RUN, recorded()), {"a" * 64: status("a" * 64, "karn_1")}, known)
    assert 'class="blueprint"' not in page and "arXiv:2106.09685" in page


def test_a_genealogy_that_is_not_known_is_said_to_be_missing_and_without_fossils_there_is_none():
    text = Page(render(record_of(RUN, recorded()), {"a" * 64: status("a" * 64, "karn_1")})).text
    assert "the library has not told what every one of these descends from" in text
    assert "Genealogy" not in render(record_of(RUN, []), {}, {e.blueprint_id: e for e in ancestors()})


def test_the_page_suits_a_phone_paper_and_a_dark_room(whole):
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in whole
    assert "@media (prefers-color-scheme: dark)" in whole
    assert "@media print" in whole


def test_of_an_empty_run_it_says_that_nothing_is_known():
    page = render(record_of(RUN, []), {})
    text = Page(page).text
    assert "<svg" not in page
    for words in ("hello was not heard", "no summary of the run", "no losses were heard", "no seed moved"):
        assert words in text
    assert "0.0" not in text


def test_a_run_without_twin_says_that_the_curve_is_alone():
    made = [event for event in recorded() if not event.HasField("validation")]
    assert "the curve is the run&#39;s alone" in render(record_of(RUN, made), {})


def test_many_seeds_are_left_out_and_counted(monkeypatch):
    monkeypatch.setattr(plots, "MAX_LANES", 3)
    made = [pb.RunEvent(transition=moved("DORMANT", "GERMINATED", 5, seed(f"l{i}"))) for i in range(9)]
    made.append(pb.RunEvent(transition=moved("FINE_TUNING", "FOSSILIZED", 7, seed("l8"))))
    page = render(record_of(RUN, made), {})
    assert "6 more seeds moved" in page
    assert ">l8/0</text>" in page


@settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=15, phases=[Phase.generate])
@given(st.lists(events(), max_size=6))
def test_any_events_give_a_page_that_is_well_formed(made):
    page = Page(render(record_of(RUN, made), {}))
    assert (page.open, page.fetched) == ([], [])


def test_the_report_is_written_whole_and_knows_how_far_it_goes(tmp_path):
    assert position_of(tmp_path) == 0
    record = record_of(RUN, recorded())
    path = write_report(tmp_path / "run", record, {})
    assert path == tmp_path / "run" / "report.html"
    assert position_of(path.parent) == len(recorded())
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_without_a_hello_there_is_no_place_for_it():
    with pytest.raises(PreconditionFailed, match="its hello was not heard"):
        write_report(None, record_of(RUN, []), {})


def test_a_full_disk_is_said_and_leaves_the_old_report(tmp_path, monkeypatch):
    write_report(tmp_path, record_of(RUN, [pb.RunEvent(position=1, hello=hello())]), {})
    monkeypatch.setattr(report, "replace_text", lambda *_: (_ for _ in ()).throw(Exhausted("disk")))
    with pytest.raises(Exhausted):
        write_report(tmp_path, record_of(RUN, recorded()), {})
    assert position_of(tmp_path) == 1
