"""What a decision reads: one run at one decision point, as values. Made by codec.py."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from esper.stats.paired import Paired
from esper.stats.verdict import Rule


@dataclass(frozen=True, slots=True, order=True)
class SeedKey:
    site: str
    slot: int

    def __str__(self) -> str:
        return f"{self.site}/{self.slot}"


@dataclass(frozen=True, slots=True)
class SeedView:
    """One seed. `state` is the name of its lifecycle state."""

    key: SeedKey
    state: str
    state_step: int = 0
    artifact_id: str = ""
    title: str = ""
    family: str = ""
    event_id: str = ""
    parameter_count: int = 0
    embargo_until_step: int = 0
    inserted_step: int = 0
    folded: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SiteView:
    """One site. `health` holds measured readings only, by name."""

    name: str
    layer_kind: str
    interface_key: str
    channels: int
    parameter_count: int
    positions: int
    health: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CurveView:
    """Gain curve of one candidate: (nursery step, paired losses)."""

    seed: SeedKey
    points: tuple[tuple[int, Paired], ...]
    stopped_early: bool = False
    failure: str = ""


@dataclass(frozen=True, slots=True)
class TrialView:
    event_id: str
    curves: tuple[CurveView, ...]
    failure: str = ""


@dataclass(frozen=True, slots=True)
class MeasureView:
    """A measurement with a control. `kind` is "verdict" or "probe"; `control` "twin" or "ablation"."""

    kind: str
    seed: SeedKey
    round: int
    control: str
    paired: Paired | None
    probe_id: str = ""
    failure: str = ""


@dataclass(frozen=True, slots=True)
class RollbackView:
    step: int
    restored_step: int
    reason: str
    locked: tuple[SeedKey, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What may be spent; 0 is no limit."""

    max_added_parameters: int = 0
    max_total_flops_ratio: float = 0.0
    max_events: int = 0
    max_added_forward_us: float = 0.0
    max_graft_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """The growth settings that decisions read."""

    policy: str = "heuristic"
    first_event_step: int = 0
    event_spacing_steps: int = 700
    nursery_steps: int = 300
    ramp_steps: int = 30
    verdict_steps: int = 400
    fine_tune_steps: int = 100
    candidates_per_site: int = 0
    probe_every_steps: int = 1500
    decision_every_steps: int = 200
    strategy: int = 1  # GraftStrategy's number
    ignore_end_of_run: bool = False
    rule: Rule = field(default_factory=Rule)
    ablation_min_gain: float = 0.0  # in place of the rule's where that is less and the control is an ablation


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """One run at one decision point."""

    run_id: str
    sequence: int
    step: int
    total_steps: int
    task_name: str
    train_loss: float
    validation_loss: float | None = None
    validation_step: int = 0
    best_validation_loss: float | None = None
    best_validation_step: int = 0
    sites: tuple[SiteView, ...] = ()
    seeds: tuple[SeedView, ...] = ()
    trials: tuple[TrialView, ...] = ()
    measures: tuple[MeasureView, ...] = ()
    rollbacks: tuple[RollbackView, ...] = ()
    parameters: int = 0
    initial_parameters: int = 0
    train_flops: float = 0.0
    nursery_flops: float = 0.0
    events: int = 0
    limits: Limits = field(default_factory=Limits)
    scheme: Scheme = field(default_factory=Scheme)
    paused: bool = False
    final: bool = False
    random_seed: int = 0

    def seed(self, key: SeedKey) -> SeedView | None:
        return next((seed for seed in self.seeds if seed.key == key), None)

    def in_states(self, *states: str) -> list[SeedView]:
        return [seed for seed in self.seeds if seed.state in states]

    @property
    def live(self) -> list[SeedView]:
        """Grafts on trial in the host."""
        return self.in_states("GRAFTING", "STABILIZATION", "EVALUATING", "FINE_TUNING")

    @property
    def pending(self) -> list[SeedView]:
        """Seeds on their way to the host."""
        return self.in_states("GERMINATED", "LOADING", "TRAINING")


@dataclass(frozen=True, slots=True)
class Option:
    """A promoted kernel that fits a site."""

    artifact_id: str
    blueprint_id: str
    title: str
    family: str
    parameter_count: int
    forward_us: float = 0.0
    peak_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Stock:
    """Promoted kernels by interface, and how many more are being compiled or evaluated for this run's sites."""

    options: Mapping[str, Sequence[Option]]
    being_made: int = 0


@dataclass(frozen=True, slots=True)
class Experience:
    """What earlier grafts of one kind on one task gave: isolated gains and verdict gains."""

    task_name: str
    layer_kind: str
    family: str
    title: str
    tried: int = 0
    mean_isolated_gain: float = 0.0
    judged: int = 0
    mean_gain: float = 0.0
