"""What a run is started with: every wrong value is named before anything is started."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from esper.errors import InvalidConfig
from esper.runtime.spec import TrainSpec, called, read_spec, spec_from


def test_a_spec_comes_back_as_it_was_written(tmp_path):
    spec = TrainSpec(
        task="a:b", arguments={"x": 1}, directory=str(tmp_path / "r"), run_id="r", growth={"policy": "never"}
    )
    assert read_spec(spec.write()) == spec


def test_the_run_is_named_after_its_task_unless_it_has_a_name():
    made = TrainSpec(task="a:b").named("digits")
    assert made.run_id.startswith("digits-") and made.directory == f"runs/{made.run_id}"
    assert made.run_id != TrainSpec(task="a:b").named("digits").run_id
    assert TrainSpec(task="a:b", run_id="mine", directory="there").named("digits").directory == "there"


def test_a_directory_that_holds_a_run_is_not_written_over(tmp_path):
    spec = TrainSpec(task="a:b", directory=str(tmp_path), run_id="r")
    spec.write()
    with pytest.raises(InvalidConfig, match=rf"{tmp_path} holds a run.*--resume {tmp_path}$"):
        spec.write()
    TrainSpec(**asdict(spec) | {"resume": True}).write()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"stepz": 5}, "no key 'stepz'; did you mean 'steps'"),
        ({"grwoth": {}}, "did you mean 'growth'"),
        ({"steps": "many"}, "steps must be int, got 'many'"),
        ({"steps": True}, "steps must be int, got True"),
        ({"steps": -1}, "steps must be >= 0"),
        ({"threads": 0}, "threads >= 1"),
        ({"deterministic": 1}, "deterministic must be bool"),
        ({"device": 3}, "device must be str"),
        ({"run_id": "../elsewhere"}, "run_id '../elsewhere' must match"),
        ({"run_id": "A B"}, "must match"),
        ({"growth": 5}, "growth must be dict, got 5"),
        ({"budget": ["max_events"]}, "budget must be dict"),
        ({"arguments": "seed=1"}, "arguments must be dict"),
        ({"import_paths": "src"}, "import_paths must be list"),
        ({7: 5}, "no key '7'"),
    ],
    ids=str,
)
def test_a_wrong_value_is_named(values, words):
    with pytest.raises(InvalidConfig, match=words.replace("(", r"\(")):
        spec_from({"task": "a:b"} | values, "run.yaml")


def test_a_spec_without_task_says_how_to_name_one():
    with pytest.raises(InvalidConfig, match=r"run\.yaml: no task; name one as 'module:callable'"):
        spec_from({}, "run.yaml")


@pytest.mark.parametrize(
    ("growth", "words"),
    [
        ({"polcy": "never"}, "growth has no key 'polcy'; did you mean 'policy'"),
        ({"policy": "heuristc"}, "no policy 'heuristc'; there are .*heuristic"),
        ({"policy": "gnn"}, "policy 'gnn' is not in this release"),
        ({"nursery_steps": 0}, "nursery_steps must be >= 1"),
        ({"nursery_steps": "300"}, "growth.nursery_steps must be int, got '300'"),
        ({"strategy": "magic"}, "must be one of residual, convex, gated"),
        ({"verdict_steps": 40}, "verdict_steps 40 must be over"),
    ],
)
def test_a_wrong_growth_setting_is_named(growth, words):
    with pytest.raises(InvalidConfig, match=words):
        TrainSpec(task="a:b", growth=growth).growth_settings({})


def test_a_wrong_budget_is_named():
    with pytest.raises(InvalidConfig, match="budget has no key 'max_paramters'; did you mean 'max_added_parameters'"):
        TrainSpec(task="a:b", budget={"max_paramters": 5}).budget_settings()


def test_a_runs_own_settings_go_over_its_tasks():
    spec = TrainSpec(task="a:b", growth={"policy": "never"})
    settings = spec.growth_settings({"policy": "bandit", "nursery_steps": 50})
    assert (settings.policy, settings.nursery_steps) == ("never", 50)


def test_a_run_is_called_by_its_folder_below_runs_or_by_its_path_where_that_is_elsewhere():
    assert called(Path("runs/r")) == "r"
    assert called(Path("./runs/r").absolute()) == "r"
    assert called(Path("out")) == "out"


def test_a_run_does_not_begin_where_its_model_would_replace_another(tmp_path):
    (tmp_path / "model.py").write_text("mine")
    with pytest.raises(InvalidConfig, match=r"holds model\.py, which the run would replace by its own"):
        TrainSpec(task="a:b", run_id="r", directory=str(tmp_path)).write()
    assert [path.name for path in tmp_path.iterdir()] == ["model.py"]


def test_a_spec_file_that_does_not_parse_is_named(tmp_path):
    path = tmp_path / "spec.json"
    with pytest.raises(InvalidConfig, match=str(path)):
        read_spec(path)
    path.write_text("{")
    with pytest.raises(InvalidConfig, match=str(path)):
        read_spec(path)
    path.write_text(json.dumps([1]))
    with pytest.raises(InvalidConfig, match=str(path)):
        read_spec(path)
