"""Grow a network under Lightning's Trainer.

pip install "esper[lightning]"
cd examples/lightning && python train.py
"""

import argparse

import torch
from lightning.pytorch import LightningModule, Trainer
from ripples import make_task
from torch import Tensor, nn

import esper
from esper.loops.lightning import EsperCallback, TaskBatches

TASK = "ripples:make_task"


class Ripples(LightningModule):
    """The user's own module; what the task makes is its submodule `net`."""

    def __init__(self) -> None:
        super().__init__()
        self.task = make_task()
        self.net = self.task.build_model()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.task.make_optimizer(self.net)


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--steps", type=int, default=1500)
    arguments.add_argument("--runtime", default=None, help="folder of a running runtime; none: one is started")
    options = arguments.parse_args()

    module = Ripples()
    # deterministic: it waits for its trials, since so small a network is trained before anything was tried beside it
    growing = EsperCallback(TASK, model="net", target_layers=["0", "2"], runtime=options.runtime, deterministic=True)
    trainer = Trainer(
        max_steps=options.steps, gradient_clip_val=1.0, accelerator="cpu", devices=1, callbacks=[growing], logger=False
    )
    trainer.fit(module, TaskBatches(TASK, steps_per_epoch=100))

    for move in growing.moves:
        print(move.step, move.seed, move.source.name, "->", move.target.name, move.reason)
    plain = esper.unwrap(module.net)  # an ordinary module again, with what it has grown
    print(sum(p.numel() for p in plain.parameters()), "parameters")


if __name__ == "__main__":
    main()
