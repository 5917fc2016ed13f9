"""`compat` must be able to say 0: what it looks at is broken here on purpose."""

import pytest
import torch
from torch import nn

from bench.flow import bench_compat
from bench.flow.architectures import TORCH, Architecture
from bench.flow.refused import REFUSED
from esper.host.forward import restore


def host():
    inputs = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    make = lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))  # noqa: E731
    return Architecture(make, lambda: {"input": inputs})


@pytest.mark.parametrize("case", TORCH)
def test_torchs_own_architectures_pass(case):
    assert bench_compat.dormant_differences(TORCH[case]) == []
    assert bench_compat.alive_differences(TORCH[case]) == []


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
