"""How a run grows and what it may spend: values, defaults, and their message form."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from esper.api.tolaria.v1 import state_pb2
from esper.errors import InvalidConfig

STRATEGIES = ("residual", "convex", "gated")


@dataclass(frozen=True, kw_only=True, slots=True)
class GrowthSettings:
    """The growth scheme. Defaults are those measured in docs/growth.md."""

    policy: str = "heuristic"  # who decides; see `esper.tamiyo.policies`
    first_event_step: int = 0  # 0: 15 % of the run
    event_spacing_steps: int = 700  # least steps between the starts of two events
    nursery_steps: int = 300  # isolated steps of each candidate
    measure_every_steps: int = 30  # between two nursery readings
    halving_step: int = 0  # nursery step at which the worse candidates stop; 0: never
    keep_candidates: int = 0  # how many go on after `halving_step`; 0: half
    candidates_per_site: int = 0  # 0: as many as the site has slots
    ramp_steps: int = 30  # of alpha from 0 to 1
    verdict_steps: int = 400  # from insertion to the verdict
    verdict_snapshots: int = 5  # a verdict averages over
    snapshot_gap_steps: int = 20  # between two of them
    fine_tune_steps: int = 100  # from the verdict to its repetition
    min_gain: float = 0.01  # least relative gain to keep
    min_standard_errors: float = 1.0  # least gain to keep, in standard errors
    ablation_min_gain: float = 0.2  # least relative gain to keep where the control is the graft switched off
    embargo_steps: int = 300  # a culled or cancelled seed may not germinate
    decision_every_steps: int = 200  # between decision points
    validate_every_steps: int = 200  # between validations; a multiple of decision_every_steps
    sample_every_steps: int = 0  # between two sampled for telemetry; 0: each decision point's own step
    probe_every_steps: int = 1500  # between probes of fossils; 0: never
    max_twin_lag_steps: int = 200  # steps a run may lose by returning to its twin
    strategy: str = "residual"  # how a graft joins the host
    ignore_end_of_run: bool = False  # start events that cannot reach their verdict

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and value < 0:
                raise InvalidConfig(f"growth setting {field.name} must be >= 0, got {value}")
        for name in (
            "nursery_steps",
            "measure_every_steps",
            "verdict_steps",
            "verdict_snapshots",
            "decision_every_steps",
        ):
            if getattr(self, name) < 1:
                raise InvalidConfig(f"growth setting {name} must be >= 1, got {getattr(self, name)}")
        for name in ("min_gain", "ablation_min_gain"):
            if getattr(self, name) >= 1:
                raise InvalidConfig(
                    f"growth setting {name} is a share of the loss and must be < 1, got {getattr(self, name)}"
                )
        if self.strategy not in STRATEGIES:
            raise InvalidConfig(
                f"growth setting strategy must be one of {', '.join(STRATEGIES)}, got {self.strategy!r}"
            )
        if self.embargo_steps < self.decision_every_steps:
            raise InvalidConfig(
                f"growth setting embargo_steps {self.embargo_steps} is under decision_every_steps "
                f"{self.decision_every_steps}, so a seed could be used again before anyone saw how it ended; raise it"
            )
        needed = self.ramp_steps + (self.verdict_snapshots - 1) * self.snapshot_gap_steps
        if self.verdict_steps <= needed:
            raise InvalidConfig(
                f"growth setting verdict_steps {self.verdict_steps} must be over {needed}, the room for a ramp of "
                f"{self.ramp_steps} steps and {self.verdict_snapshots} snapshots {self.snapshot_gap_steps} steps apart"
            )

    def first_event(self, total_steps: int) -> int:
        """Step of the first event: as set, or 15 % of a run of `total_steps`."""
        return self.first_event_step or max(1, total_steps * 15 // 100)


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What a run may spend. 0: no limit."""

    max_added_parameters: int = 0
    max_total_flops_ratio: float = 0.0  # of the never-grown run's floating-point operations
    max_events: int = 0
    max_added_forward_us: float = 0.0  # per step
    max_graft_bytes: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 0:
                raise InvalidConfig(f"budget {field.name} must be >= 0, got {getattr(self, field.name)}")


Settings = TypeVar("Settings", GrowthSettings, Budget)


def from_mapping(kind: type[Settings], values: Mapping[str, Any], where: str) -> Settings:
    """Settings from a mapping. Raises InvalidConfig for an unknown key, naming the nearest, or a wrong type."""
    known = {field.name: field for field in fields(kind)}
    for key, value in values.items():
        refuse_unknown(str(key), known, where)
        wanted = type(getattr(kind(), key))
        if not isinstance(value, (int, float) if wanted is float else wanted) or (
            wanted is not bool and isinstance(value, bool)
        ):
            raise InvalidConfig(f"{where}.{key} must be {wanted.__name__}, got {value!r}")
    return kind(**values)


def refuse_unknown(key: str, known: Mapping[str, Any], where: str) -> None:
    """Raise InvalidConfig unless `key` is known; the message names the nearest known key."""
    if key in known:
        return
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    raise InvalidConfig(f"{where} has no key {key!r}; did you mean {near[0]!r}? Known: {', '.join(sorted(known))}")


def write_growth(settings: GrowthSettings, total_steps: int) -> state_pb2.GrowthSettings:
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    return state_pb2.GrowthSettings(**values | {"first_event_step": settings.first_event(total_steps)})


def read_growth(msg: state_pb2.GrowthSettings) -> GrowthSettings:
    return GrowthSettings(**{field.name: getattr(msg, field.name) for field in fields(GrowthSettings)})


def write_budget(budget: Budget) -> state_pb2.Budget:
    return state_pb2.Budget(**{field.name: getattr(budget, field.name) for field in fields(budget)})
