"""What dormant seeds cost: a wrapped model, all its seeds dormant, against the plain model.

`forward_ratio`: one call in eval mode without grad. `step_ratio`: forward and backward in train
mode. Both in time of the calling thread. `telemetry_ratio`: as many whole training steps under a
session as by default lie between two decision points, one of them sampled, against the same
steps without; wall time, because samples are reduced on another thread. Decision points, and
what a run talks to, are left out: see `demo-overhead`. `forward_ratio` and `step_ratio` of the same run
are also given, without a target, for other ways to attach a seed: "MLP, hook" and so on.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench.flow.hosts import HOSTS, Host
from bench.flow.other_ways import WAYS, model_of
from bench.flow.services import close_session
from bench.flow.silent_line import SilentLine
from bench.harness import BASELINE, CANDIDATE, CONTROL, Arms, Call, Effort, compare, one_thread, thread_clock
from bench.registry import Options
from bench.row import Row, Target
from esper.kasmina.wrap import wrap
from esper.runtime.attach import Plan, make_run, open_session
from esper.tolaria.session import Session
from esper.tolaria.settings import Budget, GrowthSettings
from esper.tolaria.step import Parts

NAME = "dormant"
WITHIN = Target(1.01)
SETTINGS = GrowthSettings()
SHORT = GrowthSettings(decision_every_steps=20)  # shows that it runs
TELEMETRY_EFFORT = Effort(rounds=3, turns=8, block_s=0.0, warm_up_calls=1)
TELEMETRY_QUICK = Effort(rounds=1, turns=2, block_s=0.0, warm_up_calls=1)


def rows(options: Options) -> Iterator[Row]:
    for case, host in HOSTS.items():
        for metric, call in (("forward_ratio", forward), ("step_ratio", forward_and_backward)):
            found = compare(lambda host=host, call=call: arms(host, call), options.effort(), thread_clock)  # type: ignore[misc]
            yield found.row(NAME, case, metric, against="plain model", target=WITHIN)
            for way in WAYS:
                yield found.row(NAME, f"{case}, {way}", metric, arm=way, against="plain model")
        with ExitStack() as stack:
            settings = SHORT if options.quick else SETTINGS
            build = lambda host=host, stack=stack, settings=settings: training_arms(host, stack, settings)  # noqa: E731
            found = compare(build, TELEMETRY_QUICK if options.quick else TELEMETRY_EFFORT)
            against = f"{settings.decision_every_steps} plain steps"
            yield found.row(NAME, case, "telemetry_ratio", against=against, target=WITHIN)


def arms(host: Host, call: Callable[[nn.Module, Tensor], Call]) -> Arms:
    """The same call on a plain model, on another plain model, on a wrapped one and on those of other ways."""
    batch = host.batch()
    wrapped = host.model()
    wrap(wrapped, list(host.targets), example=batch)
    models = {BASELINE: host.model(), CONTROL: host.model(), CANDIDATE: wrapped}
    models |= {way: model_of(way, host) for way in WAYS}
    return {name: call(model, batch) for name, model in models.items()}


def forward(model: nn.Module, batch: Tensor) -> Call:
    model.eval()

    def call() -> None:
        with torch.no_grad():
            model(batch)

    return call


def forward_and_backward(model: nn.Module, batch: Tensor) -> Call:
    model.train()
    parameters = list(model.parameters())

    def call() -> None:
        for parameter in parameters:
            parameter.grad = None
        model(batch).square().mean().backward()

    return call


def training_arms(host: Host, stack: ExitStack, settings: GrowthSettings) -> Arms:
    """The steps between two decision points: plain, plain again, and under a session.

    The session's thread and folder live as long as `stack`.
    """
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="esper-bench-")))
    steps = settings.decision_every_steps
    return {
        BASELINE: _steps(steps, _parts(host), host.batch(), None),
        CONTROL: _steps(steps, _parts(host), host.batch(), None),
        CANDIDATE: _steps(steps, *_attached(host, folder, stack, settings)),
    }


def _parts(host: Host) -> Parts:
    model = host.model().train()
    return Parts(model, torch.optim.Adam(model.parameters(), lr=1e-4))


def _attached(host: Host, folder: Path, stack: ExitStack, settings: GrowthSettings) -> tuple[Parts, Tensor, Session]:
    """Model and optimiser under a session that nobody asks for decisions."""
    parts, batch = _parts(host), host.batch()
    handle = wrap(parts.model, list(host.targets), example=batch)
    plan = Plan(
        run_id="dormant",
        directory=folder,
        task=None,
        settings=settings,
        budget=Budget(),
        total_steps=0,
        seed=0,
        deterministic=False,
    )
    session = open_session(handle, make_run(handle, parts, plan, SilentLine()), None)
    stack.callback(close_session, session)
    return parts, batch, session


def _steps(steps: int, parts: Parts, batch: Tensor, session: Session | None) -> Call:
    def call() -> None:
        for _ in range(steps):
            parts.optimizer.zero_grad(set_to_none=True)
            loss = parts.model(batch).square().mean()
            loss.backward()
            parts.optimizer.step()
            if session is not None:
                session.step(batch, loss)

    return call


@pytest.mark.parametrize("arm", [BASELINE, CANDIDATE, *WAYS])
@pytest.mark.parametrize("call", [forward, forward_and_backward], ids=["forward", "step"])
@pytest.mark.parametrize("case", HOSTS)
def test_dormant(benchmark, case, call, arm):  # type: ignore[no-untyped-def]
    with one_thread():
        benchmark(arms(HOSTS[case], call)[arm])
