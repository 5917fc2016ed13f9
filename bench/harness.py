"""Compare ways to do the same thing, in one run: interleaved, in an order drawn anew each turn, with an A/A control.

Every turn times each arm once, so that what else the machine does meets all of them. A
ratio is the median over turns. Arms are built several times over, because where their
memory happens to lie moves a time by several per cent and stays for as long as they live.
The control is the baseline built once more: what its ratio differs from 1 by is noise.
"""

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch

from bench.row import Row, Target, make_row

Call = Callable[[], object]
Arms = Mapping[str, Call]
Clock = Callable[[], float]  # seconds
Turn = Mapping[str, float]  # seconds per call of each arm

BASELINE, CONTROL, CANDIDATE = "baseline", "control", "candidate"
RESAMPLES = 1000
wall_clock: Clock = time.perf_counter
# Of the calling thread. For calls that stay on it: other load of the machine is not counted.
thread_clock: Clock = time.thread_time


def cuda_clock() -> float:
    """Seconds, after everything queued on the device is done."""
    torch.cuda.synchronize()
    return time.perf_counter()


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure: `rounds` builds, `turns` of each, blocks of at least `block_s` per arm and turn."""

    rounds: int = 8
    turns: int = 40
    block_s: float = 0.005
    most_calls: int = 10_000  # in a block
    warm_up_calls: int = 3  # of each arm of a round, not timed


QUICK = Effort(rounds=2, turns=4, block_s=0.0005, most_calls=50)


@contextmanager
def one_thread() -> Iterator[None]:
    """Pin torch to one thread: two on a busy machine wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was timed. Arms are named BASELINE, CONTROL and what else was built."""

    rounds: Sequence[Sequence[Turn]]
    _intervals: dict[tuple[str, str, float], tuple[float, float]] = field(default_factory=dict, compare=False)

    def median_s(self, arm: str = BASELINE) -> float:
        """Seconds per call."""
        return statistics.median(turn[arm] for turns in self.rounds for turn in turns)

    def ratio(self, arm: str = CANDIDATE, to: str = BASELINE) -> float:
        """Median over turns of the arm's time over another's of the same turn."""
        return float(np.median(np.concatenate(self._ratios(arm, to))))

    def interval(self, arm: str = CONTROL, to: str = BASELINE, share: float = 0.95) -> tuple[float, float]:
        """Percentile bootstrap of `ratio`: rounds are drawn first, then turns of each. Found once: every row has it."""
        if (asked := (arm, to, share)) not in self._intervals:
            draw = np.random.default_rng(0)
            ratios = self._ratios(arm, to)
            found = [_median_again(ratios, draw) for _ in range(RESAMPLES)]
            low, high = np.quantile(found, [(1 - share) / 2, (1 + share) / 2])
            self._intervals[asked] = float(low), float(high)
        return self._intervals[asked]

    def _ratios(self, arm: str, to: str) -> list[np.ndarray]:
        return [np.array([turn[arm] / turn[to] for turn in turns]) for turns in self.rounds]

    def row(
        self,
        bench: str,
        case: str,
        metric: str,
        *,
        arm: str = CANDIDATE,
        to: str = BASELINE,
        against: str,
        target: Target | None = None,
        device: str = "cpu",
    ) -> Row:
        """The ratio of an arm as a row. `against`: what the baseline is, in words."""
        baseline = f"{against}: {self.median_s(to) * 1e6:.4g} us"
        value, aa = self.ratio(arm, to), self.interval()
        return make_row(bench, case, metric, value, "ratio", baseline=baseline, aa=aa, target=target, device=device)


def _median_again(ratios: list[np.ndarray], draw: np.random.Generator) -> float:
    chosen = draw.integers(len(ratios), size=len(ratios))
    return float(np.median(np.concatenate([draw.choice(ratios[i], len(ratios[i])) for i in chosen])))


def compare(
    build: Callable[[], Arms],
    effort: Effort,
    clock: Clock = wall_clock,
    around: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> Comparison:
    """Time the arms that `build` makes; it is called once a round and must name a BASELINE and a CONTROL.

    `around(arm)` is entered for each block of an arm and not timed.
    """
    order = random.Random(0)
    rounds, calls = [], 0
    with one_thread():
        for _ in range(effort.rounds):
            arms = build()
            for name, call in arms.items():
                with around(name):
                    _block(call, effort.warm_up_calls, clock)
            calls = calls or _calls_per_block(arms[BASELINE], effort, clock)
            turns = []
            for _ in range(effort.turns):
                names = list(arms)
                order.shuffle(names)
                turn = {}
                for name in names:
                    with around(name):
                        turn[name] = _block(arms[name], calls, clock) / calls
                turns.append({name: turn[name] for name in arms})
            rounds.append(turns)
    return Comparison(rounds)


def _calls_per_block(call: Call, effort: Effort, clock: Clock) -> int:
    """How many calls fill a block."""
    calls = 1
    while calls < effort.most_calls and _block(call, calls, clock) < effort.block_s:
        calls = min(effort.most_calls, calls * 2)
    return calls


def _block(call: Call, calls: int, clock: Clock) -> float:
    began = clock()
    for _ in range(calls):
        call()
    return clock() - began
