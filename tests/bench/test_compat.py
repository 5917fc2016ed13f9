"""`compat` must be able to say 0: what it looks at is broken here on purpose."""

import importlib.util

import pytest
import torch
from torch import nn

from bench.flow import bench_compat, exported, lives
from bench.flow.architectures import TORCH, Architecture
from bench.flow.refused import REFUSED
from bench.harness import one_thread
from esper.host.forward import restore
from tests.requirements import require


def host():
    inputs = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    make = lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))  # noqa: E731
    return Architecture(make, lambda: {"input": inputs})


@pytest.mark.parametrize("case", TORCH)
def test_torchs_own_architectures_pass(case):
    checks = bench_compat.checks(TORCH[case])
    checks.pop("exports_to_torch", None)  # starts a process
    with one_thread():
        assert {metric: check(TORCH[case]) for metric, check in checks.items()} == {metric: [] for metric in checks}


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case, architecture in TORCH.items() if not architecture.untraceable])
def test_torchs_own_architectures_are_exported(case):
    assert exported.export_differences(TORCH[case]) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the packages
@pytest.mark.timeout(900)
@pytest.mark.parametrize("package", bench_compat.PACKAGES)
def test_every_architecture_of_a_package_passes(package):
    make, remedy = bench_compat.PACKAGES[package]
    require("packages", "" if importlib.util.find_spec(package) else f"{package} is not installed: {remedy}")
    with one_thread():
        wrong = {
            (case, metric): check(architecture)
            for case, architecture in make().items()
            for metric, check in bench_compat.checks(architecture).items()
        }
    assert {key: value for key, value in wrong.items() if value} == {}


@pytest.mark.filterwarnings("default")
@pytest.mark.slow
def test_there_are_at_least_twenty_architectures_and_the_absent_are_named(monkeypatch, capsys):
    for package, (_, remedy) in bench_compat.PACKAGES.items():
        require("packages", "" if importlib.util.find_spec(package) else f"{package} is not installed: {remedy}")
    assert len(bench_compat.architectures()) >= 20
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert bench_compat.architectures() == TORCH
    assert "torch_geometric is absent, its architectures are left out: pip install" in capsys.readouterr().err


def test_a_wrap_that_changes_an_output_is_seen(monkeypatch):
    real = bench_compat.wrap

    def wrap(model, *args, **kwargs):
        handle = real(model, *args, **kwargs)
        with torch.no_grad():
            model[0].bias += 1e-4
        return handle

    monkeypatch.setattr(bench_compat, "wrap", wrap)
    assert "eval: output 0" in bench_compat.dormant_differences(host())


def test_a_wrap_that_adds_state_is_seen(monkeypatch):
    real = bench_compat.wrap

    def wrap(model, *args, **kwargs):
        handle = real(model, *args, **kwargs)
        model.register_buffer("table", torch.zeros(1))
        return handle

    monkeypatch.setattr(bench_compat, "wrap", wrap)
    assert "state_dict keys" in bench_compat.dormant_differences(host())


def test_a_seed_that_is_not_run_is_seen(monkeypatch):
    real = bench_compat.open_seed

    def open_seed(handle, name):
        branch = real(handle, name)
        restore(handle.executor.sites[name].module)
        return branch

    monkeypatch.setattr(bench_compat, "open_seed", open_seed)
    wrong = bench_compat.alive_differences(host())
    assert "0, eval: the seed does not reach the output" in wrong
    assert "0, eval: output 0" in wrong


def test_a_seed_that_computes_something_else_is_seen(monkeypatch):
    real = bench_compat.open_seed

    def open_seed(*args):
        branch = real(*args)
        return lambda x: 1.01 * branch(x)

    monkeypatch.setattr(bench_compat, "open_seed", open_seed)
    assert "0, train: output 0" in bench_compat.alive_differences(host())


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_carry_seeds_is_refused_by_name(case):
    assert bench_compat.refusal_differences(*REFUSED[case]) == []


def test_a_refusal_without_the_name_or_none_at_all_is_seen():
    make, _ = REFUSED["layer never called"]
    assert "does not name elsewhere" in bench_compat.refusal_differences(make, "elsewhere")[0]
    linear = lambda: (nn.Sequential(nn.Linear(4, 4)), None, torch.ones(2, 4))  # noqa: E731
    assert bench_compat.refusal_differences(linear, "0") == ["was wrapped"]


