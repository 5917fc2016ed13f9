"""Ranking: what is admitted, who comes first, and that the reason says why."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.urza.codec import Candidate, Wish
from esper.urza.search import rank

TAGS = ["fast", "small", "stable", "gpu"]


def wish(**changes: object) -> Wish:
    fields = {
        "required_tags": frozenset(),
        "preferred_tags": frozenset(),
        "excluded_tags": frozenset(),
        "max_parameters": 0,
        "max_forward_us": 0.0,
        "max_peak_bytes": 0,
        "limit": 20,
    }
    return Wish(**(fields | changes))


def one(name: str, parameters: int = 100, us: float = 10.0, peak: int = 1000, tags: tuple[str, ...] = ()) -> Candidate:
    return Candidate(name, parameters, us, peak, frozenset(tags))


def names(candidates: list[Candidate], wanted: Wish) -> list[str]:
    return [place.artifact_id for place in rank(candidates, wanted)]


def test_required_and_excluded_tags_decide_before_any_score() -> None:
    kernels = [one("a", tags=("fast",)), one("b", tags=("fast", "gpu")), one("c", us=0.1)]
    wanted = wish(required_tags=frozenset({"fast"}), excluded_tags=frozenset({"gpu"}))
    assert names(kernels, wanted) == ["a"]


@pytest.mark.parametrize(
    ("limit", "worst"),
    [("max_parameters", {"parameters": 101}), ("max_forward_us", {"us": 10.1}), ("max_peak_bytes", {"peak": 1001})],
)
def test_a_limit_is_inclusive(limit: str, worst: dict[str, float]) -> None:
    at_limit = {"max_parameters": 100, "max_forward_us": 10.0, "max_peak_bytes": 1000}[limit]
    assert names([one("in"), one("out", **worst)], wish(**{limit: at_limit})) == ["in"]


def test_what_was_not_measured_is_within_no_limit() -> None:
    kernels = [one("timed"), one("untimed", us=0.0), one("unweighed", peak=0)]
    assert names(kernels, wish(max_forward_us=1e9)) == ["timed", "unweighed"]
    assert names(kernels, wish(max_peak_bytes=10**9)) == ["timed", "untimed"]
    assert set(names(kernels, wish())) == {"timed", "untimed", "unweighed"}


def test_one_preferred_tag_outweighs_every_figure() -> None:
    best_figures = one("a", parameters=0, us=0.001, peak=1)
    tagged = one("b", parameters=10**9, us=1e6, peak=10**12, tags=("stable",))
    assert names([best_figures, tagged], wish(preferred_tags=frozenset({"stable"}))) == ["b", "a"]


def test_faster_then_smaller_then_leaner() -> None:
    assert names([one("slow", us=20.0), one("fast", us=10.0)], wish()) == ["fast", "slow"]
    assert names([one("large", parameters=200), one("small")], wish()) == ["small", "large"]
    assert names([one("fat", peak=2000), one("lean")], wish()) == ["lean", "fat"]


def test_ties_go_to_the_lower_id_and_the_limit_cuts() -> None:
    kernels = [one("c"), one("a"), one("b")]
    assert names(kernels, wish()) == ["a", "b", "c"]
    assert names(kernels, wish(limit=2)) == ["a", "b"]


def test_the_reason_has_the_figures_it_was_made_of() -> None:
    kernels = [one("a", us=10.0, tags=("fast", "gpu")), one("b", us=25.0, parameters=300, peak=0)]
    first, second = rank(kernels, wish(preferred_tags=frozenset({"fast", "small"})))
    assert first.reason.startswith("1 of 2 preferred tags (fast); forward 10 us, 1x the fastest; 100 parameters")
    assert "2.5x the fastest; 300 parameters, fewest 100; peak not measured" in second.reason
    assert "forward time not measured" in rank([one("c", us=0.0)], wish())[0].reason


def test_nothing_gives_nothing() -> None:
    assert rank([], wish()) == []


CANDIDATES = st.lists(
    st.builds(
        Candidate,
        st.text("abcdef", min_size=1, max_size=6),
        st.integers(0, 10**6),
        st.floats(0, 1e6),
        st.integers(0, 10**9),
        st.frozensets(st.sampled_from(TAGS)),
    ),
    max_size=12,
    unique_by=lambda candidate: candidate.artifact_id,
)


@given(candidates=CANDIDATES, preferred=st.frozensets(st.sampled_from(TAGS)), data=st.data())
def test_the_order_is_one_whatever_order_they_came_in(
    candidates: list[Candidate], preferred: frozenset[str], data: st.DataObject
) -> None:
    wanted = wish(preferred_tags=preferred)
    ranked = rank(candidates, wanted)
    assert rank(data.draw(st.permutations(candidates)), wanted) == ranked
    assert [place.score for place in ranked] == sorted((place.score for place in ranked), reverse=True)
    by_id = {candidate.artifact_id: candidate for candidate in candidates}
    counts = [len(by_id[place.artifact_id].tags & preferred) for place in ranked]
    assert all(count <= place.score <= count + 1.0 + 1e-9 for count, place in zip(counts, ranked, strict=True))
