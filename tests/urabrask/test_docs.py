"""docs/evaluation.md says what the code does: checks in their order, limits and words."""

import re
from pathlib import Path

import torch

from esper.urabrask import judge, measure, population, stability, usefulness
from esper.urabrask.codec import EvaluationOrder
from esper.urabrask.jail import Limits
from esper.urabrask.judge import Measured, tags
from esper.urabrask.population import ALONE, Standing
from esper.urabrask.stages import GATES, STAGE_OF, STAGES
from esper.urabrask.subject import FLOOR, LARGE, TINY, TOLERANCE

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "evaluation.md").read_text()


def rows(section: str) -> list[str]:
    text = PAGE.split(f"## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| (?:\d \| )?`(\w+)` \|", text, re.MULTILINE)


def test_the_checks_are_listed_in_their_order():
    assert tuple(rows("Checks")) == GATES
    for stage in STAGES:
        assert f"| {stage.number} | {stage.name} | {'yes' if stage.gates else 'no'} |" in PAGE
    for number, name in re.findall(r"^\| (\d) \| `(\w+)` \|", PAGE, re.MULTILINE):
        assert STAGE_OF[name].number == int(number)


def test_the_words_are_those_that_are_given():
    best = Measured(0.0, True, 50, 0, 100, 0.0, 1)
    assert set(rows("Words")) == {*tags(best, ALONE), *tags(best, Standing(20, 0.0, 0.0))}


def test_the_numbers_are_the_codes():
    for dtype, word in (
        (torch.float64, "1e-9"),
        (torch.float32, "1e-4"),
        (torch.float16, "2e-2"),
        (torch.bfloat16, "1e-1"),
    ):
        assert float(word) == TOLERANCE[dtype]
        assert f"{word} ({str(dtype).removeprefix('torch.')})" in PAGE
    assert (FLOOR[torch.float32], FLOOR[torch.float64]) == (1e-3, 1e-3)
    assert (FLOOR[torch.float16], FLOOR[torch.bfloat16]) == (0.1, 0.1)
    assert (LARGE[torch.float32], LARGE[torch.float16], TINY[torch.float32], TINY[torch.float16]) == (
        1e4,
        30,
        1e-30,
        1e-6,
    )
    assert (measure.MAX_RATIO, measure.MAX_FORWARD_US, measure.SLACK_BYTES) == (5.0, 1e6, 1 << 20)
    assert (judge.HIGH_SPEED_RATIO, judge.LOW_MEMORY_RATIO, judge.STABLE_READING) == (0.9, 0.9, 0.1)
    assert (judge.SMALL_PARAMETERS, judge.ENOUGH_RUNS, judge.BEST_SHARE) == (4096, 30, 0.2)
    assert (measure.MAX_VARIATION, measure.ROUNDS, population.FEWEST) == (0.05, 5, 8)
    assert (stability.DEPTH, stability.STEPS) == (8, 200)
    assert (stability.DEPTH_FACTOR[torch.float32], stability.DEPTH_FACTOR[torch.bfloat16]) == (1.01, 2.0)
    assert (stability.LOSS_MARGIN[torch.float32], stability.LOSS_MARGIN[torch.float16]) == (0.05, 0.25)
    assert (usefulness.SEEDS, usefulness.GRAFT_STEPS, usefulness.HELD_OUT) == (3, 80, 128)
    assert (Limits().memory_bytes, Limits().cpu_s, Limits().open_files) == (4 << 30, 120, 32)
    assert EvaluationOrder(b"").runs == 50
