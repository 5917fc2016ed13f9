"""transformers' own Trainer under the callback: each optimiser step is followed, what does not fit is refused."""

import importlib
import sys

import pytest
import torch
from torch import nn

import esper
from esper.errors import InvalidConfig, InvalidRequest, PreconditionFailed, WrapRefused
from esper.kasmina.lifecycle import State
from esper.loops.transformers import EsperCallback, TaskBatches, whole_batch
from tests.loops.course import Died
from tests.loops.tasks import Keyed, known
from tests.loops.transformers_fit import fit, make_trainer

SLOW = pytest.mark.slow  # over two seconds


def named(**setting):
    return known("regression", named=True, **setting)


@pytest.mark.parametrize(
    "setting",
    [{}, pytest.param({"accumulate": 2, "clip": 0.5}, marks=SLOW), pytest.param({"autocast": True}, marks=SLOW)],
)
def test_without_growth_every_step_is_that_of_the_trainer_alone(in_process, tmp_path, setting):
    task = named(**setting)
    alone, followed = fit(task, tmp_path), fit(task, tmp_path, EsperCallback(task))
    assert followed.order == alone.order == list(range(1, 61))  # one for each optimiser step, not each micro-batch
    assert followed.losses == alone.losses and len(alone.losses) == 60
    assert followed.digests == alone.digests


@SLOW
def test_a_graft_that_is_kept_leaves_a_grown_plain_model(in_process, tmp_path):
    task = named(accumulate=2, clip=0.5)
    in_process.germinate_at = 20
    growing = EsperCallback(task)
    course = fit(task, tmp_path, growing, steps=120)
    assert {State.GRAFTING, State.FOSSILIZED} <= {move.target for move in growing.moves}
    assert max(course.sizes) > course.sizes[0]  # in the end folded, it may be no larger
    assert growing.session.ended and growing.session.steps_done == 120
    model = course.trainer.model
    assert esper.unwrap(model) is model and torch.isfinite(model(**task.batch(0)[0])["loss"])
    assert not model._forward_hooks and not model._forward_pre_hooks


@SLOW
def test_after_a_cull_training_goes_on_without_the_graft(in_process, tmp_path):
    task = named()
    in_process.germinate_at, in_process.keep = 20, False
    growing = EsperCallback(task)
    course = fit(task, tmp_path, growing, steps=120)
    assert {State.GRAFTING, State.CULLED} <= {move.target for move in growing.moves}
    assert max(course.sizes) > course.sizes[-1] == course.sizes[0]
    assert course.order == list(range(1, 121))


@pytest.mark.parametrize(("steps", "poison_at"), [(40, 38), pytest.param(60, 41, marks=SLOW)])  # seen at the last step
def test_a_lost_run_goes_back_and_then_trains_as_if_nothing_had_been(in_process, tmp_path, steps, poison_at):
    task = named()
    alone = fit(task, tmp_path, steps=steps)
    lost = fit(task, tmp_path, EsperCallback(task), steps=steps, poison_at=poison_at)
    assert sorted(lost.order) != lost.order and lost.order[-1] == steps
    assert lost.digests == alone.digests
    assert lost.trainer.state.global_step == len(lost.order) > steps


def test_a_run_that_goes_back_to_its_start_has_all_its_steps_in_the_end(in_process, tmp_path):
    task = named()
    lost = fit(task, tmp_path, EsperCallback(task), steps=12, poison_at=5)
    assert 0 in lost.order and lost.order[-1] == 12


@SLOW
def test_a_run_that_died_is_resumed_to_the_same_end(in_process, tmp_path):
    task = named(clip=0.5)
    in_process.germinate_at = 20
    whole = fit(task, tmp_path, EsperCallback(task), steps=120)
    in_process.directory = tmp_path / "died"
    first = EsperCallback(task)
    with pytest.raises(Died):
        fit(task, tmp_path, first, steps=120, die_at=75)
    first.close()
    again = fit(task, tmp_path, EsperCallback(task, resume=True), steps=120)
    begun = again.order[0]
    assert 1 < begun <= 75 and again.order[-1] == 120
    assert again.digests == {step: digest for step, digest in whole.digests.items() if step >= begun}


