"""Which kernels a policy archives; and that applying one is what its dry run said."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.api.urza.v1 import library_pb2 as pb
from esper.urza.codec import InterfaceKey
from esper.urza.curation import DAY_NS, Kept, Policy, plan
from esper.urza.library import CentralLibrary

from .fakes import Clock, add_kernel, promotion

NOW = 1000 * DAY_NS
SITE, OTHER = InterfaceKey(4, 8, 1, False), InterfaceKey(4, 16, 1, False)
VALIDATED, REJECTED = pb.KERNEL_STATUS_VALIDATED, pb.KERNEL_STATUS_REJECTED


def kept(name: str, days: int = 40, **changes: object) -> Kept:
    """A kernel that was stored `days` ago and never used."""
    fields = {
        "interface": SITE,
        "target": 1,
        "status": VALIDATED,
        "parameter_count": 100,
        "forward_us_p50": 10.0,
        "peak_bytes": 1000,
        "size_bytes": 50,
        "created_ns": NOW - days * DAY_NS,
        "uses": 0,
        "last_used_ns": 0,
        "aliased": False,
    }
    return Kept(artifact_id=name, **(fields | changes))


def archived(kernels: list[Kept], **policy: object) -> dict[str, str]:
    return {action.artifact_id: action.reason for action in plan(kernels, NOW, Policy(**policy)).actions}


BETTER = kept("better", forward_us_p50=5.0)


def test_what_is_unused_for_long_and_dominated_is_archived_with_the_reason() -> None:
    assert archived([kept("worse"), BETTER]) == {"worse": "unused for 40 days; no slower, larger or hungrier: better"}
    assert archived([kept("worse", days=30), BETTER]) == {}
    assert archived([kept("worse", last_used_ns=NOW - DAY_NS), BETTER]) == {}
    assert archived([kept("worse", days=8), BETTER], idle_ns=7 * DAY_NS).keys() == {"worse"}


@pytest.mark.parametrize(
    "changes",
    [
        {"peak_bytes": 999},
        {"parameter_count": 99},
        {"interface": OTHER},
        {"target": 2},
        {"forward_us_p50": 0.0},
        {"peak_bytes": 0},
        {"forward_us_p50": 5.0},
    ],
    ids=str,
)
def test_what_is_better_in_one_figure_elsewhere_or_unmeasured_is_not_dominated(changes: dict[str, object]) -> None:
    assert archived([kept("one", **changes), BETTER]) == {}


@pytest.mark.parametrize("status", [REJECTED, pb.KERNEL_STATUS_SUPERSEDED])
def test_what_is_not_promoted_and_unused_for_long_is_archived(status: int) -> None:
    assert archived([kept("one", status=status)]).keys() == {"one"}
    assert archived([kept("one", status=status, days=3)]) == {}


@pytest.mark.parametrize("status", [pb.KERNEL_STATUS_PENDING_BENCHMARKING, pb.KERNEL_STATUS_QUARANTINED])
def test_what_waits_for_somebody_is_left_to_them(status: int) -> None:
    assert archived([kept("one", status=status), BETTER], max_total_bytes=1) == {}


@pytest.mark.parametrize(
    ("changes", "policy", "why"),
    [
        ({"uses": 100}, {}, "a workhorse: 100 uses"),
        ({"uses": 3}, {"workhorse_uses": 3}, "a workhorse: 3 uses"),
        ({"aliased": True}, {}, "an alias points"),
        ({}, {"protected": frozenset({"worse"})}, "protected by the policy"),
    ],
    ids=str,
)
def test_a_protected_kernel_is_never_archived(changes: dict, policy: dict, why: str) -> None:
    kernels = [kept("worse", **changes), BETTER]
    made = plan(kernels, NOW, Policy(max_total_bytes=1, **policy))
    assert "worse" not in {action.artifact_id for action in made.actions}
    assert made.protected["worse"].startswith(why)


def test_the_last_promoted_kernel_of_a_place_stays() -> None:
    made = plan([kept("a"), kept("b"), kept("c", interface=OTHER)], NOW, Policy(max_total_bytes=1))
    assert [action.artifact_id for action in made.actions] == ["a"]
    assert made.protected.keys() == {"b", "c"}
    assert "the last promoted" in made.protected["c"]


def test_beyond_a_limit_what_is_used_least_for_its_size_goes_first() -> None:
    kernels = [
        kept("large", days=1, size_bytes=500, uses=4),
        kept("small", days=1, size_bytes=50, uses=4),
        kept("idle", days=1, size_bytes=50),
        kept("rest", days=1, size_bytes=50, uses=9),
    ]
    assert list(archived(kernels, max_total_bytes=650)) == []
    assert list(archived(kernels, max_total_bytes=649)) == ["large"]
    assert list(archived(kernels, max_total_bytes=149)) == ["large", "idle"]
    assert list(archived(kernels, max_total_bytes=1)) == ["large", "idle", "small"]


KERNELS = st.lists(
    st.builds(
        kept,
        st.text("abcdef", min_size=1, max_size=4),
        days=st.sampled_from([1, 40]),
        interface=st.sampled_from([SITE, OTHER]),
        status=st.sampled_from(pb.KernelStatus.values()[1:]),
        parameter_count=st.integers(0, 3),
        forward_us_p50=st.sampled_from([0.0, 1.0, 2.0]),
        peak_bytes=st.integers(0, 3),
        size_bytes=st.integers(0, 100),
        uses=st.sampled_from([0, 5, 100]),
        aliased=st.booleans(),
    ),
    max_size=10,
    unique_by=lambda one: one.artifact_id,
)


@given(kernels=KERNELS, limit=st.integers(0, 300), data=st.data())
def test_whatever_the_library_a_policy_keeps_its_promises(kernels: list[Kept], limit: int, data: st.DataObject) -> None:
    policy = Policy(max_total_bytes=limit)
    made = plan(kernels, NOW, policy)
    assert plan(data.draw(st.permutations(kernels)), NOW, policy) == made
    by_id = {one.artifact_id: one for one in kernels}
    gone = {action.artifact_id for action in made.actions}
    assert len(gone) == len(made.actions)
    assert not gone & made.protected.keys()
    assert not any(by_id[one].aliased or by_id[one].uses >= 100 for one in gone)
    for place in {one.place for one in kernels if one.status == VALIDATED}:
        there = {one.artifact_id for one in kernels if one.status == VALIDATED and one.place == place}
        assert there - gone
    again = plan([one for one in kernels if one.artifact_id not in gone], NOW, policy)
    assert not again.actions


async def test_uses_are_counted_and_outlive_the_process(library: CentralLibrary) -> None:
    one = await add_kernel(library, 1)
    fetch = pb.DownloadKernelRequest(artifact_id=one)
    await library.download_kernel(fetch)  # to be evaluated: no use
    await library.set_kernel_status(promotion(one))
    for _ in range(3):
        await library.download_kernel(fetch)
    await library._transfers.store_uses()
    await library.download_kernel(fetch)
    await library.close()
    assert (await uses_of(library))[one][0] == 4


async def uses_of(library: CentralLibrary) -> dict[str, tuple[int, int]]:
    from esper.urza.store import Store

    store = await Store.open(str(library._store._engine.url))
    found = await store.read(lambda reader: reader.uses())
    await store.close()
    return found


async def test_applying_a_policy_does_what_its_dry_run_said(library: CentralLibrary) -> None:
    made = [await add_kernel(library, number, parameter_count=100 + number) for number in range(4)]
    for us, artifact_id in enumerate(made, 1):
        await library.set_kernel_status(promotion(artifact_id, forward_us_p50=us, peak_bytes=us))
    await library.set_alias(pb.SetAliasRequest(alias="best", target_name=f"kernels/{made[3]}"))
    library._ports = replace(library._ports, clock_ns=Clock(Clock().now_ns + 31 * DAY_NS))
    policy = pb.CurationPolicy(protected_artifact_ids=[made[1]])
    before = (await library.verify_ledger()).revision
    said = await library.curate_library(pb.CurateLibraryRequest(policy=policy, dry_run=True))
    assert said.header.revision == before
    assert [action.artifact_id for action in said.actions] == [made[2]]
    assert (said.kernels, said.protected_kernels) == (4, 2)
    done = await library.curate_library(pb.CurateLibraryRequest(policy=policy))
    assert list(done.actions) == list(said.actions)
    assert done.actions[0].previous_status == VALIDATED
    assert done.header.revision == before + 1
    kernel = (await library.get_kernel(pb.GetKernelRequest(artifact_id=made[2]))).kernel
    assert (kernel.status, kernel.status_reason) == (pb.KERNEL_STATUS_ARCHIVED, done.actions[0].reason)
    assert not (await library.curate_library(pb.CurateLibraryRequest(policy=policy))).actions
