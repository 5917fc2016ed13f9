"""What a mistake on the command line or in a settings file gets: one line that names it and the way out.

Nothing is started for it: no runtime, no folder of a run.
"""

import argparse
import asyncio
import subprocess
import sys

import pytest

from esper.cli.control import germinate_seed
from esper.errors import InvalidRequest

COMMANDS = (
    "demo",
    "train",
    "up",
    "serve",
    "runs",
    "show",
    "export",
    "rebuild",
    "seed",
    "pause",
    "resume",
    "explain",
    "library",
    "blueprint",
)


@pytest.fixture
def refused(esper, tmp_path):
    """Run a command that must fail; its error, which is one line for the user."""

    def run(*arguments, status=1):
        said = esper(*arguments)
        assert said.status == status, said
        assert said.out == ""
        assert not (tmp_path / "runs").exists() and not (tmp_path / ".esper" / "runtime.json").exists()
        if status == 1:
            assert said.err.startswith("esper: ") and "Traceback" not in said.err
        return said.err

    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(esper, command):
    said = esper(command, "--help")
    assert said.status == 0
    assert said.out.startswith(f"usage: esper {command}")


def test_no_command_and_an_unknown_one_list_what_there_is(refused):
    assert "COMMAND" in refused(status=2)
    err = refused("dmeo", status=2)
    assert all(command in err for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("demo", "--task", "speech"), ("speech", "digits", "text", "tabular")),
        (("demo", "--policy", "heuristc"), ("heuristc", "heuristic")),
        (("demo", "--steps", "many"), ("--steps", "many")),
        (("demo", "--stepz", "5"), ("--stepz",)),
        (("serve", "tamyo"), ("tamyo", "tamiyo", "urza")),
        (("serve",), ("component",)),
        (("seed", "water", "run"), ("water", "germinate", "cull", "release", "list")),
        (("seed", "cull", "run"), ("seed",)),
        (("library", "lend"), ("lend", "list", "search", "show", "lineage", "aliases", "verify", "curate")),
        (("library", "search", "map3d", "8"), ("map3d", "map2d")),
        (("blueprint", "draw"), ("draw", "show", "diff", "new")),
        (("blueprint", "new", "a.txt", "--kind", "map3d"), ("map3d", "vector", "tokens", "map1d", "map2d")),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_wrong_word_is_named_with_those_that_are_known(refused, arguments, words):
    err = refused(*arguments, status=2)
    assert all(word in err for word in words), err


@pytest.mark.parametrize("services", [(), ("--no-services",)], ids=["services", "alone"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("demo", "--policy", "gnn"), ("gnn", "heuristic")),
        (("demo", "--steps", "-5"), ("steps must be >= 0", "-5")),
        (("demo", "--seed", "-1"), ("seed must be 0 to 4294967295", "-1")),
        (("demo", "--seed", str(10**30)), ("seed must be 0 to 4294967295", str(10**30))),
        (("demo", "--steps", str(10**30)), ("steps must be 0 to 4294967295",)),
        (("demo", "--device", "foo"), ("no device 'foo'", "cpu", "cuda")),
        (("demo", "--device", "cuda:77"), ("cuda:77 is not here", "e.g. cpu")),
        (("demo", "--device", "meta"), ("meta", "cpu")),
        (("demo", "--run-id", "No Spaces"), ("run_id 'No Spaces' must match",)),
        (("train",), ("module:callable", "--resume")),
        (("train", "--resume", "gone"), ("no run 'gone'", "there are: none")),
        (("train", "nowhere"), ("'module:callable'", "nowhere")),
        (("train", "nope.py:make"), ("nope.py:make", "there is no file", "file.py:callable")),
        (("train", "m.py"), ("m.py names no task", "file.py:callable", "m.py:make_task")),
        (("train", "m.py:"), ("m.py: names no task", "m.py:make_task")),
        (("train", "no_such_module:task"), ("no_such_module", "cannot be imported")),
        (("train", "json:no_such_name"), ("no_such_name", "cannot be imported")),
        (("train", "json:dumps"), ("json:dumps",)),
        (("train", "absent.yaml"), ("absent.yaml", "cannot be read")),
    ],
    ids=str,
)
def test_a_value_that_cannot_be_used_is_named_before_anything_starts(refused, arguments, words, services):
    err = refused(*arguments, *services)
    assert all(word in err for word in words), err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("export", "gone", "--form", "int4"), ("no form 'int4'", "did you mean 'int8'", "inference", "aot")),
        (("export", "gone", "--form", "int8"), ("no run 'gone'",)),
        (("export", "gone", "--drift-limit", "0.1"), ("--drift-limit is for a form", "--form")),
    ],
    ids=str,
)
def test_a_form_or_run_that_is_not_known_is_named(refused, arguments, words):
    err = refused(*arguments)
    assert all(word in err for word in words), err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("task: esper.tolaria.tasks.digits:task\nstep: 5", ("no key 'step'", "did you mean 'steps'")),
        ("task: esper.tolaria.tasks.digits:task\ngrowth: {polcy: never}", ("no key 'polcy'", "did you mean 'policy'")),
        ("task: esper.tolaria.tasks.digits:task\nbudget: {max_event: 1}", ("did you mean 'max_events'",)),
        ("task: esper.tolaria.tasks.digits:task\ngrowth: [never]", ("growth must be dict",)),
        ("task: esper.tolaria.tasks.digits:task\nsteps: soon", ("steps must be int",)),
        ("task: esper.tolaria.tasks.digits:task\narguments: {batchsize: 4}", ("does not take", "batchsize")),
        (
            "task: esper.tolaria.tasks.digits:task\narguments: {seed: 2020-01-01}",
            ("arguments must be what JSON can hold",),
        ),
        ("task: esper.tolaria.tasks.digits:task\nimport_paths: [3]", ("import_paths must hold folders as text", "3")),
        ("task: esper.tolaria.tasks.digits:task\ndevice: foo", ("no device 'foo'",)),
        ("task: esper.tolaria.tasks.digits:task\ngrowth: {1: 2}", ("growth has no key '1'",)),
        ("steps: 5", ("no task",)),
        ("- a\n- b", ("must hold keys and values",)),
        ("{", ("cannot be read as YAML",)),
        ("", ("must hold keys and values",)),
    ],
    ids=str,
)
def test_a_mistake_in_a_settings_file_is_named(refused, tmp_path, text, words):
    (tmp_path / "run.yaml").write_text(text)
    err = refused("train", "run.yaml")
    assert all(word in err for word in words), err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--address", "nonsense"), ("--address must be HOST:PORT", "nonsense")),
        (("--address", "127.0.0.1:99999"), ("--address must be HOST:PORT",)),
        (("--forge-targets", "cpu,sm90"), ("'sm90' is no target", "the nearest is sm_90", "cpu, sm_80, sm_90, sm_100")),
        (("--forge-targets", ","), ("'' is no target",)),
        (("--workers", "0"), ("--workers must be >= 1",)),
        (("--metrics", "127.0.0.1:99999"), ("--metrics must be HOST:PORT", "below 65536", "nissa", "99999")),
        (("--metrics", "9100"), ("--metrics must be HOST:PORT", "9100")),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "command", [("up",), ("serve", "urza", "--broker", "nats://x@127.0.0.1:1")], ids=lambda c: c[0]
)
def test_a_wrong_option_of_a_server_is_named(refused, command, arguments, words):
    err = refused(*command, *arguments)
    assert all(word in err for word in words), err


