"""Manual control of running runs: `esper seed`, `pause`, `resume`, `explain`."""

import argparse
import asyncio
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from esper.errors import InvalidRequest

_MOST_NURSERY_STEPS = 100_000


def add(commands: Any) -> None:
    seed = commands.add_parser("seed", help="list or command the seeds of a running run")
    verbs = seed.add_subparsers(dest="verb", required=True, metavar="VERB")
    _verb(verbs, "list", "list a run's seeds", list_seeds, seed=False)
    germinate = _verb(verbs, "germinate", "try a kernel at a dormant seed", germinate_seed)
    germinate.add_argument(
        "artifact_id", help="a promoted kernel: its id, the first six digits or more of it, or an alias"
    )
    germinate.add_argument("--nursery-steps", type=int, default=300)
    _verb(verbs, "kernels", "list promoted kernels for a run's sites", list_kernels, seed=False)
    _verb(verbs, "cull", "remove a seed", cull_seed)
    _verb(verbs, "release", "let a locked (ROLLED_BACK) seed be dormant again", release_seed)
    for name, words in (("pause", "stop growth; training goes on"), ("resume", "let growth go on")):
        parser = commands.add_parser(name, help=words)
        _run_arguments(parser)
        parser.set_defaults(do=call(pause_run), paused=name == "pause")
    explain = commands.add_parser("explain", help="everything a decision rested on")
    explain.add_argument("decision", help="<run>/<decision point>/<number>, as in events.jsonl and the report")
    explain.add_argument("--home", default=".esper")
    explain.set_defaults(do=call(explain_decision))


def _verb(verbs: Any, name: str, words: str, do: "Do", *, seed: bool = True) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=words)
    _run_arguments(parser)
    if seed:
        parser.add_argument("seed", help="<site>/<slot>, e.g. conv2/0")
    parser.set_defaults(do=call(do))
    return parser


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run")
    parser.add_argument("--home", default=".esper", help="folder of the runtime (default .esper)")


Do = Callable[[argparse.Namespace, Any], Awaitable[str]]


def call(do: Do) -> Callable[[argparse.Namespace], int]:
    """Run one command over a channel to the runtime and print what it says."""

    def run(options: argparse.Namespace) -> int:
        async def talk() -> str:
            from esper.rpc.client import open_channel
            from esper.runtime.home import Home

            contact = Home(Path(options.home)).contact()
            async with open_channel(contact.address, token=contact.token()) as channel:
                return await do(options, channel)

        print(asyncio.run(talk()))
        return 0

    return run


async def list_seeds(options: argparse.Namespace, channel: Any) -> str:
    from esper.api.common.v1 import seed_pb2
    from esper.api.kasmina.v1 import execution_pb2, execution_pb2_grpc

    stub: Any = execution_pb2_grpc.ExecutionServiceStub(channel)
    reply = await stub.ListSeeds(execution_pb2.ListSeedsRequest(run_id=options.run))
    lines = [f"{'seed':24} {'state':14} {'alpha':>5}  {'kernel':14} {'blueprint':22} why"]
    for seed in reply.seeds:
        state = seed_pb2.SeedState.Name(seed.state).removeprefix("SEED_STATE_")
        name = f"{seed.seed.site}/{seed.seed.slot}"
        lines.append(
            f"{name:24} {state:14} {seed.alpha:5.2f}  {seed.artifact_id[:12]:14} {seed.title:22} {seed.reason}"
        )
    return "\n".join([*lines, f"as of step {reply.step}"])


async def list_kernels(options: argparse.Namespace, channel: Any) -> str:
    from esper.api.tolaria.v1 import trainer_pb2, trainer_pb2_grpc
    from esper.api.urza.v1 import library_pb2, library_pb2_grpc

    runs: Any = trainer_pb2_grpc.TrainerServiceStub(channel)
    library: Any = library_pb2_grpc.LibraryServiceStub(channel)
    run = await runs.GetRun(trainer_pb2.GetRunRequest(run_id=options.run))
    lines = []
    for site in run.state.sites:
        found = await library.SearchKernels(library_pb2.SearchKernelsRequest(interface=site.interface, limit=100))
        lines += [f"{site.name:24} {m.kernel.artifact_id}  {m.kernel.title}" for m in found.matches]
    return "\n".join(lines) or "no promoted kernel fits a site of this run yet"


async def germinate_seed(options: argparse.Namespace, channel: Any) -> str:
    from esper.cli.library import kernel_named

    if not 0 <= options.nursery_steps <= _MOST_NURSERY_STEPS:
        raise InvalidRequest(f"--nursery-steps must be 0 to {_MOST_NURSERY_STEPS}, got {options.nursery_steps}")
    command = _command(options)
    action = command.germinate
    action.event_id = f"manual-{secrets.token_hex(4)}"
    action.nursery_steps = options.nursery_steps
    seed = _seed(options)
    assignment = action.assignments.add(artifact_id=await kernel_named(options.artifact_id, channel))
    assignment.seed.CopyFrom(seed)
    return await _send(command, channel)


async def cull_seed(options: argparse.Namespace, channel: Any) -> str:
    command = _command(options)
    command.cull.seed.CopyFrom(_seed(options))
    command.cull.return_to_twin = True
    return await _send(command, channel)


async def release_seed(options: argparse.Namespace, channel: Any) -> str:
    command = _command(options)
    command.release.seed.CopyFrom(_seed(options))
    return await _send(command, channel)


async def pause_run(options: argparse.Namespace, channel: Any) -> str:
    command = _command(options)
    command.pause.paused = options.paused
    command.pause.SetInParent()
    return await _send(command, channel)


async def explain_decision(options: argparse.Namespace, channel: Any) -> str:
    from esper.api.tamiyo.v1 import controller_pb2, controller_pb2_grpc
    from esper.runtime.explain import explain

    stub: Any = controller_pb2_grpc.ControllerServiceStub(channel)
    reply = await stub.GetDecision(controller_pb2.GetDecisionRequest(decision_id=options.decision))
    return explain(reply.decision)


def _seed(options: argparse.Namespace) -> Any:
    from esper.api.common.v1 import seed_pb2

    site, _, slot = options.seed.rpartition("/")
    if not site or not slot.isdigit():
        raise InvalidRequest(f"a seed is written <site>/<slot>, e.g. conv2/0; got {options.seed!r}")
    return seed_pb2.SeedRef(run_id=options.run, site=site, slot=int(slot))


def _command(options: argparse.Namespace) -> Any:
    from esper.api.kasmina.v1 import control_pb2

    return control_pb2.ControlCommand(
        command_id=f"{options.run}/operator/{secrets.token_hex(8)}",
        run_id=options.run,
        issuer="operator",
        reason="from the command line",
    )


async def _send(command: Any, channel: Any) -> str:
    from esper.api.kasmina.v1 import execution_pb2, execution_pb2_grpc

    stub: Any = execution_pb2_grpc.ExecutionServiceStub(channel)
    await stub.SendCommand(execution_pb2.SendCommandRequest(command=command))
    return f"queued for the run's next decision point as {command.command_id}"
