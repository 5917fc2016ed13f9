"""The policies that can be asked for, by name."""

from esper.errors import InvalidConfig
from esper.tamiyo.policies.bandit import Bandit
from esper.tamiyo.policies.heuristic import Heuristic
from esper.tamiyo.policies.plateau import Plateau
from esper.tamiyo.policies.scheduled import LargestOnSchedule, Never, PeriodicRandom
from esper.tamiyo.policies.task_prior import TaskPrior
from esper.tamiyo.policy import Policy

_ALL: tuple[Policy, ...] = (
    Never(),
    PeriodicRandom(),
    LargestOnSchedule(),
    TaskPrior(),
    Plateau(),
    Heuristic(),
    Bandit(),
)
POLICIES: dict[str, Policy] = {policy.name: policy for policy in _ALL}


def policy_named(name: str) -> Policy:
    """One of POLICIES. Raises InvalidConfig for another name; "gnn" is known and not built yet."""
    if name == "gnn":
        raise InvalidConfig(
            "policy 'gnn' is not in this release; 'heuristic' and 'bandit' use the same nursery and verdicts"
        )
    if name not in POLICIES:
        raise InvalidConfig(f"no policy {name!r}; there are {', '.join(POLICIES)}")
    return POLICIES[name]
