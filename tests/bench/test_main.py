"""The command line: names, output, exit status, records."""

import json

import pytest

from bench import __main__ as command
from bench import registry
from bench.row import ROOT
from tests.bench.fakes import bench_of, row

NAMES = {
    "advance-state",
    "blend",
    "checkpoint",
    "compat",
    "compile",
    "demo-overhead",
    "disturb",
    "dormant",
    "generate",
    "growth",
    "library",
    "load",
    "ops",
    "recovery",
    "seed-stats",
    "verdict",
}


@pytest.fixture
def only(monkeypatch):
    """Have the registry know one bench with these rows."""

    def put(*rows, **options):
        made = bench_of(*rows, **options)
        monkeypatch.setattr(registry, "names", lambda: [made.name])
        monkeypatch.setattr(registry, "load", lambda name: made)

    return put


def test_every_bench_is_found_by_its_name():
    assert set(registry.names()) == NAMES
    for name in registry.names():
        bench = registry.load(name)
        assert bench.about.endswith((".", ":")) or bench.about, name
        assert callable(bench.rows), name
    assert [name for name in registry.names() if registry.load(name).gpu] == [
        "advance-state",
        "blend",
        "ops",
        "seed-stats",
    ]
    assert [name for name in registry.names() if registry.load(name).long] == [
        "compile",
        "generate",
        "growth",
        "ops",
        "verdict",
    ]


def test_every_bench_has_a_pytest_benchmark_entry():
    for path in (ROOT / "bench").glob("*/bench_*.py"):
        assert "def test_" in path.read_text(), path.name


def test_an_unknown_name_lists_those_there_are(capsys):
    assert command.main(["speed"]) == 2
    said = capsys.readouterr().err
    assert "speed" in said
    assert all(name in said for name in NAMES)


def test_json_is_one_row_a_line_and_nothing_else(only, capsys):
    only(row(1.0), row(2.0, metric="other"))
    assert command.main(["fake", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["metric"] for line in lines] == ["ratio", "other"]


def test_a_table_shows_every_row(only, capsys):
    only(row(1.234, case="first case", target=1.0), row(2.0, case="second case"))
    assert command.main(["fake"]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("first case", "second case", "1.234", "NO"))


@pytest.mark.parametrize(
    ("rows", "status"),
    [
        ([row(1.0, 1.01)], 0),
        ([row(1.02, 1.01, aa=(0.97, 1.03))], 0),
        ([row(1.0, 1.01), row(1.5, 1.01, aa=(0.97, 1.03))], 1),
        ([row(99.0)], 0),
    ],
)
def test_check_fails_for_a_target_missed_beyond_noise_and_for_nothing_else(only, capsys, rows, status):
    only(*rows)
    assert command.main(["fake", "--check"]) == status
    assert ("missed beyond noise: fake one ratio is 1.5" in capsys.readouterr().err) == bool(status)
    assert command.main(["fake"]) == 0


def test_record_appends_dated_rows_to_the_devices_file(only, monkeypatch, tmp_path):
    monkeypatch.setattr(command.record, "__defaults__", (tmp_path,))
    only(row(1.0), row(2.0))
    for _ in range(2):
        assert command.main(["fake", "--record"]) == 0
    [path] = tmp_path.iterdir()
    written = [json.loads(line) for line in path.read_text().splitlines()]
    assert [entry["value"] for entry in written] == [1.0, 2.0, 1.0, 2.0]
    assert all(entry["date"].endswith("+00:00") for entry in written)
    assert set(path.stem) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_figures_of_least_effort_are_not_recorded(only, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command.record, "__defaults__", (tmp_path,))
    only(row(1.0))
    assert command.main(["fake", "--quick", "--record"]) == 2
    assert "--quick" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_gpu_that_is_not_there_or_not_used_is_an_error(only, monkeypatch, capsys):
    only(row(1.0))
    monkeypatch.setattr(command.torch.cuda, "is_available", lambda: False)
    assert command.main(["fake", "--gpu"]) == 2
    monkeypatch.setattr(command.torch.cuda, "is_available", lambda: True)
    assert command.main(["fake", "--gpu"]) == 2
    assert "fake measures the CPU only" in capsys.readouterr().err


def test_without_a_name_the_long_ones_are_left_out_and_named(only, capsys):
    only(row(1.0), long=True, name="slow")
    assert command.main(["--json"]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "python -m bench slow" in said.err
