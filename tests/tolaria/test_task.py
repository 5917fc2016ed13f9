"""Tasks: what is wrong with one is named; the three tasks' data are what they say."""

import functools
import importlib
import sys

import pytest
import torch

from esper.errors import InvalidConfig
from esper.tolaria.codec import read_task, write_task
from esper.tolaria.task import SLICES, TaskReference, check_task, load_task, same_batch
from esper.tolaria.tasks import digits, tabular, text
from esper.tolaria.tasks.splits import generator_of, split_rows, standardise
from tests import builders


def test_a_task_is_made_once_and_knows_how():
    task = load_task("tests.tolaria.tasks:noisy", {"seed": 3})
    assert task.reference == TaskReference("tests.tolaria.tasks:noisy", {"seed": 3})
    assert load_task("tests.tolaria.tasks:noisy", {"seed": 3}) is task
    assert load_task("tests.tolaria.tasks:noisy") is not task


def test_a_reference_survives_its_message():
    reference = TaskReference("m:f", {"seed": 3, "name": "x"}, ("/a", "/b"))
    assert read_task(write_task(reference)) == reference
    assert read_task(write_task(TaskReference("m:f"))) == TaskReference("m:f")


def test_a_task_of_a_file_beside_the_program(tmp_path):
    (tmp_path / "my_own_task.py").write_text("from tests.tolaria.tasks import regression as make\n")
    assert load_task("my_own_task:make", {}, [str(tmp_path)]).name == "regression"


@pytest.mark.parametrize(
    ("factory", "arguments", "said"),
    [
        ("tests.tolaria.tasks", {}, "a task is named 'module:callable', got 'tests.tolaria.tasks'"),
        (":noisy", {}, "a task is named 'module:callable'"),
        (
            "no_such_module:task",
            {},
            "cannot be imported .*No module named 'no_such_module'.*put its module on the path",
        ),
        ("tests.tolaria.tasks:missing", {}, "cannot be imported .*'missing'"),
        ("tests.tolaria.tasks:noisy", {"sed": 1}, "does not take .*unexpected keyword argument 'sed'"),
        ("tests.tolaria.tasks:no_task", {}, "returned str, not an esper.Task"),
    ],
)
def test_a_wrong_name_says_what_is_wrong(factory, arguments, said):
    with pytest.raises(InvalidConfig, match=said):
        load_task(factory, arguments)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import torch\ndef make(:\n    pass\n", r"cannot be imported: SyntaxError: .*users_one\.py:2\n.*def make\(:"),
        ("import no_such_dependency\n", r"cannot be imported: .*'no_such_dependency', at .*users_one\.py:1\n"),
        ("1 / 0\n", r"cannot be imported: ZeroDivisionError: .*, at .*users_one\.py:1\n.*1 / 0"),
        ("import sys\nsys.exit(2)\n", r"cannot be imported: SystemExit: 2, at .*users_one\.py:2\n"),
        ("def make():\n    return part()\ndef part():\n    raise KeyError('rows')\n",
         r"raised when it was called with \{\}: KeyError: 'rows', at .*users_one\.py:4\n.*return part\(\)"),
        ("def make():\n    return len(3)\n", r"raised when it was called .*TypeError: .*users_one\.py:2"),
        ("make = 3\n", "is int, not a callable that makes an esper.Task"),
        ("make = dict(a=1).missing\n", r"cannot be imported: AttributeError: .*users_one\.py:1"),
    ],
)  # fmt: skip
def test_what_a_users_own_code_raises_is_said_with_its_line_and_without_ours(tmp_path, monkeypatch, source, said):
    monkeypatch.delitem(sys.modules, "users_one", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "users_one.py").write_text(source)
    importlib.invalidate_caches()
    with pytest.raises(InvalidConfig, match=rf"(?s)^task 'users_one:make' {said}") as raised:
        load_task("users_one:make", {}, [str(tmp_path)])
    assert "importlib" not in str(raised.value) and "tolaria" not in str(raised.value)


def test_arguments_that_json_cannot_hold_are_named():
    with pytest.raises(InvalidConfig, match=r"arguments must be what JSON can hold: .*complex"):
        load_task("tests.tolaria.tasks:noisy", {"seed": 1j})


def test_a_sound_task_passes():
    check_task(builders.task())
    check_task(builders.task(loss=lambda outputs, batch: outputs.square().mean()))


def test_a_check_draws_nothing_from_the_generators_that_training_draws_from():
    before = torch.get_rng_state()
    check_task(load_task("tests.tolaria.tasks:noisy"))  # its forward has dropout
    assert torch.equal(torch.get_rng_state(), before)


