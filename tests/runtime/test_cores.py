"""The number of workers where nobody says: the cores this process may use, within bounds."""

import argparse
import os

import pytest

from esper.cli import services
from esper.runtime import cores
from esper.runtime.cores import usual_workers
from esper.runtime.serve import ServeOptions


@pytest.fixture
def may_use(monkeypatch):
    """Have this process may use so many cores of 64."""

    def use(number):
        monkeypatch.setattr(os, "cpu_count", lambda: 64)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(number)), raising=False)

    return use


@pytest.mark.parametrize(("number", "workers"), [(1, 2), (2, 2), (3, 3), (8, 8), (9, 8), (64, 8)])
def test_as_many_as_the_cores_it_may_use_but_two_to_eight(may_use, number, workers):
    may_use(number)
    assert usual_workers() == ServeOptions().workers == workers


@pytest.mark.parametrize(("number", "workers"), [(1, 2), (6, 6), (64, 8), (None, 2)])
def test_where_the_system_does_not_say_which_it_counts_all(monkeypatch, number, workers):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: number)
    assert usual_workers() == workers


def test_what_is_given_decides(may_use):
    may_use(5)
    parser = argparse.ArgumentParser()
    services.add(parser.add_subparsers())
    assert parser.parse_args(["up"]).workers == 5
    assert parser.parse_args(["up", "--workers", "1"]).workers == 1
    assert parser.parse_args(["serve", "tezzeret", "--workers", "12"]).workers == 12


def test_help_says_how_many_that_is_here(may_use, capsys):
    may_use(5)
    parser = argparse.ArgumentParser()
    services.add(parser.add_subparsers())
    with pytest.raises(SystemExit):
        parser.parse_args(["up", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert f"the cores it may use, {cores.FEWEST} to {cores.MOST}; here 5" in said
