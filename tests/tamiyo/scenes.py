"""One run at one decision point as its packet says it, and a controller to answer it."""

from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from esper.api.common.v1 import interface_pb2, resource_pb2, seed_pb2, training_pb2
from esper.api.kasmina.v1 import nursery_pb2, telemetry_pb2
from esper.api.simic.v1 import replay_pb2
from esper.api.tamiyo.v1 import controller_pb2 as pb
from esper.api.tolaria.v1 import state_pb2
from esper.api.urza.v1 import library_pb2
from esper.tamiyo.answer import Controller
from esper.tamiyo.codec import interface_key
from esper.tamiyo.memory import Memory, Tracked

T = TypeVar("T")

RUN = "run-1"
VECTOR8 = interface_pb2.Interface(
    kind=interface_pb2.TENSOR_KIND_VECTOR, channels=8, element_type=interface_pb2.ELEMENT_TYPE_FLOAT32
)
VECTOR16 = interface_pb2.Interface(
    kind=interface_pb2.TENSOR_KIND_VECTOR, channels=16, element_type=interface_pb2.ELEMENT_TYPE_FLOAT32
)
SITES = ("fc1", "fc2")
STEP = 1000


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    raise AssertionError("it waits for something")


def noon() -> Timestamp:
    return Timestamp(seconds=1_800_000_000)


def ref(site: str, slot: int = 0) -> seed_pb2.SeedRef:
    return seed_pb2.SeedRef(run_id=RUN, site=site, slot=slot)


def state_number(name: str) -> int:
    return seed_pb2.SeedState.Value(f"SEED_STATE_{name}")


def artifact(number: int) -> str:
    return f"{number:064x}"


# What a packet is made of


def site(name: str = "fc1", *, interface: interface_pb2.Interface = VECTOR8, **health: float) -> state_pb2.SiteState:
    """A site whose gradient was measured; `gradient_norm=None` says it was not."""
    read = {key: value for key, value in ({"gradient_norm": 0.1} | health).items() if value is not None}
    made = state_pb2.SiteState(
        name=name, layer_kind="Linear", interface=interface, slots=2, parameter_count=72, positions=1
    )
    if read:
        made.health.CopyFrom(telemetry_pb2.HealthSignal(site=name, step=STEP - 8, **read))
    return made


def seed(site_name: str = "fc1", slot: int = 0, state: str = "DORMANT", **fields: Any) -> telemetry_pb2.SeedStatus:
    """A seed; one that is not DORMANT carries kernel 1 of event-1, of 100 parameters."""
    carried = {} if state == "DORMANT" else _carried()
    return telemetry_pb2.SeedStatus(seed=ref(site_name, slot), state=state_number(state), **(carried | fields))


def _carried() -> dict[str, Any]:
    return {
        "artifact_id": artifact(1),
        "title": "title-1",
        "family": "family-1",
        "event_id": "event-1",
        "parameter_count": 100,
        "state_step": STEP - 100,
    }


def seeds(**states: str) -> list[telemetry_pb2.SeedStatus]:
    """Two seeds for each of SITES, DORMANT unless `fc1_0="TRAINING"` says otherwise."""
    return [seed(name, slot, states.get(f"{name}_{slot}", "DORMANT")) for name in SITES for slot in range(2)]


def packet(policy: str = "heuristic", **changes: Any) -> state_pb2.SystemStatePacket:
    """A healthy run at step 1000 of 10000, nothing grown; `settings`, `budget`, `spending` are changed by key."""
    settings = {
        "policy": policy,
        "first_event_step": 500,
        "event_spacing_steps": 700,
        "nursery_steps": 300,
        "ramp_steps": 30,
        "verdict_steps": 400,
        "fine_tune_steps": 100,
        "min_gain": 0.01,
        "min_standard_errors": 1.0,
        "ablation_min_gain": 0.2,
        "decision_every_steps": 200,
        "probe_every_steps": 1500,
    }
    spending = {"parameters": 1000, "initial_parameters": 1000, "train_flops": 1e9, "nursery_flops": 0.0}
    fields: dict[str, Any] = {
        "run_id": RUN,
        "sequence": 10,
        "step": STEP,
        "total_steps": 10_000,
        "task_name": "digits",
        "train_loss": 0.5,
        "validation_loss": 0.55,
        "validation_step": 900,
        "best_validation_loss": 0.55,
        "best_validation_step": 900,
        "sites": [site(name) for name in SITES],
        "seeds": seeds(),
        "random_seed": 7,
    }
    settings |= changes.pop("settings", {})
    spending |= changes.pop("spending", {})
    budget = changes.pop("budget", {})
    made = state_pb2.SystemStatePacket(
        settings=state_pb2.GrowthSettings(**settings),
        spending=state_pb2.Spending(**spending),
        budget=state_pb2.Budget(**budget),
    )
    for name, value in (fields | changes).items():
        if value is None:
            continue
        if isinstance(value, list):
            getattr(made, name).extend(value)
        else:
            setattr(made, name, value)
    return made