@pytest.mark.parametrize(
    "command", [("up",), ("serve", "urza", "--broker", "nats://x@127.0.0.1:1")], ids=lambda c: c[0]
)
def test_a_file_is_no_home(refused, tmp_path, command):
    tmp_path.joinpath("file").write_text("")
    err = refused(*command, "--home", "file")
    assert "file cannot be the folder of a runtime: a file is in the way" in err and "--home" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("--broker nats://TOKEN@HOST:PORT",)),
        (("--broker", "http://127.0.0.1:1"), ("--broker must be nats://", "http://127.0.0.1:1")),
        (("--broker", "nats://x@127.0.0.1:1", "--peer", "urzza=127.0.0.1:1"), ("--peer names urzza", "urza")),
        (("--broker", "nats://x@127.0.0.1:1", "--peer", "urza"), ("--peer", "COMPONENT=HOST:PORT", "urza")),
    ],
    ids=str,
)
def test_a_service_alone_says_what_it_needs(refused, arguments, words):
    err = refused("serve", "oona", *arguments)
    assert all(word in err for word in words), err


@pytest.mark.parametrize(
    "arguments",
    [
        ("seed", "list", "run"),
        ("seed", "kernels", "run"),
        ("seed", "cull", "run", "conv1/0"),
        ("pause", "run"),
        ("resume", "run"),
        ("explain", "run/1/1"),
        ("library", "list"),
        ("library", "verify"),
    ],
    ids=" ".join,
)
def test_a_command_for_a_runtime_says_that_none_runs_and_how_to_start_one(refused, arguments):
    err = refused(*arguments, "--home", "nowhere")
    assert "no runtime runs in nowhere" in err and "esper up --home nowhere" in err


@pytest.mark.parametrize("steps", [-5, 100_001])
def test_steps_in_the_nursery_have_limits(steps):
    options = argparse.Namespace(run="run", seed="conv1/0", artifact_id="a" * 64, nursery_steps=steps)
    with pytest.raises(InvalidRequest, match=f"--nursery-steps must be 0 to 100000, got {steps}"):
        asyncio.run(germinate_seed(options, None))


def test_a_settings_file_that_is_no_text_is_named(refused, tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"task: \xff")
    err = refused("train", "run.yaml")
    assert "run.yaml cannot be read as YAML" in err and "utf-8" in err


def test_the_doctor_outlives_a_broker_that_is_none(esper, monkeypatch, tmp_path):
    for chosen in (str(tmp_path), "/bin/true"):
        monkeypatch.setenv("ESPER_NATS_SERVER", chosen)
        said = esper("doctor")
        (broker,) = [line for line in said.out.splitlines() if line.split()[1] == "broker"]
        assert said.status == 0 and broker.startswith("no ") and chosen in broker and "pip install" in broker


def test_the_doctor_outlives_a_part_that_is_broken(esper, monkeypatch):
    def broken():
        raise OSError("no such device")

    monkeypatch.setattr("esper.runtime.doctor._broker", broken)
    said = esper("doctor")
    assert said.status == 0
    assert any(
        line.split(None, 2)[1:] == ["broker", "it cannot be examined: OSError: no such device"]
        for line in said.out.splitlines()
    ), said.out
    assert "runtime" in said.out


def test_a_reader_who_has_enough_ends_the_command_without_a_word(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-m", "esper", "runs"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as command:
        command.stdout.close()
        assert command.stderr.read() == b""
    assert command.returncode == 141


def test_an_error_reaches_the_shell_as_one_line_and_status_1(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-m", "esper", "demo", "--steps", "-1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert ran.stderr.count("\n") == 1 and ran.stderr.startswith("esper: ")
