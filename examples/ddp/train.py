"""Grow a network on several ranks.

    cd examples/ddp
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # so that restarted ranks find each other
    torchrun --nproc_per_node 2 --max_restarts 3 train.py

A rank that dies takes the others with it; torchrun starts them all again, and they go on from the newest checkpoint.
"""

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from parity import make_task
from torch.nn.parallel import DistributedDataParallel

import esper


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--steps", type=int, default=1500)
    arguments.add_argument("--run", default="ddp", help="name of the run; its files are in runs/<name>")
    arguments.add_argument("--runtime", default=None, help="folder of a running runtime; none: one is started")
    options = arguments.parse_args()
    directory = Path("runs") / options.run

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    first = dist.get_rank() == 0

    task = make_task()
    model = task.build_model()
    optimizer = task.make_optimizer(model)
    handle = esper.wrap(model, target_layers=["0"], seeds_per_layer=4)
    session = esper.attach(
        handle,
        optimizer,
        task="parity:make_task",
        runtime=options.runtime,
        run_id=options.run,
        directory=directory,
        total_steps=options.steps,
        resume=any(directory.glob("checkpoints/step-*")),
    )
    if first:
        print(f"{dist.get_world_size()} ranks, from step {session.steps_done}", flush=True)

    ddp = DistributedDataParallel(model)  # after attach, so that it knows what a resumed run has grown
    while session.steps_done < options.steps:
        batch = session.shard(task.batch(session.steps_done))
        loss = task.loss(ddp(batch[0]), batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        session.step(batch, loss)
        if session.due:
            for move in session.decide():
                if first:
                    print(move.step, move.seed, move.source.name, "->", move.target.name, move.reason, flush=True)

    session.finish()
    plain = esper.unwrap(model)
    if first:
        torch.save(plain.state_dict(), directory / "model.pt")
        print(sum(p.numel() for p in plain.parameters()), "parameters", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
