"""A small real run under a fault: session, executor, loader, signed kernel; the controller is a script."""

import asyncio
import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.flow.faults import Fault, Trouble, damage, library
from esper.api.common.v1 import seed_pb2
from esper.api.kasmina.v1 import control_pb2
from esper.api.tamiyo.v1 import controller_pb2
from esper.api.tolaria.v1 import state_pb2, trainer_pb2
from esper.artifact.attest import PROMOTED
from esper.artifact.bundle import Artifact, sign
from esper.artifact.folder import write_folder
from esper.artifact.keys import SigningKey, TrustRoots
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.lower import lower
from esper.errors import Unavailable
from esper.karn.templates import TEMPLATES
from esper.kasmina.cache import KernelCache, folder_of
from esper.kasmina.handle import ModelHandle
from esper.kasmina.kernel import Kernel
from esper.kasmina.lifecycle import IN_HOST, State, Transition
from esper.kasmina.loader import KernelLoader
from esper.kasmina.nursery.worker import NurseryWorker
from esper.kasmina.wrap import unwrap, wrap
from esper.runtime.loads import load_over
from esper.runtime.local import LocalLine
from esper.tezzeret.compile import compile_kernel
from esper.tolaria.replay import make_run
from esper.tolaria.run import Run
from esper.tolaria.session import Session
from esper.tolaria.settings import Budget, GrowthSettings
from esper.tolaria.spool import Spool
from esper.tolaria.step import Parts

SITE, WIDTH, TITLE = "2", 8, "low_rank"
RAMP_STEPS, DECIDE_EVERY_STEPS, EMBARGO_STEPS = 8, 2, 2
STEPS_PER_LIFE = 24
PAUSES_S = (0.001, 0.001, 0.001)  # as many tries as a run has, at a pace that lets many runs fail
FORGE, EVALUATION = SigningKey.generate(), SigningKey.generate()
ROOTS = TrustRoots((FORGE.public_key,), (EVALUATION.public_key,))


@functools.cache
def kernel_artifact() -> Artifact:
    """A library blueprint, compiled and promoted by keys of this process."""
    built = compile_kernel(TEMPLATES[TITLE].graph, Interface(Kind.VECTOR, WIDTH), "cpu", "fast", FORGE)
    return sign(built, EVALUATION, PROMOTED, {"report_id": "0" * 64})


def host(seed: int) -> Parts:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3))
    return Parts(model, torch.optim.Adam(model.parameters(), 1e-2))


