"""Ranking: what is admitted, who comes first, and that the reason says why."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.urza.codec import Candidate, InterfaceKey, Scope, Wish
from esper.urza.columns import Columns
from esper.urza.pedigree import members
from esper.urza.search import Ranked, rank, unmeasured

TAGS = ["fast", "small", "stable", "gpu"]
SCOPE = Scope(InterfaceKey(1, 8, 1, False), target=0, status=2)


def wish(**changes: object) -> Wish:
    fields = {
        "required_tags": frozenset(),
        "preferred_tags": frozenset(),
        "excluded_tags": frozenset(),
        "max_parameters": 0,
        "max_forward_us": 0.0,
        "max_peak_bytes": 0,
        "max_risk": 0.0,
        "min_interest": 0.0,
        "interest_weight": 0.0,
        "limit": 20,
    }
    return Wish(**(fields | changes))


def one(
    name: str, parameters: int = 100, us: float = 10.0, peak: int = 1000, tags: tuple[str, ...] = (), **changes: object
) -> Candidate:
    fields = {"status": 2, "target": 1, "blueprint": 1, "interest": 0.0, "risk": 0.0} | changes
    return Candidate(
        artifact_id=name,
        parameter_count=parameters,
        forward_us_p50=us,
        peak_bytes=peak,
        tags=frozenset(tags),
        **fields,
    )


def ranked_of(candidates: list[Candidate], wanted: Wish, scope: Scope = SCOPE) -> list[Ranked]:
    table = Columns()
    table.put(candidates)
    return rank(table, scope, wanted)


def names(candidates: list[Candidate], wanted: Wish, scope: Scope = SCOPE) -> list[str]:
    return [place.artifact_id for place in ranked_of(candidates, wanted, scope)]


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
    first, second = ranked_of(kernels, wish(preferred_tags=frozenset({"fast", "small"})))
    assert first.reason.startswith("1 of 2 preferred tags (fast); forward 10 us, 1x the fastest; 100 parameters")
    assert "2.5x the fastest; 300 parameters, fewest 100; peak not measured" in second.reason
    assert "forward time not measured" in ranked_of([one("c", us=0.0)], wish())[0].reason


def test_nothing_gives_nothing() -> None:
    assert ranked_of([], wish()) == []
    assert rank(Columns(), SCOPE, wish()) == []


def test_scope_is_status_target_and_families() -> None:
    kernels = [one("a"), one("b", status=3), one("c", target=2), one("d", blueprint=5)]
    assert names(kernels, wish()) == ["a", "c", "d"]
    assert names(kernels, wish(), replace(SCOPE, target=2)) == ["c"]
    table, both, second = Columns(), np.isin(np.arange(8), [1, 5]), members(5, 8)
    table.put(kernels)
    for families, found in (
        ([second], ["d"]),
        ([both], ["a", "c", "d"]),
        ([both, second], ["d"]),
        ([members(0, 8)], []),
    ):
        assert [place.artifact_id for place in rank(table, SCOPE, wish(), families)] == found


def test_risk_and_interest_limit_and_interest_ranks_when_asked() -> None:
    kernels = [one("a"), one("b", risk=0.2, interest=0.5), one("c", risk=0.4, interest=0.9)]
    assert names(kernels, wish(max_risk=0.2)) == ["b"]
    assert names(kernels, wish(min_interest=0.5)) == ["b", "c"]
    assert names(kernels, wish(interest_weight=1.0)) == ["c", "b", "a"]
    found = ranked_of(kernels, wish(interest_weight=0.5, max_risk=0.3))
    assert found[0].score == pytest.approx(1.0 + 0.25)
    assert found[0].reason.endswith("interest 0.5; risk 0.2, at most 0.3")


def test_a_limit_on_what_no_kernel_has_is_named_with_the_remedy() -> None:
    kernels = [one("a", us=0.0), one("b", us=0.0), one("elsewhere", us=1.0, risk=0.1, status=3)]
    table = Columns()
    table.put(kernels)

    def reason(*, scope: Scope = SCOPE, **limits: float) -> str:
        assert rank(table, scope, wish(**limits)) == []
        return unmeasured(table, scope, wish(**limits))

    remedy = "none of the kernels in question (2) has a measured risk; search without max_risk"
    assert reason(max_risk=1.0) == reason(max_risk=0.5, max_peak_bytes=10**6) == remedy
    both = "a measured forward time and risk; search without max_forward_us and max_risk"
    assert reason(max_risk=0.5, max_forward_us=1e9).endswith(both)
    assert reason(max_peak_bytes=1) == reason(max_parameters=1) == ""  # measured, and over the limit
    assert reason(scope=replace(SCOPE, target=2), max_risk=0.5) == ""  # there is none to ask of
    assert reason(scope=replace(SCOPE, status=3), max_risk=0.05) == ""


CANDIDATES = st.lists(
    st.builds(
        Candidate,
        artifact_id=st.text("abcdef", min_size=1, max_size=6),
        status=st.sampled_from([2, 3]),
        target=st.sampled_from([1, 2]),
        blueprint=st.sampled_from([3, 7]),
        parameter_count=st.integers(0, 10**6),
        forward_us_p50=st.sampled_from([0.0, 1.0, 2.5]) | st.floats(0, 1e6),
        peak_bytes=st.integers(0, 10**9),
        interest=st.floats(0, 1),
        risk=st.floats(0, 1),
        tags=st.frozensets(st.sampled_from(TAGS)),
    ),
    max_size=12,
    unique_by=lambda candidate: candidate.artifact_id,
)
SOME_TAGS = st.frozensets(st.sampled_from([*TAGS, "unheard"]), max_size=2)
WISHES = st.builds(
    Wish,
    required_tags=SOME_TAGS,
    preferred_tags=SOME_TAGS,
    excluded_tags=SOME_TAGS,
    max_parameters=st.sampled_from([0, 10**5]),
    max_forward_us=st.sampled_from([0.0, 2.5]),
    max_peak_bytes=st.sampled_from([0, 10**8]),
    max_risk=st.sampled_from([0.0, 0.5]),
    min_interest=st.sampled_from([0.0, 0.5]),
    interest_weight=st.sampled_from([0.0, 0.5]),
    limit=st.integers(1, 13),
)


def plain(candidates: list[Candidate], wanted: Wish) -> list[tuple[str, float]]:
    """What a search means, one kernel at a time."""

    def within(reading: float, limit: float) -> bool:
        return not limit or 0 < reading <= limit

    admitted = [
        c
        for c in candidates
        if c.status == SCOPE.status
        and wanted.required_tags <= c.tags
        and not wanted.excluded_tags & c.tags
        and (not wanted.max_parameters or c.parameter_count <= wanted.max_parameters)
        and within(c.forward_us_p50, wanted.max_forward_us)
        and within(c.peak_bytes, wanted.max_peak_bytes)
        and within(c.risk, wanted.max_risk)
        and c.interest >= wanted.min_interest
    ]
    fastest = min((c.forward_us_p50 for c in admitted if c.forward_us_p50), default=0.0)
    leanest = min((c.peak_bytes for c in admitted if c.peak_bytes), default=0)
    fewest = min((c.parameter_count for c in admitted), default=0)

    def score(c: Candidate) -> float:
        figures = 0.5 * (fastest / c.forward_us_p50 if c.forward_us_p50 else 0.0)
        figures += 0.3 * (1 + fewest) / (1 + c.parameter_count)
        figures += 0.2 * (leanest / c.peak_bytes if c.peak_bytes else 0.0)
        return figures + len(wanted.preferred_tags & c.tags) + wanted.interest_weight * c.interest

    ordered = sorted(admitted, key=lambda c: (-score(c), c.artifact_id))
    return [(c.artifact_id, score(c)) for c in ordered[: wanted.limit]]


@given(candidates=CANDIDATES, wanted=WISHES)
def test_it_finds_what_looking_at_one_kernel_after_another_finds(candidates: list[Candidate], wanted: Wish) -> None:
    found, meant = ranked_of(candidates, wanted), plain(candidates, wanted)
    assert [place.score for place in found] == pytest.approx([score for _, score in meant], rel=1e-12)
    # Scores that differ by rounding alone may stand either way round.
    scores = dict(plain(candidates, replace(wanted, limit=100)))
    assert all(scores[place.artifact_id] == pytest.approx(place.score, rel=1e-12) for place in found)


@given(candidates=CANDIDATES, preferred=st.frozensets(st.sampled_from(TAGS)), data=st.data())
def test_the_order_is_one_whatever_order_they_came_in(
    candidates: list[Candidate], preferred: frozenset[str], data: st.DataObject
) -> None:
    wanted = wish(preferred_tags=preferred)
    ranked = ranked_of(candidates, wanted)
    table = Columns()
    for start in range(0, len(candidates), 3):
        table.put(data.draw(st.permutations(candidates))[start : start + 3])
        table.put([])
    table.put(candidates)
    assert rank(table, SCOPE, wanted) == ranked
    assert [place.score for place in ranked] == sorted((place.score for place in ranked), reverse=True)
    by_id = {candidate.artifact_id: candidate for candidate in candidates}
    counts = [len(by_id[place.artifact_id].tags & preferred) for place in ranked]
    assert all(count <= place.score <= count + 1.0 + 1e-9 for count, place in zip(counts, ranked, strict=True))


@given(before=CANDIDATES, after=CANDIDATES)
def test_a_kernel_put_again_takes_the_place_of_what_it_was(before: list[Candidate], after: list[Candidate]) -> None:
    table = Columns()
    table.put(before)
    table.put(after)
    now = {c.artifact_id: c for c in before} | {c.artifact_id: c for c in after}
    assert rank(table, SCOPE, wish()) == ranked_of(list(now.values()), wish())
    assert len(table) == len(now)