def refused(task, tmp_path, message, *, growing=None, error=InvalidConfig, **options):
    growing = growing or EsperCallback(task)
    with pytest.raises(error, match=message):
        make_trainer(task, tmp_path, [growing], **options).train()
    assert growing.session is None


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("max_steps=-1 .*a run has an end", {"max_steps": -1}),
        ("per_device_train_batch_size=8 do not go with growth", {"per_device_train_batch_size": 8}),
        ("gradient_accumulation_steps=3 and task 'regression' has accumulate=1", {"gradient_accumulation_steps": 3}),
        ("max_grad_norm=2.0 and task 'regression' has clip_norm=None", {"max_grad_norm": 2.0}),
        ("autocast_dtype=torch.bfloat16 and task", {"bf16": True}),
        ("neftune_noise_alpha", {"neftune_noise_alpha": 5.0}),
        ("dataloader_num_workers=2 .*: give 0", {"dataloader_num_workers": 2}),
        ("auto_find_batch_size", {"auto_find_batch_size": True}),
        ("torch_compile=True .*: compile the layers", {"torch_compile": True}),
        (
            "load_best_model_at_end=True",
            {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"},
        ),
    ],
)
def test_arguments_that_a_run_cannot_follow_are_refused_when_the_trainer_is_made(tmp_path, message, options):
    task = named()
    trainer = {"eval_dataset": [task.batch(0)], "train_dataset": [task.batch(0)]}
    with pytest.raises(InvalidConfig, match=message):
        make_trainer(task, tmp_path, [EsperCallback(task)], trainer=trainer, **options)


class Changed:
    """Arguments that need other machines, or a model of transformers' own; the rest as they are."""

    def __init__(self, plain, **changes):
        self.plain, self.changes = plain, changes

    def __getattr__(self, name):
        return self.changes.get(name, getattr(self.plain, name))


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("4 devices .*docs/ddp.md", {"world_size": 4}),
        ("2 devices", {"n_gpu": 2}),
        ("with deepspeed", {"deepspeed": "ds.json"}),
        ("with fsdp", {"fsdp": ["full_shard"]}),
        ("with label_smoothing_factor", {"label_smoothing_factor": 0.1}),
    ],
)
def test_what_only_another_launch_or_model_would_show_is_refused(tmp_path, message, changes):
    task = named()
    trainer = make_trainer(task, tmp_path, [])
    with pytest.raises(InvalidConfig, match=message):
        EsperCallback(task).on_init_end(Changed(trainer.args, **changes), trainer.state, trainer.control)


def test_a_callback_that_is_added_later_refuses_when_training_begins(in_process, tmp_path):
    task = named()
    growing = EsperCallback(task)
    trainer = make_trainer(task, tmp_path, [], max_grad_norm=1.0)
    trainer.add_callback(growing)
    with pytest.raises(InvalidConfig, match=r"max_grad_norm=1\.0"):
        trainer.train()
    assert growing.session is None


@pytest.mark.parametrize(
    ("message", "trainer"),
    [
        ("optimiser: AdamW here, and Adam", lambda task: {"optimizers": (None, None)}),
        ("come from a list.*TaskBatches", lambda task: {"train_dataset": [task.batch(0)]}),
        (
            "TaskBatches without steps_per_epoch",
            lambda task: {"train_dataset": TaskBatches(task, steps_per_epoch=20)},
        ),
    ],
)
def test_parts_that_the_task_would_not_make_are_refused(in_process, tmp_path, message, trainer):
    task = named()
    refused(task, tmp_path, message, trainer=trainer(task))


def test_the_schedule_that_the_trainer_makes_by_itself_is_refused(in_process, tmp_path):
    refused(named(schedule=False), tmp_path, "scheduler: LambdaLR here, and none")


def test_a_layer_or_handle_that_is_not_the_models_is_refused(in_process, tmp_path):
    task = named()
    refused(task, tmp_path, "nothing", growing=EsperCallback(task, target_layers="nothing"), error=WrapRefused)
    handle = esper.wrap(task.build_model(), "net.2", example=(torch.zeros(2, 5),))
    refused(task, tmp_path, "handle is of another model", growing=EsperCallback(task, handle=handle))


def test_a_plateau_schedule_is_refused(in_process, tmp_path):
    task = named()
    model = task.build_model()
    optimizer = task.make_optimizer(model)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    refused(task, tmp_path, "ReduceLROnPlateau follows", trainer={"model": model, "optimizers": (optimizer, plateau)})


