"""A fit by Lightning's Trainer, with or without Esper's callback."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from esper.loops.lightning import EsperCallback, TaskBatches
from esper.tolaria.task import Task
from tests.loops.course import Course

STEPS_PER_EPOCH = 25
# Lightning 2.6 asks torch 2.13 in a way that torch gives up.
WARNINGS = [pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning")]


class Training:
    """What makes a LightningModule train a task's model."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task
        self.net = task.build_model()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.task.loss(self.task.forward(self.net, batch), batch).mean()

    def configure_optimizers(self) -> Any:
        optimizer = self.task.make_optimizer(self.net)
        if self.task.make_scheduler is None:
            return optimizer
        schedule = {"scheduler": self.task.make_scheduler(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}


class Module(Training, LightningModule):
    """One of the `lightning` package."""


class Recorder(Callback):
    """After Esper's callback: sees each optimiser step."""

    def __init__(self, module: Module, callback: EsperCallback | None, **trouble: int) -> None:
        self.module, self.callback, self.trouble = module, callback, trouble
        self.optimizer_steps, self.loss = 0, 0.0
        self.course: Course | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.course = Course(self.module.net, trainer.optimizers[0], **self.trouble)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self.loss += float(outputs["loss"])
        if trainer.global_step > self.optimizer_steps:
            self.optimizer_steps = trainer.global_step
            session = self.callback.session if self.callback else None
            loss, self.loss = self.loss, 0.0
            self.course.saw(session.steps_done if session else trainer.global_step, loss)


def make_trainer(
    task: Task, folder: Path, callbacks: Sequence[Callback] = (), *, kind: type[Trainer] = Trainer, **options: Any
) -> Trainer:
    settings: dict[str, Any] = {
        "max_steps": 60,
        "accelerator": "cpu",
        "devices": 1,
        "accumulate_grad_batches": task.accumulate,
        "gradient_clip_val": task.clip_norm,
        "precision": "32-true" if task.autocast_dtype is None else "bf16-mixed",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        "callbacks": list(callbacks),
    }
    return kind(**(settings | options))


def fit(task: Task, folder: Path, callback: EsperCallback | None = None, *, steps: int = 60, **trouble: int) -> Course:
    """Train to the end, or to where `trouble` ends it."""
    module = Module(task)
    recorder = Recorder(module, callback, **trouble)
    trainer = make_trainer(task, folder, [*([callback] if callback else []), recorder], max_steps=steps)
    torch.manual_seed(0)
    trainer.fit(module, TaskBatches(task, steps_per_epoch=STEPS_PER_EPOCH))
    assert recorder.course is not None
    recorder.course.trainer = trainer
    return recorder.course
