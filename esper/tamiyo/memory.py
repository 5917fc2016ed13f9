"""What a controller remembers of a run between decision points: plain JSON, carried by the run itself."""

import json
from dataclasses import asdict, dataclass, field

from esper.errors import InvalidRequest, PreconditionFailed
from esper.tamiyo.view import SeedKey

VERSION = 1


@dataclass(slots=True)
class Tracked:
    """One seed from germination to its end."""

    site: str
    slot: int
    event_id: str
    artifact_id: str
    title: str
    family: str
    layer_kind: str
    parameter_count: int
    host_parameter_count: int
    germinated_step: int
    features: dict[str, float] = field(default_factory=dict)
    isolated_steps: list[int] = field(default_factory=list)
    isolated_gains: list[float] = field(default_factory=list)
    gain: float | None = None
    standard_error: float = 0.0
    control: str = ""
    confounded: bool = False

    @property
    def key(self) -> SeedKey:
        return SeedKey(self.site, self.slot)


@dataclass(slots=True)
class Memory:
    """State of the controller for one run."""

    version: int = VERSION
    last_event_step: int = -1  # -1: none yet
    events: int = 0
    fruitless_events: int = 0  # in a row
    turn: int = 0  # of what takes turns: sites, blueprints
    tracked: list[Tracked] = field(default_factory=list)
    losses: list[tuple[int, float]] = field(default_factory=list)  # (step, training loss), latest decision points
    host_step_flops: float = 0.0  # of one step before anything grew; 0: not counted
    passed: dict[str, list[int]] = field(default_factory=dict)  # "<seed> <event>" -> rounds of the verdict it passed
    masked: dict[str, int] = field(default_factory=dict)  # "<site> <artifact>" -> step until which it is not tried
    tries: dict[str, int] = field(default_factory=dict)  # "<site> <blueprint>" -> times tried

    def find(self, key: SeedKey) -> Tracked | None:
        return next((t for t in self.tracked if t.key == key), None)

    def dump(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()


def load(data: bytes) -> Memory:
    """The memory a run carried; a new one for empty bytes.

    Raises PreconditionFailed for another version, InvalidRequest for what no controller wrote.
    """
    if not data:
        return Memory()
    try:
        values = dict(json.loads(data))
        if values.get("version") != VERSION:
            raise PreconditionFailed(
                f"the controller state is of version {values.get('version')}, this controller reads {VERSION}; "
                "resume the run with the release it was started with"
            )
        values["tracked"] = [Tracked(**tracked) for tracked in values["tracked"]]
        values["losses"] = [(step, loss) for step, loss in values["losses"]]
        return Memory(**values)
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidRequest(
            f"{len(data)} bytes of controller state are not what a controller wrote: {error}",
            {"state.controller_state": "not a controller's"},
        ) from error
