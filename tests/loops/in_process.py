"""esper.attach with controller, kernels and nursery in this process, for fits that need no runtime."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from esper.api.tolaria.v1 import trainer_pb2
from esper.kasmina.handle import ModelHandle
from esper.kasmina.nursery.worker import NurseryWorker
from esper.runtime.attach import Plan, make_run, open_session
from esper.runtime.local import LocalLine
from esper.tolaria.checkpoint import CheckpointStore
from esper.tolaria.replay import make_run as make_host_run
from esper.tolaria.session import Session
from esper.tolaria.settings import Budget, GrowthSettings
from esper.tolaria.step import Parts
from tests.flow.local import QUICK, Shelf
from tests.tolaria.script import Script

NEVER = -1  # a step at which no event begins


@dataclass
class InProcess:
    """Stands in for esper.attach. `germinate_at`: step of the one growth event; `keep`: what its verdict comes to."""

    directory: Path
    germinate_at: int = NEVER
    keep: bool = True
    shelf: Shelf = field(default_factory=Shelf)
    sessions: list[Session] = field(default_factory=list)

    def __call__(self, handle: ModelHandle, optimizer: torch.optim.Optimizer, **given: Any) -> Session:
        plan = Plan(
            run_id="local",
            directory=self.directory,
            task=given["task"],
            settings=GrowthSettings(**(QUICK | {"max_twin_lag_steps": 20} | (given["growth"] or {}))),
            budget=Budget(),
            total_steps=given["total_steps"],
            seed=0,
            deterministic=True,
        )
        plan.directory.mkdir(parents=True, exist_ok=True)
        checkpoints = CheckpointStore(plan.directory / "checkpoints")

        def hear(request: trainer_pb2.AttachRequest) -> None:
            if request.HasField("checkpoint"):
                manifest = request.checkpoint.manifest
                checkpoints.write(manifest, Path(manifest.tensors.path))

        line = LocalLine(
            Script(self.shelf, germinate_at=self.germinate_at, keep=self.keep),
            NurseryWorker(make_host_run, self.shelf.kernel, plan.directory),
            lambda artifact_id, _: self.shelf.kernel(artifact_id),
            hear,
            lambda _: None,
        )
        parts = Parts(handle.model, optimizer, given["scheduler"], given["scaler"])
        latest = checkpoints.latest() if given["resume"] else None
        session = open_session(handle, make_run(handle, parts, plan, line), latest)
        self.sessions.append(session)
        return session
