"""Grow a small BERT under transformers' Trainer.

pip install "esper[transformers]"
cd examples/transformers_trainer && python train.py
"""

import argparse

from distinct import STEPS
from transformers import Trainer, TrainingArguments

import esper
from esper.loops.transformers import EsperCallback, TaskBatches, whole_batch

TASK = "distinct:make_task"


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--steps", type=int, default=STEPS)
    arguments.add_argument("--runtime", default=None, help="folder of a running runtime; none: one is started")
    options = arguments.parse_args()

    batches = TaskBatches(TASK)
    task = batches.task
    model = task.build_model()
    optimizer = task.make_optimizer(model)
    scheduler = task.make_scheduler(optimizer)
    # deterministic: it waits for its trials, since so small a network is trained before anything was tried beside it
    growing = EsperCallback(TASK, runtime=options.runtime, deterministic=True)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir="runs/trainer",
            max_steps=options.steps,
            per_device_train_batch_size=1,  # an item of TaskBatches is a whole batch
            max_grad_norm=1.0,
            use_cpu=True,
            dataloader_pin_memory=False,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=batches,
        data_collator=whole_batch,
        optimizers=(optimizer, scheduler),
        callbacks=[growing],
    )
    trainer.train()

    for move in growing.moves:
        print(move.step, move.seed, move.source.name, "->", move.target.name, move.reason)
    plain = esper.unwrap(model)  # an ordinary module again, with what it has grown
    print(sum(p.numel() for p in plain.parameters()), "parameters")


if __name__ == "__main__":
    main()