def measured(
    gain: float, standard_errors: float = 5.0, *, control_mean: float = 100.0, pairs: int = 250
) -> training_pb2.PairedMeasurement:
    """Losses with that relative gain, at that many standard errors from 0; whole percents are exact."""
    difference = gain * control_mean
    return training_pb2.PairedMeasurement(
        pairs=pairs,
        mean=control_mean - difference,
        control_mean=control_mean,
        difference_standard_error=abs(difference) / standard_errors if standard_errors else 0.01,
    )


def trial(
    gains: dict[tuple[str, int], Iterable[float]], event_id: str = "event-1", *, failure: str = "", **failed: str
) -> nursery_pb2.JobResult:
    """Gain curves by seed, read every 100 steps. `failed`: reasons by seed, written fc1_0."""
    curves = []
    for (name, slot), values in gains.items():
        points = [
            nursery_pb2.GainPoint(step=100 * i, losses=measured(value)) for i, value in enumerate(values, start=1)
        ]
        curve = nursery_pb2.GainCurve(seed=ref(name, slot), points=points)
        curve.failure.message = failed.get(f"{name}_{slot}", "")
        curves.append(curve)
    result = nursery_pb2.JobResult(
        job_id="job-1", run_id=RUN, trial=nursery_pb2.TrialResult(event_id=event_id, curves=curves)
    )
    if failure:
        result.failure.CopyFrom(resource_pb2.Failure(code=13, message=failure))
    return result


def verdict(
    losses: training_pb2.PairedMeasurement | None,
    *,
    seed: str = "fc1/0",
    round: int = 1,
    control: str = "twin",
    failure: str = "",
) -> nursery_pb2.JobResult:
    """A graft against its control."""
    found = nursery_pb2.MeasureResult(label=f"verdict:{seed}:{round}:{control}", paired=losses)
    result = nursery_pb2.JobResult(job_id="job-2", run_id=RUN, measure=found)
    if failure:
        result.failure.CopyFrom(resource_pb2.Failure(code=13, message=failure))
    return result


def memory(**fields: Any) -> bytes:
    """A controller's state."""
    return Memory(**fields).dump()


def tracked(site_name: str = "fc1", slot: int = 0, **fields: Any) -> Tracked:
    """A seed that germinated at step 500 with kernel 1."""
    made: dict[str, Any] = {
        "site": site_name,
        "slot": slot,
        "event_id": "event-1",
        "artifact_id": artifact(1),
        "title": "title-1",
        "family": "family-1",
        "layer_kind": "Linear",
        "parameter_count": 100,
        "host_parameter_count": 1000,
        "germinated_step": 500,
    }
    return Tracked(**(made | fields))


# What is around a controller


def kernel(number: int, **fields: Any) -> library_pb2.Kernel:
    """A promoted kernel of 100 x `number` parameters, in a family of its own."""
    made: dict[str, Any] = {
        "artifact_id": artifact(number),
        "blueprint_id": artifact(1000 + number),
        "interface": VECTOR8,
        "status": library_pb2.KERNEL_STATUS_VALIDATED,
        "parameter_count": 100 * number,
        "forward_us_p50": 10.0 * number,
        "peak_bytes": 1000 * number,
        "title": f"title-{number}",
        "family": f"family-{number}",
    }
    return library_pb2.Kernel(**(made | fields))


KERNELS = (kernel(1), kernel(2), kernel(3))


def summary(number: int = 1, **fields: Any) -> replay_pb2.Summary:
    """Ten trials and four verdicts of kernel `number` on the task, at 5 %."""
    made: dict[str, Any] = {
        "task_name": "digits",
        "layer_kind": "Linear",
        "family": f"family-{number}",
        "title": f"title-{number}",
        "tried": 10,
        "mean_isolated_gain": 0.05,
        "judged": 4,
        "mean_gain": 0.05,
    }
    return replay_pb2.Summary(**(made | fields))


def controller(
    kernels: Iterable[library_pb2.Kernel] = KERNELS,
    summaries: Iterable[replay_pb2.Summary] = (),
    *,
    being_made: int = 0,
) -> Controller:
    """A controller whose library ignores what it is asked for: whatever it says must be checked."""
    kernels, summaries = list(kernels), list(summaries)

    async def search(
        sites: Iterable[state_pb2.SiteState], seed: int
    ) -> dict[str, tuple[list[library_pb2.Kernel], int]]:
        return {interface_key(site.interface): (kernels, being_made) for site in sites}

    async def summarise(task_name: str) -> list[replay_pb2.Summary]:
        return summaries

    return Controller(search, summarise, noon)


def answer(state: state_pb2.SystemStatePacket, *arguments: Any, **options: Any) -> pb.DecideResponse:
    """What a controller says; arguments are those of `controller`."""
    return at_once(controller(*arguments, **options).answer(state))


def only(response: pb.DecideResponse) -> pb.Decision:
    (decision,) = response.decisions
    return decision


def commands(response: pb.DecideResponse) -> list[Any]:
    return [command for decision in response.decisions for command in decision.plan.commands]


def kinds(response: pb.DecideResponse) -> list[str]:
    return [command.WhichOneof("action") for command in commands(response)]


def germinated(response: pb.DecideResponse) -> list[tuple[str, int, int]]:
    """Site, slot and kernel number of every candidate."""
    return [
        (a.seed.site, a.seed.slot, int(a.artifact_id, 16))
        for command in commands(response)
        for a in command.germinate.assignments
    ]
