"""Subjects: their names, in one place; built and parsed without loss."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import esper
from esper import errors
from esper.oona.subjects import (
    PAYLOADS,
    SUBJECTS,
    Durability,
    Name,
    build,
    check_prefix,
    filters,
    find,
    name_for,
    parse,
)

run_ids = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True) | st.just("")
ranks = st.none() | st.integers(0, 4096)


@given(name=st.sampled_from(list(Name)), run_id=run_ids, rank=ranks)
def test_parse_undoes_build(name, run_id, rank):
    subject = build("esper", name, run_id, rank)
    parsed = parse("esper", subject)
    assert (parsed.name, parsed.run_id, parsed.rank) == (name, run_id, rank)


@given(one=st.tuples(run_ids, ranks), two=st.tuples(run_ids, ranks))
def test_no_two_runs_and_ranks_share_a_subject(one, two):
    same = build("esper", Name.COMMANDS, *one) == build("esper", Name.COMMANDS, *two)
    assert same == (one == two)


@given(one=run_ids, two=run_ids, rank=ranks)
def test_a_runs_filters_match_that_run_only(one, two, rank):
    subject = build("esper", Name.COMMANDS, two, rank)
    patterns = [re.compile(re.escape(f).replace(r"\*", "[^.]+")) for f in filters("esper", Name.COMMANDS, one)]
    assert any(pattern.fullmatch(subject) for pattern in patterns) == (one == two)


def test_the_plain_form_is_the_documented_one():
    assert build("esper", Name.SEED_HEALTH, "run-1", 2) == "esper.telemetry.seed.health.run-1.2"
    assert build("esper", Name.KERNEL_READY, "") == "esper.compilation.kernel.ready._"


def test_every_name_has_a_row_with_payloads_a_stream_and_a_class():
    assert set(SUBJECTS) == set(Name)
    assert len(Name) == 10
    telemetry = {name for name, subject in SUBJECTS.items() if subject.durability is Durability.TELEMETRY}
    assert telemetry == {Name.SEED_HEALTH, Name.LAYER_PERFORMANCE, Name.MODEL_METRICS}
    assert {name for name, subject in SUBJECTS.items() if subject.batched} == telemetry
    assert {s.stream for n, s in SUBJECTS.items() if n in telemetry} == {"telemetry"}
    assert len(PAYLOADS) == sum(len(subject.payloads) for subject in SUBJECTS.values())


def test_no_name_is_the_head_of_another():
    assert not any(a != b and f"{b}.".startswith(f"{a}.") for a in Name for b in Name)


@pytest.mark.parametrize(
    "subject",
    [
        "other.telemetry.seed.health.run-1",
        "esper.telemetry.seed.health",
        "esper.telemetry.seed.health.",
        "esper.telemetry.seed.health.RUN",
        "esper.telemetry.seed.health.a.b",
        "esper.telemetry.seed.health.a.01",
        "esper.telemetry.seed.health.a.1.2",
        "esper.nothing.run-1",
    ],
)
def test_what_build_does_not_make_is_not_parsed(subject):
    with pytest.raises(errors.InvalidRequest):
        parse("esper", subject)


@pytest.mark.parametrize("run_id", ["A", ".a", "-a", "a b", "a*", "a>", "a\n", "~", "_", "x" * 65])
def test_a_run_id_that_is_none_is_refused(run_id):
    with pytest.raises(errors.InvalidRequest, match="run id"):
        build("esper", Name.COMMANDS, run_id)


def test_an_unknown_name_is_refused_with_the_names_there_are():
    with pytest.raises(errors.InvalidRequest, match=r"'telemetry'.*control\.kasmina\.commands"):
        find("telemetry")


@pytest.mark.parametrize("prefix", ["", "a.b", "A", "*", "x" * 33])
def test_a_prefix_is_one_token(prefix):
    with pytest.raises(errors.InvalidConfig):
        check_prefix(prefix)


def test_a_rank_has_bounds():
    with pytest.raises(errors.InvalidRequest):
        build("esper", Name.COMMANDS, "a", -1)


def test_a_payload_type_tells_its_name_to_those_who_may_not_import_this():
    for subject in SUBJECTS.values():
        assert {name_for(payload.DESCRIPTOR.full_name) for payload in subject.payloads} == {subject.name}
    with pytest.raises(errors.InvalidRequest, match="evil"):
        name_for("evil.Message")


def test_names_are_spelled_nowhere_else():
    """In nothing that may import esper.oona; a core states a payload type, and `name_for` knows the subject."""
    root = Path(esper.__file__).parent
    spelled = re.compile("[\"'](" + "|".join(re.escape(name) for name in Name) + ")[\"']")
    importers = {*root.glob("*/service.py"), *root.glob("*/worker.py")}
    for package in ("oona", "rpc", "runtime", "cli"):
        importers |= set((root / package).rglob("*.py"))
    importers.discard(root / "oona" / "subjects.py")
    assert [str(p) for p in importers if spelled.search(p.read_text())] == []
