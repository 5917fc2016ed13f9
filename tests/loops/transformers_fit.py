"""A fit by transformers' Trainer, with or without Esper's callback."""

from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from esper.loops.transformers import EsperCallback, TaskBatches, whole_batch
from esper.tolaria.task import Task
from tests.loops.course import Course


class Recorder(TrainerCallback):
    """After Esper's callback: sees each optimiser step."""

    def __init__(self, callback: EsperCallback | None, **trouble: int) -> None:
        self.callback, self.trouble = callback, trouble
        self.course: Course | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        self.course = Course(parts["model"], parts["optimizer"].optimizer, **self.trouble)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        session = self.callback.session if self.callback else None
        self.course.saw(session.steps_done if session else state.global_step)


def arguments(task: Task, folder: Path, **options: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "output_dir": str(folder / "trainer"),
        "max_steps": 60,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": task.accumulate,
        "max_grad_norm": task.clip_norm or 0.0,
        "bf16": task.autocast_dtype is not None,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    return TrainingArguments(**(settings | options))


def make_trainer(
    task: Task, folder: Path, callbacks: list[TrainerCallback], *, trainer: dict[str, Any] | None = None, **options: Any
) -> Trainer:
    """`trainer`: other arguments of the Trainer's; `options`: of TrainingArguments."""
    model = task.build_model()
    optimizer = task.make_optimizer(model)
    scheduler = task.make_scheduler(optimizer) if task.make_scheduler else None
    parts: dict[str, Any] = {
        "model": model,
        "train_dataset": TaskBatches(task),
        "data_collator": whole_batch,
        "optimizers": (optimizer, scheduler),
        "callbacks": callbacks,
    }
    return Trainer(args=arguments(task, folder, **options), **(parts | (trainer or {})))


def fit(task: Task, folder: Path, callback: EsperCallback | None = None, *, steps: int = 60, **trouble: int) -> Course:
    """Train to the end, or to where `trouble` ends it."""
    recorder = Recorder(callback, **trouble)
    trainer = make_trainer(task, folder, [*([callback] if callback else []), recorder], max_steps=steps)
    trainer.train()
    assert recorder.course is not None
    course = recorder.course
    course.trainer = trainer
    course.losses = {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
    return course