def test_the_trainers_own_checkpoints_are_written_and_resuming_from_them_is_refused(in_process, tmp_path):
    task = named()
    make_trainer(task, tmp_path, [EsperCallback(task)], max_steps=4, save_strategy="steps", save_steps=2).train()
    saved = tmp_path / "trainer" / "checkpoint-2"
    assert saved.exists()
    in_process.directory = tmp_path / "again"
    growing = EsperCallback(task)
    with pytest.raises(InvalidConfig, match=r"resume_from_checkpoint=...\).*resume=True"):
        make_trainer(task, tmp_path, [growing], max_steps=4).train(resume_from_checkpoint=str(saved))
    assert growing.session is None


class Tripled(Keyed):
    def forward(self, inputs, labels=None):
        made = super().forward(inputs, labels)
        return made if not (self.training and torch.is_grad_enabled()) else made | {"loss": made["loss"] * 3}


class Silent(Keyed):
    def forward(self, inputs, labels=None):
        made = super().forward(inputs, labels)
        return {"loss": made["loss"].expand(2), "outputs": made["outputs"]}


@pytest.mark.parametrize(
    ("message", "kind"), [("first loss is .* a twin would", Tripled), ("model returns no loss", Silent)]
)
def test_training_on_another_loss_is_refused_at_the_first_step(in_process, tmp_path, message, kind):
    task = named()
    model = kind(task.build_model().net, nn.functional.mse_loss)
    optimizer = task.make_optimizer(model)
    growing = EsperCallback(task)
    parts = {"model": model, "optimizers": (optimizer, task.make_scheduler(optimizer))}
    with pytest.raises(InvalidRequest, match=message):
        make_trainer(task, tmp_path, [growing], trainer=parts).train()
    assert growing.session.steps_done == 0
    assert not model._forward_hooks and not model._forward_pre_hooks


class Lavish(Keyed):
    """Takes what the Trainer gives a model that may scale its loss."""

    def forward(self, inputs, labels=None, **more):
        return super().forward(inputs, labels)


def test_a_loss_that_is_scaled_over_all_micro_batches_is_refused(in_process, tmp_path):
    task = named(accumulate=2)
    model = Lavish(task.build_model().net, nn.functional.mse_loss)
    optimizer = task.make_optimizer(model)
    parts = {"model": model, "optimizers": (optimizer, task.make_scheduler(optimizer))}
    with pytest.raises(InvalidConfig, match=r"set model\.accepts_loss_kwargs = False"):
        make_trainer(task, tmp_path, [EsperCallback(task)], trainer=parts).train()
    esper.unwrap(model).accepts_loss_kwargs = False
    in_process.directory = tmp_path / "again"
    growing = EsperCallback(task)
    make_trainer(task, tmp_path, [growing], trainer=parts, max_steps=3).train()
    assert growing.session.steps_done == 3


def test_training_on_another_batch_is_refused_at_the_first_step(in_process, tmp_path):
    task = named()
    growing = EsperCallback(task)

    def halved(items):
        batch = whole_batch(items)
        return batch | {"inputs": batch["inputs"] / 2}

    with pytest.raises(InvalidRequest, match="batch of step 0 is not what task"):
        make_trainer(task, tmp_path, [growing], trainer={"data_collator": halved}).train()


def test_batches_without_names_are_refused(in_process, tmp_path):
    refused(known("regression", clip=1.0), tmp_path, "batches are of type tuple.*make them dicts", max_grad_norm=1.0)


def test_micro_batches_are_not_put_together():
    with pytest.raises(InvalidConfig, match="2 micro-batches were put together"):
        whole_batch([{}, {}])


def test_a_callback_serves_one_fit(in_process, tmp_path):
    task = named()
    growing = EsperCallback(task)
    trainer = make_trainer(task, tmp_path, [growing], max_steps=3)
    trainer.train()
    with pytest.raises(PreconditionFailed, match="has had its fit"):
        trainer.train()


def test_evaluation_between_steps_is_not_taken_for_training(in_process, tmp_path):
    task = named()
    growing = EsperCallback(task)
    evaluation = {"eval_dataset": [task.batch(500)]}
    trainer = make_trainer(
        task, tmp_path, [growing], trainer=evaluation, max_steps=12, eval_strategy="steps", eval_steps=3
    )
    trainer.train()
    assert growing.session.steps_done == 12


def test_without_the_libraries_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.delitem(sys.modules, "esper.loops.transformers")
    with pytest.raises(ImportError, match=r'pip install "esper\[transformers\]"'):
        importlib.import_module("esper.loops.transformers")
