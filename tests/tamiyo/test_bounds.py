"""No policy, in no state, outside masks, budgets, embargo, cooldown or lifecycle."""

from collections import Counter

import pytest
from hypothesis import given, settings

from .bounds import violations
from .scenes import answer, kinds
from .strategies import Scene, scenes


def fuzz(examples: int, *, derandomize: bool) -> Counter[str]:
    """Check so many decision points; returns which commands were among the answers, and for which policies."""
    seen: Counter[str] = Counter()

    @settings(max_examples=examples, derandomize=derandomize, database=None)
    @given(scenes())
    def check(scene: Scene) -> None:
        response = answer(scene.packet, scene.kernels, scene.summaries, being_made=scene.being_made)
        assert not violations(scene, response)
        seen.update(kinds(response))
        if "germinate" in kinds(response):
            seen[scene.packet.settings.policy] += 1
        seen["states"] += 1

    check()
    return seen


GROWING = ("periodic-random", "largest-on-schedule", "task-prior", "plateau", "heuristic", "bandit")


def test_no_command_is_outside_the_bounds():
    seen = fuzz(500, derandomize=True)
    assert seen["states"] >= 500
    # the states are such that there is something to forbid
    assert all(seen[kind] > 5 for kind in ("germinate", "insert", "advance", "cull", "cancel")), seen
    assert sum(seen[policy] > 0 for policy in GROWING) >= 5, seen


@pytest.mark.slow
def test_no_command_is_outside_the_bounds_in_ten_thousand_states():
    seen = fuzz(10_000, derandomize=False)
    assert seen["states"] >= 10_000
    assert all(seen[name] > 20 for name in ("germinate", "insert", "advance", "cull", "cancel")), seen
    assert all(seen[policy] > 0 for policy in GROWING), seen