def test_a_refusal_that_changes_the_model_is_seen(monkeypatch):
    make, name = REFUSED["nothing matches"]
    real = bench_compat.wrap

    def wrap(model, *args, **kwargs):
        model.marked = True
        return real(model, *args, **kwargs)

    monkeypatch.setattr(bench_compat, "wrap", wrap)
    assert bench_compat.refusal_differences(make, name) == ["the model's attributes changed"]


# A seed's life


def test_a_seed_that_does_not_learn_is_seen(monkeypatch):
    monkeypatch.setattr(
        lives.Grown, "train", lambda grown, step: grown.handle.executor.step_ramps(step) or float("nan")
    )
    wrong = lives.growth_differences(host(), "0")
    assert {"no gradient reaches body.expand_weight", "body.expand_weight has not moved"} <= set(wrong)
    assert any(what.startswith("losses [nan") for what in wrong)


def test_a_seed_that_is_not_born_silent_is_seen(monkeypatch):
    real = lives.insert_seed

    def insert_seed(handle, *args):
        graft = real(handle, *args)
        graft.alpha = torch.tensor(0.5)
        lives.draw(graft, seed=1)
        return graft

    monkeypatch.setattr(lives, "insert_seed", insert_seed)
    assert "at alpha 0, eval: output 0" in lives.growth_differences(host(), "0")


def test_a_fossil_that_computes_something_else_is_seen(monkeypatch):
    real = lives.Grown.fossilise

    def fossilise(grown):
        real(grown)
        with torch.no_grad():
            grown.handle.model[0].bias += 0.1

    monkeypatch.setattr(lives.Grown, "fossilise", fossilise)
    assert "low_rank: the output changed" in lives.fossil_differences(host(), "0")


def test_a_parameter_that_the_optimiser_lost_is_seen(monkeypatch):
    real = lives.Grown.fossilise

    def fossilise(grown):
        real(grown)
        grown.optimizer.param_groups[0]["params"].pop()

    monkeypatch.setattr(lives.Grown, "fossilise", fossilise)
    assert "bottleneck_mlp: the optimiser does not hold what the model has" in lives.fossil_differences(host(), "0")


def test_what_is_left_after_unwrapping_is_seen(monkeypatch):
    real = lives.unwrap

    def unwrap(handle):
        model = real(handle)
        model[0].marked = True
        return model

    monkeypatch.setattr(lives, "unwrap", unwrap)
    assert "never grown: 0 has marked" in lives.unwrap_differences(host())


class Reads(nn.Module):
    """Causal: each position by itself."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 8), nn.Linear(8, 5)

    def forward(self, ids):
        return self.head(self.embed(ids))


def test_a_seed_that_looks_ahead_is_seen(monkeypatch):
    tokens = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]])
    reads = Architecture(Reads, lambda: {"ids": tokens}, causal="ids")
    assert lives.order_differences(reads) == []
    monkeypatch.setattr("esper.host.proof.is_causal", lambda *args: False)
    assert lives.order_differences(reads) == ["head: an earlier output saw the last input"]


def test_an_export_that_fails_elsewhere_is_seen(monkeypatch):
    real = exported.export_model

    def export_model(*args):
        found = real(*args)
        return exported.Exported(f"import esper\n{found.source}", found.state)

    monkeypatch.setattr(exported, "export_model", export_model)
    assert exported.export_differences(host()) == ["ModuleNotFoundError: No module named 'esper'"]


def test_a_refusal_that_was_not_expected_and_one_that_was_are_told_apart():
    class Branches(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else super().forward(-x)

    def branching(**fields):
        return Architecture(lambda: nn.Sequential(nn.Linear(4, 4), Branches(4, 4)), host().inputs, **fields)

    (said,) = exported.export_differences(branching())
    assert "Sequential cannot be written as plain source" in said
    assert exported.export_differences(branching(untraceable="control flow")) == []
    (said,) = exported.export_differences(branching(untraceable="something else"))
    assert said.startswith("the refusal does not name something else")