def _raise(*_):
    raise RuntimeError("out of cheese")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"make_model": _raise}, "make_model raised RuntimeError: out of cheese"),
        ({"make_model": lambda: "no model"}, "make_model returned str, not an nn.Module"),
        ({"make_optimizer": _raise}, "make_optimizer raised RuntimeError: out of cheese"),
        ({"batch": _raise}, r"batch\(0\) raised RuntimeError"),
        ({"batch": lambda step: (torch.rand(4, 5), torch.rand(4, 3))}, r"batch\(0\) differs between two calls"),
        ({"loss": _raise}, "loss raised RuntimeError"),
        ({"loss": lambda outputs, batch: 0.5}, r"loss must be a finite scalar or a vector \[B\], got 0.5"),
        ({"loss": lambda outputs, batch: outputs}, "loss must be a finite scalar or a vector"),
        ({"loss": lambda outputs, batch: outputs.sum() / 0}, "loss must be a finite scalar or a vector"),
        ({"forward": lambda model, batch: model(batch)}, "loss raised TypeError"),
        ({"held_out": _raise}, r"held_out\('select'\) raised RuntimeError"),
        ({"held_out": lambda name: [] if name == "judge" else [1]}, r"held_out\('judge'\) is empty"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_what_does_not_work_is_named(changes, said):
    with pytest.raises(InvalidConfig, match=f"task regression: {said}"):
        check_task(builders.task(**changes))


def test_first_weights_depend_on_the_seed_and_on_nothing_else():
    torch.manual_seed(1)
    first = builders.task(seed=5).build_model()
    state = torch.get_rng_state()
    torch.manual_seed(2)
    again = builders.task(seed=5).build_model()
    other = builders.task(seed=6).build_model()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(next(first.parameters()), next(other.parameters()))
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_are_compared_by_structure_and_value():
    x, y = torch.ones(2), torch.zeros(2)
    assert same_batch({"a": x, "b": [y, "t"]}, {"a": x.clone(), "b": [y.clone(), "t"]})
    assert not same_batch((x, y), [x, y])
    assert not same_batch((x, y), (x, x))
    assert not same_batch((x,), (1.0,))


# The three tasks

MAKERS = {"digits": digits.task, "tabular": tabular.task, "text": text.task}


@functools.cache
def made(name, seed=0):
    return MAKERS[name](seed=seed)


@pytest.mark.parametrize("name", MAKERS)
def test_the_tasks_pass_their_own_check(name):
    check_task(made(name))


@pytest.mark.parametrize("first", [(0, 1), (1, 0), (7, 7)])
def test_every_seed_and_step_has_numbers_of_its_own(first):
    others = [(0, 0), (0, 2), (1, 1), (2, 0), (7, 8), (8, 7), (5000, 1)]
    drawn = torch.randint(1 << 30, (4,), generator=generator_of(*first))
    assert not any(torch.equal(drawn, torch.randint(1 << 30, (4,), generator=generator_of(*o))) for o in others)


@pytest.mark.parametrize("name", MAKERS)
def test_a_batch_is_the_same_every_time_and_another_at_every_step(name):
    task, again = made(name), MAKERS[name](seed=0)
    assert same_batch(task.batch(7), again.batch(7))
    assert not same_batch(task.batch(7), task.batch(8))
    assert not same_batch(task.batch(7), made(name, 1).batch(7))


@pytest.mark.parametrize(("name", "counts"), [("digits", (250, 250, 400)), ("tabular", (80, 80, 160))])
@pytest.mark.parametrize("seed", [0, 1])
def test_training_rows_and_held_out_slices_share_no_example(name, counts, seed):
    task = made(name, seed)
    slices = {part: torch.cat([batch[0].flatten(1) for batch in task.held_out(part)]) for part in SLICES}
    assert tuple(len(rows) for rows in slices.values()) == counts
    drawn = torch.cat([task.batch(step)[0].flatten(1) for step in range(100)])
    seen = {part: {tuple(row.tolist()) for row in rows} for part, rows in {**slices, "train": drawn}.items()}
    for first in seen:
        assert not any(seen[first] & seen[second] for second in seen if second != first), first


def test_text_is_split_by_module():
    parts = text.corpus()
    texts = {name: bytes(part.tolist()) for name, part in parts.items()}
    assert set(parts) == {"train", "select", "judge", "test"}
    assert len(texts["train"]) > 2 * len(texts["test"])
    owners = {name: {line for line in texts[name].split(b"\n") if len(line) > 60} for name in SLICES}
    train = set(texts["train"].split(b"\n"))
    for name, lines in owners.items():
        assert len(lines & train) / len(lines) < 0.05, name  # a licence, an import; never a module


def test_text_targets_are_the_next_symbols():
    inputs, targets = made("text").batch(3)
    assert inputs.shape == targets.shape == (16, text.CONTEXT)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert int(inputs.max()) < text.SYMBOLS


def test_text_model_sees_nothing_of_what_comes():
    model = made("text").build_model().eval()
    symbols = torch.randint(128, (2, 64))
    changed = symbols.clone()
    changed[:, 40:] = 1
    assert torch.equal(model(symbols)[:, :40], model(changed)[:, :40])


@pytest.mark.parametrize(("name", "parameters"), [("digits", 662), ("tabular", 338), ("text", 23_296)])
def test_the_models_have_the_size_they_say(name, parameters):
    assert sum(p.numel() for p in made(name).build_model().parameters()) == parameters


@pytest.mark.parametrize("name", MAKERS)
def test_losses_and_scores_are_one_per_example(name):
    task = made(name)
    batch = task.held_out("select")[0]
    outputs = task.forward(task.build_model(), batch)
    losses, scores = task.loss(outputs, batch), task.score(outputs, batch)
    assert losses.shape == scores.shape == (len(batch[0]),)
    assert bool(((scores >= 0) & (scores <= 1)).all())


def test_features_are_standardised_by_training_rows_alone():
    inputs = torch.randn(100, 3) * 5 + 2
    split = standardise(split_rows(inputs, torch.zeros(100), seed=0, counts={"select": 20, "judge": 20, "test": 20}))
    assert torch.allclose(split.train[0].mean(0), torch.zeros(3), atol=1e-5)
    assert torch.allclose(split.train[0].std(0), torch.ones(3), atol=1e-5)
    assert not torch.allclose(split.held_out["test"][0].mean(0), torch.zeros(3), atol=1e-5)


def test_a_slice_that_does_not_exist_is_named():
    split = split_rows(torch.zeros(10, 1), torch.zeros(10), seed=0, counts={"select": 2})
    with pytest.raises(InvalidConfig, match="no held-out slice 'judge'; there are select"):
        split.slice("judge")