def batch_of(seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Inputs [16, 6] and what they should give, [16, 3]."""
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(1000 * seed + step))
    return x, torch.stack([x[:, 0] * x[:, 1], x[:, 2].sin(), x[:, 3:].prod(1)], 1)


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


def update(parts: Parts, batch: tuple[Tensor, Tensor]) -> Tensor:
    """One step of training. Returns its loss."""
    loss = loss_of(parts.model, batch)
    parts.optimizer.zero_grad()
    loss.backward()
    parts.optimizer.step()
    return loss.detach()


@functools.lru_cache(maxsize=4)
def plain_parameters(seed: int, steps: int) -> tuple[Tensor, ...]:
    """Of the host after a run that has no seeds."""
    parts = host(seed)
    for step in range(steps):
        update(parts, batch_of(seed, step))
    return tuple(p.detach().clone() for p in parts.model.parameters())


@dataclass
class Faulty:
    """One run in which a fault is injected, and what was heard of it."""

    fault: Fault
    seed: int
    folder: Path
    lives: int = 0  # germinated so far
    asked: int = 0  # kernels the loader was asked for
    graft_steps: int = 0  # steps with a graft in the host
    strayed: int = 0  # steps that met a fault and whose loss was not the host's own
    losses: list[float] = field(default_factory=list)
    heard: list[trainer_pb2.AttachRequest] = field(default_factory=list)
    moves: list[Transition] = field(default_factory=list)

    def train(self, steps: int) -> None:
        """The whole run. What went wrong is said by `wrong`."""
        draw = random.Random(self.seed)
        self.trouble = Trouble(self.fault, first=1 if self.fault.times > 1 else draw.randint(1, RAMP_STEPS))
        with asyncio.Runner() as runner:
            handle = self._open(draw, runner)
            try:
                for step in range(steps):
                    self._step(handle, batch_of(self.seed, step))
                self._look(handle)
            finally:
                self.session.close()
                self.session.run.spool.close()
                unwrap(handle.model)

    def _open(self, draw: random.Random, runner: asyncio.Runner) -> ModelHandle:
        cache = KernelCache(self.folder / "kernels", ROOTS, _not_at_hand, report=lambda _id, _why: None)
        artifact = kernel_artifact()
        if self.fault.damaged_on_disk:
            write_folder(damage(artifact, draw), folder_of(self.folder / "kernels", artifact.artifact_id))
        load = load_over(KernelLoader(cache), library(artifact, self.fault, draw), PAUSES_S)

        def kernel(artifact_id: str, interface: Interface) -> Kernel:
            self.asked += 1
            loaded = runner.run(load(artifact_id, interface))
            body = lower(loaded.graph, loaded.interface)
            form = self.trouble.form(lambda h, *p: body.functional(p, h)) if self.fault.in_form else None
            return replace(loaded, form=form)

        parts = host(self.seed)
        handle = wrap(parts.model, SITE, 1, run=lambda m: m(batch_of(self.seed, 0)[0]))
        handle.executor.run_seed, handle.executor.embargo_steps = self.seed, EMBARGO_STEPS
        nursery = NurseryWorker(make_run, lambda _id: kernel(_id, Interface(Kind.VECTOR, WIDTH)), self.folder)
        answer = controller_pb2.DecideResponse(decisions=[controller_pb2.Decision(decision_id="scripted")])
        line = LocalLine(lambda _: answer, nursery, kernel, self.heard.append, lambda _: None, self._advise)
        run = Run(
            run_id="faulty",
            directory=self.folder,
            parts=parts,
            executor=handle.executor,
            line=line,
            spool=Spool(self.folder / "spool"),
            settings=GrowthSettings(decision_every_steps=DECIDE_EVERY_STEPS, validate_every_steps=DECIDE_EVERY_STEPS),
            budget=Budget(),
            task=None,
            cache=cache,
            seed=self.seed,
            deterministic=True,
            batch_rows=16,
        )
        self.session = Session(run, telemetry=False, checkpoint_every_steps=1 << 30)
        return handle

    def _advise(self, packet: state_pb2.SystemStatePacket) -> Sequence[control_pb2.ControlCommand]:
        """Germinate while lives are left; insert what is loaded."""
        status, number = packet.seeds[0], f"{packet.sequence}"
        command = control_pb2.ControlCommand(command_id=number, run_id="faulty", issuer="bench", reason="injected")
        ref = seed_pb2.SeedRef(run_id="faulty", site=SITE, slot=0)
        if status.state == int(State.DORMANT) and self.lives < self.fault.lives:
            self.lives += 1
            assigned = control_pb2.Assignment(
                seed=ref, artifact_id=kernel_artifact().artifact_id, strategy=seed_pb2.GRAFT_STRATEGY_RESIDUAL
            )
            command.germinate.CopyFrom(control_pb2.Germinate(event_id=f"e{number}", assignments=[assigned]))
            return [command]
        if status.state == int(State.TRAINING):
            command.insert.CopyFrom(control_pb2.Insert(seed=ref, ramp_steps=RAMP_STEPS))
            return [command]
        return []

    def _step(self, handle: ModelHandle, batch: tuple[Tensor, Tensor]) -> None:
        session = self.session
        grafts, met = handle.executor.grafts, self.trouble.met
        for graft in grafts.values():
            self.trouble.watch(graft.body)
        self.graft_steps += bool(grafts)
        expected = None
        if grafts and self.fault.harms is not None:
            with torch.no_grad(), handle.without_seeds() as plain:
                expected = loss_of(plain, batch)
        loss = update(session.run.parts, batch)
        self.strayed += self.trouble.met > met and expected is not None and not torch.equal(loss, expected)
        self.losses.append(float(loss))
        session.step(batch, loss)
        if session.due:
            self.moves += session.decide()

    def _look(self, handle: ModelHandle) -> None:
        executor = handle.executor
        carried = {seed.id for seed in executor.table.in_states(IN_HOST)}
        self.lawful = carried == set(executor.grafts)
        ends = [m.target for m in self.moves if m.target in (State.STABILIZATION, State.CULLED)]
        self.end = ends[-1] if ends else State.DORMANT
        steps = len(self.losses)
        own = [p for n, p in handle.model.named_parameters() if "esper_" not in n]
        self.host_is_plain = all(map(torch.equal, own, plain_parameters(self.seed, steps)))
        self.host_is_finite = all(bool(torch.isfinite(p).all()) for p in own)

    @property
    def recoveries(self) -> dict[str, int]:
        """As the run reported them last."""
        return dict([m.performance for m in self.heard if m.HasField("performance")][-1].recoveries)

    def wrong(self) -> list[str]:
        """What is not as a recovered run has it; recoveries are looked at apart."""
        found = []
        if self.trouble.met == 0 and self.fault.harms is not None:
            found.append("the fault was never met")
        if self.strayed:
            found.append(f"{self.strayed} faulted steps had another loss than the host's own")
        if not self.host_is_finite or not all(map(_is_finite, self.losses)):
            found.append("a loss or a parameter is not finite")
        if self.end is not self.fault.end or not self.lawful:
            found.append(f"the seed's last life came to {self.end.name}, lawful: {self.lawful}")
        if self.fault.host_is_plain and not self.host_is_plain:
            found.append("the host is not that of a run without the graft")
        if "circuit_breaker" in self.fault.strategies and self.asked != self.fault.lives - 1:
            found.append(f"the kernel was asked for {self.asked} times in {self.fault.lives} lives")
        return found


def _is_finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")


def _not_at_hand(artifact_id: str) -> Artifact:
    raise Unavailable(f"kernel {artifact_id} has not been fetched")
