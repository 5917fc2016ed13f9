"""Grow a model while the Trainer of Hugging Face's transformers trains it.

    batches = TaskBatches("my_task:make_task")
    model = batches.task.build_model()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(max_steps=1500, per_device_train_batch_size=1, max_grad_norm=0, ...),
        train_dataset=batches,
        data_collator=whole_batch,
        optimizers=(optimizer, scheduler),  # the task's
        callbacks=[EsperCallback("my_task:make_task")],
    )
    trainer.train()
    plain = esper.unwrap(model)

The trainer counts the optimiser steps that it takes, the session those that the model has behind it. Where a run goes
back, the trainer's `max_steps` rises by the steps that are undone, and an epoch ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from esper.errors import InvalidConfig, InvalidRequest
from esper.loops.alike import refuse_other
from esper.loops.batches import TaskBatches
from esper.loops.growing import Growing, task_batches
from esper.loops.watch import Watch
from esper.tolaria.task import Batch, Task

try:
    import accelerate  # noqa: F401 the Trainer needs it, and says so late
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError('esper.loops.transformers needs both libraries: pip install "esper[transformers]"') from error

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

__all__ = ["EsperCallback", "TaskBatches", "whole_batch"]

_LOADER = "give Trainer(train_dataset=TaskBatches(task), data_collator=whole_batch), from esper.loops.transformers"


def whole_batch(items: Sequence[Batch]) -> Batch:
    """The data collator for TaskBatches: an item is a micro-batch already."""
    if len(items) != 1:
        raise InvalidConfig(
            f"{len(items)} micro-batches were put together; give TrainingArguments(per_device_train_batch_size=1)"
        )
    return items[0]


class EsperCallback(Growing, TrainerCallback):  # type: ignore[misc] # transformers is not there for mypy
    """The `TrainerCallback` that grows the Trainer's model.

    Arguments as for `Growing`. The task's batches are dicts, which the model takes as keyword arguments, and the model
    returns its loss first or as "loss". Raises InvalidConfig for what does not fit, when the Trainer is made and when
    training begins; see docs/loops.md.
    """

    def __init__(self, task: str | Task, **options: Any) -> None:
        super().__init__(task, **options)
        self._total_steps = 0
        self._hooks: list[Any] = []

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The Trainer's hook, when it is made."""
        _refuse_training(args)
        _refuse_settings(args, self.task)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        optimizer: Any,
        lr_scheduler: Any,
        train_dataloader: Any,
        **kwargs: Any,
    ) -> None:
        """The Trainer's hook: wrap and attach."""
        self.refuse_second_fit()
        _refuse_training(args)
        _refuse_settings(args, self.task)
        if state.global_step:
            raise InvalidConfig(
                "train(resume_from_checkpoint=...) restores a part of what a run is, without its seeds; give "
                "EsperCallback(run_id=..., resume=True), which goes on from the run's own checkpoint of model, "
                "optimiser, scheduler and generators"
            )
        if self.handle is not None and self.handle.model is not model:
            raise InvalidConfig("the handle is of another model than the Trainer's; wrap the model that it trains")
        batches = task_batches(train_dataloader, _LOADER)
        if batches.steps_per_epoch:
            raise InvalidConfig(
                "the Trainer counts the epochs of batches with a length, and a run that goes back has more; make "
                "TaskBatches without steps_per_epoch"
            )
        first = self.task.micro_batches(0)[0]
        if not isinstance(first, Mapping):
            raise InvalidConfig(
                f"the task's batches are of type {type(first).__name__}, and the Trainer calls a model with keywords; "
                "make them dicts"
            )
        plain: Optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate has wrapped it
        self._total_steps = state.max_steps
        scaler = getattr(optimizer, "scaler", None)
        self.begin(model, plain, _scheduler(lr_scheduler), scaler, batches, self._total_steps)
        self._set_last_step(state)
        watch = Watch(self)
        self._hooks = [
            model.register_forward_pre_hook(watch.before, with_kwargs=True),
            model.register_forward_hook(watch.after, with_kwargs=True),
        ]

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """The Trainer's hook, after the optimiser's and the scheduler's step."""
        at_the_end = state.global_step >= state.max_steps
        with self.closing_on_error():
            undone = self.stepped()
        if undone:
            self._set_last_step(state)
            control.should_epoch_stop = True  # the batch that the loader has fetched ahead is not the next one
            if at_the_end:  # the Trainer's own callback has seen so before
                control.should_training_stop = False
        return control

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The Trainer's hook."""
        self._unhook()
        self.finish()

    def close(self) -> None:
        """Let go of a run whose training raised; the Trainer does not tell of that."""
        self._unhook()
        super().close()

    @contextlib.contextmanager
    def closing_on_error(self) -> Iterator[None]:
        """What Esper itself refuses inside ends the training, and lets go of the run."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def next_micro_batch(self) -> Batch:
        """The one that the loader gave for the forward that is about to be, or under way."""
        given = self._batches.given(self.running.steps_done) if self._batches is not None else []
        if self.micro_batch >= len(given):
            raise InvalidRequest(
                f"the model is called more than {len(given)} times in step {self.running.steps_done}, and the task "
                "gives so many micro-batches for it; call it once for each"
            )
        return given[self.micro_batch]

    def _set_last_step(self, state: TrainerState) -> None:
        """The Trainer ends where the model has all its steps behind it."""
        state.max_steps = self._total_steps + state.global_step - self.running.steps_done

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


def _refuse_training(args: TrainingArguments) -> None:
    """Raise InvalidConfig for a kind of training that a run cannot follow."""
    several = max(args.world_size, args.n_gpu)
    refusals: list[tuple[object, str, str]] = [
        (
            several > 1,
            f"{several} devices",
            "show it one (CUDA_VISIBLE_DEVICES), or train several ranks as docs/ddp.md shows",
        ),
        (args.deepspeed, "deepspeed", "train on one device without it"),
        (args.fsdp, "fsdp", "train on one device without it"),
        (args.torch_compile, "torch_compile=True", "compile the layers, not the model"),
        (args.auto_find_batch_size, "auto_find_batch_size=True", "a task has its batches"),
        (args.dataloader_num_workers, f"dataloader_num_workers={args.dataloader_num_workers}", "give 0"),
        (
            args.per_device_train_batch_size != 1,
            f"per_device_train_batch_size={args.per_device_train_batch_size}",
            "give 1: an item of TaskBatches is a whole micro-batch",
        ),
        (args.label_smoothing_factor, "label_smoothing_factor", "smooth in the model's loss and the task's"),
        (args.neftune_noise_alpha, "neftune_noise_alpha", "a twin would train without the noise"),
        (
            args.load_best_model_at_end,
            "load_best_model_at_end=True",
            "a run returns to its best validated state by itself",
        ),
        (
            args.max_steps < 1,
            f"max_steps={args.max_steps}",
            "give it: a run has an end, and a task's batches have none",
        ),
    ]
    for applies, what, remedy in refusals:
        if applies:
            raise InvalidConfig(f"TrainingArguments with {what} do not go with growth: {remedy}")


def _refuse_settings(args: TrainingArguments, task: Task) -> None:
    """Raise InvalidConfig where the Trainer takes a step otherwise than the task's twin would."""
    autocast_dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    refuse_other(task, "autocast_dtype", autocast_dtype, "autocast_dtype", task.autocast_dtype)
    refuse_other(task, "gradient_accumulation_steps", args.gradient_accumulation_steps, "accumulate", task.accumulate)
    refuse_other(task, "max_grad_norm", args.max_grad_norm or None, "clip_norm", task.clip_norm)


def _scheduler(scheduler: Any) -> LRScheduler | None:
    """The scheduler, which steps with the optimiser. Raises InvalidConfig for one that steps by itself."""
    if type(scheduler).__name__ in ("ReduceLROnPlateau", "GreedyLR"):
        raise InvalidConfig(
            f"{type(scheduler).__name__} follows the trainer's evaluations, and a twin has none; take another schedule"
        )
    plain: LRScheduler | None = scheduler
    return plain
