"""One rank of a run on a real runtime, under torchrun: `-m tests.flow.ranked_run HOME FOLDER DIE_AT_STEP`.

The last rank kills itself at that step (0: never), the first time round.
"""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import esper
from esper.tolaria.step import build_parts
from esper.tolaria.task import load_task
from tests.flow.drills import GROWING
from tests.flow.local import QUICK
from tests.runtime.processes import ROOT

TASK = "tests.flow.drills:paced_digits"


def main() -> None:
    home, folder, die_at = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])

    task = load_task(TASK, {"seed": 0}, (str(ROOT),))
    parts = build_parts(task)
    batch = task.micro_batches(0)[0]
    handle = esper.wrap(
        parts.model, task.target_layers, task.seeds_per_layer, run=lambda model: task.forward(model, batch)
    )
    settings = {**QUICK, **GROWING}
    steps = settings.pop("steps")
    session = esper.attach(
        handle,
        parts.optimizer,
        task=task,
        scheduler=parts.scheduler,
        runtime=home,
        run_id="ranked",
        directory=folder / "ranked",
        total_steps=steps,
        growth=settings,
        deterministic=True,
        resume=attempt > 0,
    )
    ddp = DistributedDataParallel(parts.model)
    seen = {"attempt": attempt, "world": world, "from": session.steps_done, "digests": [], "moves": []}
    while session.steps_done < steps:
        if attempt == 0 and rank == world - 1 and die_at == session.steps_done > 0:
            os.kill(os.getpid(), signal.SIGKILL)
        mine = session.shard(task.batch(session.steps_done))
        loss = task.loss(task.forward(ddp, mine), mine).mean()
        parts.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parts.optimizer.step()
        if parts.scheduler is not None:
            parts.scheduler.step()
        session.step(mine, loss)
        seen["digests"].append(digest(parts.model))
        if session.due:
            seen["moves"] += [f"{m.step} {m.seed} {m.target.name} {m.reason}" for m in session.decide()]
    session.end()
    seen["digests"].append(digest(parts.model))
    session.close()
    (folder / f"seen-{rank}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


def digest(model: torch.nn.Module) -> str:
    hashed = hashlib.sha256()
    for parameter in model.parameters():
        hashed.update(parameter.detach().numpy().tobytes())
    return hashed.hexdigest()[:16]


if __name__ == "__main__":
    main()
