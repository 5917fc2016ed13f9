"""A snapshot is the run: what is restored trains on to the same bits; what does not fit changes nothing."""

import copy
import json
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from esper.errors import Corrupt, NotFound, PreconditionFailed
from esper.tolaria.plain import read_plain, write_plain
from esper.tolaria.snapshot import capture, load, restore, restore_model
from esper.tolaria.step import Parts, build_parts, train_step
from tests import builders

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True, betas=(0.8, 0.95)),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "adamw-tensor-lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(1e-2)),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
}
SCHEDULERS = {
    "none": None,
    "step": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 3, 7], gamma=0.5),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20),
    "one-cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=60),
    "plateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=1, threshold=0.5),
    "sequence": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=3), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)],
        milestones=[3],
    ),
}


def net():
    """With buffers (running statistics), parameters without gradient, and dropout."""
    model = nn.Sequential(
        nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)
    )
    model[4].bias.requires_grad_(False)
    return model


def run_of(optimizer="adamw", scheduler="cosine", **changes):
    task = builders.task(
        net,
        make_optimizer=lambda model: OPTIMIZERS[optimizer](model.parameters()),
        make_scheduler=SCHEDULERS[scheduler],
        **changes,
    )
    return task, build_parts(task)


def go_on(task, parts, first, steps):
    return [float(train_step(parts, task, task.micro_batches(first + s))) for s in range(steps)]


def bits(parts):
    snapshot = capture(parts, 0)
    return {name: tensor.clone() for name, tensor in snapshot.all_tensors().items()}, repr(snapshot.scalars)


def equal(a, b):
    return a[0].keys() == b[0].keys() and all(torch.equal(a[0][n], b[0][n]) for n in a[0]) and a[1] == b[1]


@settings(max_examples=40)
@given(
    st.sampled_from(sorted(OPTIMIZERS)),
    st.sampled_from(sorted(SCHEDULERS)),
    st.integers(0, 6),
    st.integers(0, 5),
)
def test_a_run_goes_on_from_a_file_as_if_nothing_had_been(tmp_path_factory, optimizer, scheduler, before, after):
    if optimizer == "adamw-tensor-lr":
        scheduler = "none"  # one would keep tensors, see below
    if scheduler == "one-cycle" and optimizer in ("sgd", "adagrad", "rmsprop"):
        optimizer = "momentum"  # which it moves too
    task, parts = run_of(optimizer, scheduler)
    go_on(task, parts, 0, before)
    path = tmp_path_factory.mktemp("snapshot") / "it.safetensors"
    capture(parts, before).save(path)
    losses = go_on(task, parts, before, after)
    ended = bits(parts)
    task, other = run_of(optimizer, scheduler)
    go_on(task, other, 50, 3)  # somewhere else altogether
    torch.manual_seed(99)
    found = load(path)
    restore(other, found)
    assert found.step == before
    assert go_on(task, other, before, after) == losses
    assert equal(bits(other), ended)


def test_generators_come_back(tmp_path):
    _, parts = run_of()
    random.seed(3), np.random.seed(4), torch.manual_seed(5)
    np.random.randn()  # leaves a spare number in the generator
    taken = capture(parts, 0)
    drawn = [random.gauss(0, 1), np.random.randn(3).tolist(), torch.randn(3).tolist()]
    taken.save(tmp_path / "a.safetensors")
    random.random(), np.random.rand(7), torch.rand(7)
    restore(parts, load(tmp_path / "a.safetensors"))
    assert [random.gauss(0, 1), np.random.randn(3).tolist(), torch.randn(3).tolist()] == drawn


def test_parameters_stay_the_same_objects():
    task, parts = run_of()
    taken = capture(parts, 0)
    before = [id(p) for p in parts.model.parameters()]
    go_on(task, parts, 0, 3)
    restore(parts, taken)
    assert [id(p) for p in parts.model.parameters()] == before
    held = {id(p) for group in parts.optimizer.param_groups for p in group["params"]}
    assert held == set(before)


def test_a_later_step_does_not_reach_into_a_snapshot():
    task, parts = run_of()
    taken = capture(parts, 0)
    copied = copy.deepcopy(taken.tensors)
    go_on(task, parts, 0, 3)
    assert all(torch.equal(taken.tensors[name], copied[name]) for name in copied)
    restore(parts, taken)
    go_on(task, parts, 0, 3)
    assert all(torch.equal(taken.tensors[name], copied[name]) for name in copied)


def test_optimiser_state_goes_by_name_and_not_by_order():
    task, parts = run_of("adam", "none")
    go_on(task, parts, 0, 3)
    taken = capture(parts, 3)
    losses = go_on(task, parts, 3, 2)
    model = task.build_model()
    other = Parts(model, torch.optim.Adam(reversed(list(model.parameters())), lr=1e-2))
    restore(other, taken)
    assert go_on(task, other, 3, 2) == pytest.approx(losses, rel=1e-6)


