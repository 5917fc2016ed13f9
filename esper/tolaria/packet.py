"""Write the SystemStatePacket of a decision point from a run."""

from collections.abc import Iterable

from esper.api.kasmina.v1 import control_pb2, nursery_pb2, telemetry_pb2
from esper.api.tolaria.v1 import state_pb2
from esper.kasmina.codec import write_seed
from esper.tolaria.codec import write_site
from esper.tolaria.progress import Progress, Validations
from esper.tolaria.run import Run
from esper.tolaria.settings import write_budget, write_growth


def write_packet(
    run: Run,
    progress: Progress,
    validations: Validations,
    *,
    health: dict[str, telemetry_pb2.HealthSignal],
    results: Iterable[nursery_pb2.JobResult],
    outcomes: Iterable[control_pb2.CommandOutcome],
    rollbacks: Iterable[state_pb2.Rollback],
    controller_state: bytes,
    paused: bool,
    final: bool,
) -> state_pb2.SystemStatePacket:
    """Everything a controller needs to know at this decision point."""
    packet = state_pb2.SystemStatePacket(
        run_id=run.run_id,
        sequence=run.sequence,
        step=run.step,
        total_steps=run.total_steps,
        task_name=run.task.name if run.task else "",
        train_loss=progress.mean,
        learning_rates=[float(group["lr"]) for group in run.parts.optimizer.param_groups],
        seeds=[write_seed(seed, run.run_id) for seed in run.executor.table],
        results=results,
        outcomes=outcomes,
        rollbacks=rollbacks,
        spending=write_spending(run),
        budget=write_budget(run.budget),
        controller_state=controller_state,
        paused=paused,
        deterministic=run.deterministic,
        random_seed=run.seed,
        settings=write_growth(run.settings, run.total_steps),
        final=final,
    )
    if validations.latest is not None:
        packet.validation_step, packet.validation_loss = validations.latest
    if validations.best is not None:
        packet.best_validation_step, packet.best_validation_loss = validations.best.step, validations.best.loss
    for site in run.executor.sites.values():
        state = packet.sites.add()
        state.CopyFrom(write_site(site, len(run.executor.table.of_site(site.name))))
        if site.name in health:
            state.health.CopyFrom(health[site.name])
    return packet


def write_spending(run: Run) -> state_pb2.Spending:
    return state_pb2.Spending(
        parameters=run.parameter_count,
        initial_parameters=run.initial_parameters,
        train_flops=run.train_flops,
        nursery_flops=run.nursery_flops,
        events=run.events,
        insertions=run.insertions,
    )
