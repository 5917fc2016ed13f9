"""Decision points of every sort: calm ones, in which a policy may act, and ones that no run should come to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from esper.api.kasmina.v1 import nursery_pb2
from esper.api.simic.v1 import replay_pb2
from esper.api.tolaria.v1 import state_pb2
from esper.api.urza.v1 import library_pb2
from esper.kasmina.lifecycle import State
from esper.tamiyo.policies import POLICIES

from .scenes import (
    SITES,
    STEP,
    VECTOR8,
    VECTOR16,
    artifact,
    kernel,
    measured,
    memory,
    packet,
    seed,
    site,
    summary,
    tracked,
    trial,
    verdict,
)

KEYS = [(name, slot) for name in SITES for slot in range(2)]
ACTIVE = ["GERMINATED", "LOADING", "TRAINING", "GRAFTING", "STABILIZATION", "EVALUATING", "FINE_TUNING"]
policies = st.sampled_from(sorted(POLICIES))
gains = st.sampled_from([-0.5, 0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, float("nan"), float("inf")])
losses = st.sampled_from([None, 0.0, 0.3, 0.5, 0.9, float("nan"), float("inf")])
rarely = st.sampled_from([False] * 7 + [True])


@dataclass(frozen=True)
class Scene:
    """A packet, and what the library and earlier runs say."""

    packet: state_pb2.SystemStatePacket
    kernels: Sequence[library_pb2.Kernel]
    summaries: Sequence[replay_pb2.Summary]
    being_made: int


def kernels() -> st.SearchStrategy[list[library_pb2.Kernel]]:
    """Of two interfaces and every status; some unmeasured."""
    status = st.sampled_from([library_pb2.KERNEL_STATUS_VALIDATED] * 6 + list(library_pb2.KernelStatus.values()))
    one = st.builds(
        lambda number, interface, status, us, peak: kernel(
            number, interface=interface, status=status, forward_us_p50=us, peak_bytes=peak
        ),
        st.integers(1, 9),
        st.sampled_from([VECTOR8, VECTOR8, VECTOR16]),
        status,
        st.sampled_from([0.0, 10.0, 40.0]),
        st.sampled_from([0, 1000, 5000]),
    )
    return st.lists(one, min_size=1, max_size=6, unique_by=lambda k: k.artifact_id)


def summaries() -> st.SearchStrategy[list[replay_pb2.Summary]]:
    one = st.builds(
        lambda number, tried, judged, gain: summary(
            number, tried=tried, judged=judged, mean_gain=gain, mean_isolated_gain=gain
        ),
        st.integers(1, 9),
        st.integers(0, 5),
        st.integers(0, 5),
        st.sampled_from([-0.05, 0.0, 0.01, 0.05]),
    )
    return st.lists(one, max_size=4, unique_by=lambda s: s.title)


class Drawn:
    """Draws for one scene: a calm one is healthy but for the odd value, so that a policy often may act in it."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.calm = draw(st.sampled_from([True, True, False]))

    def __call__(self, healthy: Any, wild: st.SearchStrategy[Any]) -> Any:
        if self.calm and not self.draw(rarely):
            return healthy
        return self.draw(wild)


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    """A third of them with seeds under way, half of these with a trial out; the rest calm."""
    drawn = Drawn(draw)
    states = dict.fromkeys(KEYS, "DORMANT") if drawn.calm else {key: draw(_states) for key in KEYS}
    if not drawn.calm and draw(st.booleans()):
        states = dict.fromkeys(KEYS, "TRAINING")
    fields: dict[str, Any] = {
        "sequence": draw(st.integers(1, 50)),
        "step": drawn(STEP, st.sampled_from([0, 400, STEP, 8000, 9990])),
        "total_steps": drawn(10_000, st.sampled_from([0, 10_000])),
        "train_loss": drawn(0.5, losses) or 0.0,
        "validation_loss": drawn(0.55, losses),
        "best_validation_loss": drawn(0.55, losses),
        "paused": drawn(False, rarely),
        "final": drawn(False, rarely),
        "deterministic": drawn(False, st.booleans()),
        "sites": [site(name, gradient_norm=drawn(0.1, _gradients), interface=draw(_interfaces)) for name in SITES],
        "seeds": [_seed(drawn, key, state) for key, state in states.items()],
        "results": draw(_results()) if not drawn.calm else [],
        "random_seed": draw(st.integers(0, 3)),
        "controller_state": drawn(memory(losses=[(100 * i, 0.5) for i in range(6)]), _memories()),
    }
    spending = {
        "parameters": draw(st.sampled_from([1000, 1200])),
        "train_flops": drawn(1e9, st.sampled_from([0.0, 1e9])),
        "nursery_flops": draw(st.sampled_from([0.0, 1e9, 8e9])),
        "events": draw(st.integers(0, 3)),
    }
    settings, budget = draw(_settings()), drawn({}, _budget())
    made = packet(draw(policies), settings=settings, budget=budget, spending=spending, **fields)
    return Scene(made, draw(kernels()), draw(summaries()), drawn(0, st.just(2)))


