"""What an idle forge would build again, and what that makes obsolete."""

import random

from hypothesis import given
from hypothesis import strategies as st

from esper.blueprint.interface import Interface, Kind
from esper.tezzeret.renewal import MOST_FAILURES, Cause, Made, Place, obsolete, renewals

OLD, NEW = {"torch": "2.12.0", "recipe": "1"}, {"torch": "2.13.0", "recipe": "1"}
PLACE = Place("a" * 64, Interface(Kind.MAP2D, 8), "cpu", "fast")
EVERY = ("fast", "standard", "aggressive")
PLACES = [Place(letter * 64, Interface(Kind.VECTOR, 8), "cpu", pipeline) for letter in "ab" for pipeline in EVERY]


def kernel(artifact_id="k", place=PLACE, toolchain=NEW, promoted=True, interest=0.0, age=0) -> Made:
    return Made(artifact_id, place, toolchain, promoted, interest, age)


def asked(made, failed=(), pipelines=("fast",), target="cpu"):
    return orders(made, failed, dict.fromkeys(pipelines, (target,)))


def orders(made, failed, targets):
    return [(one.place, one.cause) for one in renewals(made, failed, lambda _: NEW, targets)]


def test_a_kernel_of_this_toolchain_is_left_alone():
    assert asked([kernel()]) == []


def test_a_promoted_kernel_of_another_toolchain_is_built_again():
    (one,) = renewals([kernel(toolchain=OLD)], (), lambda _: NEW, {"fast": ("cpu",)})
    assert (one.place, one.cause, one.reason) == (PLACE, Cause.TOOLCHAIN, "built by torch 2.12.0 (not 2.13.0)")


def test_nobody_misses_a_rejected_kernel():
    assert asked([kernel(toolchain=OLD, promoted=False)]) == []


def test_what_this_toolchain_built_and_evaluation_refused_is_not_built_again():
    assert asked([kernel("old", toolchain=OLD), kernel("new", promoted=False)]) == []


def test_an_interesting_kernel_is_tried_on_the_next_pipeline_there_is():
    standard = PLACE._replace(pipeline="standard")
    interesting = kernel(interest=0.6)
    assert asked([interesting], pipelines=EVERY) == [(standard, Cause.INTEREST)]
    assert asked([interesting], pipelines=("fast", "aggressive")) == [
        (PLACE._replace(pipeline="aggressive"), Cause.INTEREST)
    ]
    assert asked([interesting]) == []
    assert asked([kernel(interest=0.4)], pipelines=EVERY) == []
    assert asked([interesting, kernel("s", standard, promoted=False)], pipelines=EVERY) == []


def test_an_order_without_an_answer_is_given_again_a_few_times():
    for times in range(1, MOST_FAILURES):
        assert asked([], [PLACE] * times) == [(PLACE, Cause.FAILURE)]
    assert asked([], [PLACE] * MOST_FAILURES) == []
    assert asked([kernel(toolchain=OLD)], [PLACE] * MOST_FAILURES) == []
    assert asked([kernel(promoted=False)], [PLACE]) == []  # another attempt answered it


def test_interest_goes_before_failures_and_failures_before_age():
    other, third = PLACE._replace(blueprint_id="b" * 64), PLACE._replace(blueprint_id="c" * 64)
    made = [kernel("old", toolchain=OLD), kernel("good", other, interest=0.9)]
    assert [cause for _, cause in asked(made, [third], EVERY)] == [Cause.INTEREST, Cause.FAILURE, Cause.TOOLCHAIN]


def test_what_is_interesting_on_the_cpu_is_built_for_the_device_of_the_forge():
    device = {"fast": ("cpu",), "standard": ("sm_90",)}
    standard = PLACE._replace(pipeline="standard", target="sm_90")
    assert orders([kernel(interest=0.6)], (), device) == [(standard, Cause.INTEREST)]
    assert orders([kernel(toolchain=OLD)], (), device) == [(PLACE, Cause.TOOLCHAIN)]


def test_every_device_of_the_forge_has_its_own_kernel_of_what_is_interesting():
    devices = {"fast": ("cpu",), "standard": ("sm_80", "sm_90"), "aggressive": ("sm_80", "sm_90")}
    first, second = (PLACE._replace(pipeline="standard", target=target) for target in devices["standard"])
    one = kernel(interest=0.6)
    assert orders([one], (), devices) == [(first, Cause.INTEREST), (second, Cause.INTEREST)]
    built = kernel("s", first, promoted=False)
    assert orders([one, built], (), devices) == [(second, Cause.INTEREST)]
    stronger = second._replace(pipeline="aggressive")
    assert orders([kernel("s", second, interest=0.6)], (), devices) == [(stronger, Cause.INTEREST)]


def test_another_target_is_another_forge_s():
    assert asked([kernel(toolchain=OLD)], target="sm_90") == []


def test_the_later_of_two_promoted_kernels_stands_in_for_the_other():
    (one,) = obsolete([kernel("new", age=2), kernel("old", toolchain=OLD, age=1), kernel("no", promoted=False, age=3)])
    assert (one.artifact_id, one.successor) == ("old", "new")
    assert one.reason == "kernels/new is the same blueprint by torch 2.13.0 (not 2.12.0)"


@st.composite
def libraries(draw):
    count = draw(st.integers(0, 12))
    return [
        kernel(
            f"k{i}",
            draw(st.sampled_from(PLACES)),
            draw(st.sampled_from([OLD, NEW])),
            draw(st.booleans()),
            draw(st.floats(0, 1)),
            draw(st.integers(0, 3)),
        )
        for i in range(count)
    ]


@given(libraries(), st.lists(st.sampled_from(PLACES), max_size=6), st.randoms(use_true_random=False))
def test_each_order_once_none_that_was_answered_and_the_same_however_listed(made, failed, chance: random.Random):
    renewed = renewals(made, failed, lambda _: NEW, dict.fromkeys(EVERY, "cpu"))
    places = [one.place for one in renewed]
    assert len(set(places)) == len(places)
    assert not set(places) & {one.place for one in made if one.toolchain == NEW}
    assert [one.cause for one in renewed] == sorted(one.cause for one in renewed)
    shuffled = chance.sample(made, len(made))
    assert asked(shuffled, failed, EVERY) == asked(made, failed, EVERY)


@given(libraries())
def test_one_promoted_kernel_of_a_place_is_left_and_it_is_the_latest(made):
    gone = {one.artifact_id for one in obsolete(made)}
    left = [one for one in made if one.promoted and one.artifact_id not in gone]
    promoted = {one.place for one in made if one.promoted}
    assert sorted(one.place for one in left) == sorted(promoted)
    for one in left:
        assert one.age == max(other.age for other in made if other.promoted and other.place == one.place)