def test_the_model_alone_needs_no_optimiser(tmp_path):
    task, parts = run_of()
    go_on(task, parts, 0, 2)
    capture(parts, 2, model_only=True).save(tmp_path / "m.safetensors")
    found = load(tmp_path / "m.safetensors")
    assert all(name.startswith("model.") for name in found.tensors)
    model = net()
    restore_model(model, found)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), parts.model.parameters(), strict=True))


def test_a_scaler_is_part_of_the_run():
    task, parts = run_of(autocast_dtype=torch.float16)
    assert parts.scaler is not None
    parts.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)
    go_on(task, parts, 0, 3)
    taken = capture(parts, 3)
    scale = parts.scaler.get_scale()
    go_on(task, parts, 3, 2)
    assert parts.scaler.get_scale() != scale
    restore(parts, taken)
    assert parts.scaler.get_scale() == scale


# Refusals


def _narrow(parts):
    parts.model[4] = nn.Linear(8, 7)


def _deeper(parts):
    parts.model.append(nn.Linear(3, 3))


def _other_optimiser(parts):
    parts.optimizer = torch.optim.SGD(parts.model.parameters(), lr=0.1)


def _more_groups(parts):
    first, *rest = parts.model.parameters()
    parts.optimizer = torch.optim.AdamW([{"params": [first]}, {"params": rest}], lr=0.1)


def _other_scheduler(parts):
    parts.scheduler = torch.optim.lr_scheduler.ExponentialLR(parts.optimizer, 0.9)


def _no_scheduler(parts):
    parts.scheduler = None


def _scaler(parts):
    parts.scaler = torch.amp.GradScaler("cpu")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_narrow, r"4\.weight is \[7, 8\] in the model and \[8, 8\] in the snapshot of step 3"),
        (_deeper, r"is of another topology: it lacks \['7\.bias', '7\.weight'\] and has \[\] besides"),
        (_other_optimiser, "optimiser is AdamW with 1 parameter groups, and here it is SGD with 1"),
        (_more_groups, "optimiser is AdamW with 1 parameter groups, and here it is AdamW with 2"),
        (_other_scheduler, "scheduler is CosineAnnealingLR, and here it is ExponentialLR"),
        (_no_scheduler, "scheduler is CosineAnnealingLR, and here it is none"),
        (_scaler, "scaler is none, and here it is GradScaler"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_has_changed(change, said):
    task, parts = run_of()
    go_on(task, parts, 0, 3)
    taken = capture(parts, 3)
    go_on(task, parts, 3, 2)
    change(parts)
    before = bits(parts)
    with pytest.raises(PreconditionFailed, match=said):
        restore(parts, taken)
    assert equal(bits(parts), before)


def test_state_that_is_not_data_is_refused_by_name():
    _, parts = run_of("adam", "none")
    first = next(parts.model.parameters())
    parts.optimizer.state[first]["memo"] = object()
    with pytest.raises(PreconditionFailed, match=r"Adam keeps a object as 'memo' of 0\.weight"):
        capture(parts, 0)


def test_a_scheduler_that_keeps_tensors_is_refused_when_the_run_begins():
    _, parts = run_of("adamw-tensor-lr", "cosine")
    with pytest.raises(PreconditionFailed, match="the state of CosineAnnealingLR holds a Tensor, which cannot be"):
        capture(parts, 0)


def test_a_file_that_is_no_snapshot_is_corrupt(tmp_path):
    _, parts = run_of()
    path = tmp_path / "it.safetensors"
    capture(parts, 1).save(path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:7], whole[: len(whole) // 2], b"\xff" * 64, whole[:8] + b"}" + whole[9:]):
        path.write_bytes(damaged)
        with pytest.raises(Corrupt, match=r"it\.safetensors is not a snapshot"):
            load(path)


def test_a_foreign_safetensors_file_is_no_snapshot(tmp_path):
    save_file({"weight": torch.ones(2)}, tmp_path / "w.safetensors")
    with pytest.raises(Corrupt, match="is not a snapshot"):
        load(tmp_path / "w.safetensors")


def test_a_file_that_is_gone_is_not_found(tmp_path):
    with pytest.raises(NotFound, match=r"no snapshot at .*; it may have been dropped"):
        load(tmp_path / "none.safetensors")


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    _, parts = run_of()
    path = tmp_path / "it.safetensors"
    capture(parts, 1).save(path)
    before = path.read_bytes()

    def half(tensors, to, metadata):
        to.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("esper.tolaria.snapshot.save_file", half)
    with pytest.raises(OSError, match="No space left"):
        capture(parts, 2).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["it.safetensors"]


# What is beside the tensors

_keys = st.one_of(st.text(max_size=5), st.integers(-9, 9), st.just("$tuple"), st.just("$counter"), st.just("$dict"))
_plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(_keys, inner, max_size=3),
    max_leaves=12,
)


@given(_plain)
def test_plain_values_come_back_as_they_were(value):
    assert repr(read_plain(json.loads(json.dumps(write_plain(value, "it"))))) == repr(value)


def test_what_is_more_than_data_is_refused():
    with pytest.raises(PreconditionFailed, match="the state of my scheduler holds a set, which cannot be written"):
        write_plain({"seen": {1, 2}}, "my scheduler")
    assert math.isinf(read_plain(write_plain(math.inf, "it")))