_states = st.sampled_from(["DORMANT"] * 6 + ACTIVE + ["FOSSILIZED", "CULLED", "CANCELLED", "ROLLED_BACK"])


_events = st.sampled_from(["event-1"] * 5 + ["event-2"])
_gradients = st.sampled_from([0.1, 2.0, 0.0, None, float("nan")])
_interfaces = st.sampled_from([VECTOR8, VECTOR8, VECTOR16])


def _seed(drawn: Drawn, key: tuple[str, int], state: str) -> Any:
    draw = drawn.draw
    fields: dict[str, Any] = {"embargo_until_step": drawn(0, st.sampled_from([0, STEP + 50]))}
    if state != "DORMANT":
        fields |= {
            "artifact_id": artifact(draw(st.integers(1, 9))),
            "event_id": draw(_events),
            "parameter_count": draw(st.sampled_from([100, 500])),
            "folded": draw(st.booleans()) if state == "FOSSILIZED" else False,
        }
    return seed(*key, state, **fields)


def _settings() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "candidates_per_site": st.sampled_from([0, 0, 1, 2]),
            "ignore_end_of_run": st.booleans(),
            "min_gain": st.sampled_from([0.0, 0.01]),
            "strategy": st.sampled_from(["residual", "convex", "gated"]),
        }
    )


def _budget() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "max_added_parameters": st.sampled_from([0, 0, 150, 450, 2000]),
            "max_total_flops_ratio": st.sampled_from([0.0, 0.0, 1.2, 1.5, 4.0]),
            "max_events": st.sampled_from([0, 0, 1, 3]),
            "max_added_forward_us": st.sampled_from([0.0, 0.0, 15.0, 60.0]),
            "max_graft_bytes": st.sampled_from([0, 0, 2000]),
        }
    )


def _results() -> st.SearchStrategy[list[nursery_pb2.JobResult]]:
    everyone = st.fixed_dictionaries({key: st.lists(gains, min_size=1, max_size=2) for key in KEYS})
    some = st.dictionaries(st.sampled_from(KEYS), st.lists(gains, max_size=3), min_size=1, max_size=4)
    trials = st.builds(
        lambda c, event, failure: trial(c, event, failure=failure),
        st.one_of(everyone, everyone, some),
        _events,
        st.sampled_from(["", "", "", "the worker died"]),
    )
    verdicts = st.builds(
        lambda key, gain, errors, number, control, lost: verdict(
            None if lost else measured(gain, errors),
            seed=f"{key[0]}/{key[1]}",
            round=number,
            control=control,
            failure="the worker died" if lost else "",
        ),
        st.sampled_from(KEYS),
        gains,
        st.sampled_from([0.0, 0.5, 1.0, 3.0]),
        st.sampled_from([1, 2]),
        st.sampled_from(["twin", "ablation"]),
        rarely,
    )
    return st.lists(st.one_of(trials, verdicts), max_size=3)


def _memories() -> st.SearchStrategy[bytes]:
    masked = st.dictionaries(
        st.builds(lambda key, n: f"{key} {artifact(n)}", st.sampled_from(SITES), st.integers(1, 9)),
        st.sampled_from([500, STEP + 400]),
        max_size=3,
    )
    made = st.builds(
        lambda last, fruitless, turn, masked, slope, host, passed: memory(
            last_event_step=last,
            fruitless_events=fruitless,
            turn=turn,
            masked=masked,
            losses=[(100 * i, 0.5 - slope * i) for i in range(6)],
            host_step_flops=host,
            tracked=[tracked(*key) for key in KEYS],
            passed=passed,
        ),
        st.sampled_from([-1, -1, 0, 500]),
        st.sampled_from([0, 0, 1, 40]),
        st.integers(0, 3),
        masked,
        st.sampled_from([0.0, 0.05]),
        st.sampled_from([0.0, 1e6]),
        st.dictionaries(
            st.sampled_from([f"{n}/{s} event-1" for n, s in KEYS]), st.sampled_from([[1], [2]]), max_size=2
        ),
    )
    return st.one_of(made, made, made, st.just(b""))


assert {s.name for s in State} >= set(ACTIVE)
