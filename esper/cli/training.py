"""`esper demo` and `esper train`."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import yaml

from esper.errors import InvalidConfig
from esper.runtime.runs import find_run, refuse_own_loop
from esper.runtime.spec import RUNS, TrainSpec, called, read_spec, spec_from

TASKS = ("digits", "text", "tabular")
POLICIES = ("never", "periodic-random", "largest-on-schedule", "task-prior", "plateau", "heuristic", "bandit")


def add(commands: Any) -> None:
    demo = commands.add_parser("demo", help="grow a small network on data that comes with the dependencies")
    demo.add_argument("--task", choices=TASKS, default="digits")
    _common(demo)
    demo.set_defaults(do=run_demo)
    train = commands.add_parser("train", help="train your own task: module:callable, or a YAML file")
    train.add_argument("what", nargs="?", help="module:callable or file.py:callable of an esper.Task, or a YAML file")
    train.add_argument("--resume", metavar="RUN", help="go on with a run from its newest checkpoint")
    train.add_argument("--controls", action="store_true", help="train the never-grown and static-final controls too")
    _common(train)
    train.set_defaults(do=run_train)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--policy", choices=(*POLICIES, "gnn"), metavar="POLICY", help=", ".join(POLICIES))
    parser.add_argument("--seed", type=int, help="random seed of model, data order and decisions")
    parser.add_argument("--steps", type=int, help="training steps")
    parser.add_argument("--device", help='where to train, e.g. "cpu" or "cuda"')
    parser.add_argument("--deterministic", action="store_true", help="wait for answers, so that two runs are equal")
    parser.add_argument("--no-services", action="store_true", help="all components in this process, called directly")
    parser.add_argument("--no-view", action="store_true", help="plain lines instead of the live view")
    parser.add_argument("--run-id", default="", help="name of the run; made up if absent")
    parser.add_argument("--home", help="folder of the runtime (default .esper)")


def run_demo(options: argparse.Namespace) -> int:
    spec = TrainSpec(task=f"esper.tolaria.tasks.{options.task}:task", arguments={"seed": options.seed or 0})
    return _conduct(_over(spec, options).named(options.task), options, controls=True)


def run_train(options: argparse.Namespace) -> int:
    if options.resume:
        return _conduct(_resumed(options), options, controls=options.controls)
    if not options.what:
        raise InvalidConfig("name a task as module:callable, file.py:callable or a YAML file, or --resume a run")
    spec = _over(_read(options.what), options)
    return _conduct(
        spec.named(spec.task.partition(":")[0].rpartition(".")[2].lower()), options, controls=options.controls
    )


def _resumed(options: argparse.Namespace) -> TrainSpec:
    """The spec that a run was started with; `--home` may say where its runtime is now, and nothing else may differ."""
    run = find_run(RUNS, options.resume)
    refuse_own_loop(run, f"go on by its own script, with esper.attach(..., run_id={run.run_id!r}, resume=True)")
    spec = read_spec(run.folder / "spec.json")
    others = ("what", "policy", "seed", "steps", "device", "deterministic", "run_id")
    given = [name for name in others if all(getattr(options, name) is not unset for unset in (None, False, ""))]
    given += ["no_services"] if options.no_services and spec.services else []
    if given:
        words = ", ".join(options.what if name == "what" else f"--{name.replace('_', '-')}" for name in given)
        raise InvalidConfig(
            f"--resume goes on with run {options.resume} as it was started and cannot heed {words}: leave it out"
        )
    return dataclasses.replace(spec, resume=True, home=options.home or spec.home, directory=str(run.folder))


def _read(what: str) -> TrainSpec:
    """A spec from module:callable, imported from the present directory, file.py:callable, or a YAML file."""
    if what.endswith((".yaml", ".yml")):
        path = Path(what)
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InvalidConfig(f"{path} cannot be read as YAML: {error}") from error
        if not isinstance(values, dict):
            raise InvalidConfig(f"{path} must hold keys and values, got {type(values).__name__}")
        values.setdefault("import_paths", [str(path.parent.absolute())])
        return spec_from(values, str(path))
    module, colon, name = what.rpartition(":")
    if (file := what.removesuffix(":")).endswith(".py"):
        raise InvalidConfig(f"{what} names no task: write it as file.py:callable, e.g. {file}:make_task")
    if module.endswith(".py"):
        path = Path(module).absolute()
        if not path.is_file():
            raise InvalidConfig(f"task {what}: there is no file {path}; name one that is there as file.py:callable")
        return TrainSpec(task=f"{path.stem}:{name}", import_paths=[str(path.parent)])
    return TrainSpec(task=f"{module}{colon}{name}", import_paths=[str(Path.cwd())])


def _over(spec: TrainSpec, options: argparse.Namespace) -> TrainSpec:
    """The spec with what the command line says laid over it."""
    growth = {**spec.growth, "policy": options.policy} if options.policy else spec.growth
    chosen = {} if options.seed is None else {"seed": options.seed}
    return dataclasses.replace(
        spec,
        growth=growth,
        **chosen,
        arguments={**spec.arguments, **chosen},
        steps=options.steps or spec.steps,
        device=options.device or spec.device,
        deterministic=options.deterministic or spec.deterministic,
        services=not options.no_services and spec.services,
        run_id=options.run_id or spec.run_id,
        home=options.home or spec.home,
    )


def _conduct(spec: TrainSpec, options: argparse.Namespace, *, controls: bool) -> int:
    spec.refuse_absent_device()
    name = called(Path(spec.directory))
    if name != spec.run_id:
        print(f"run {spec.run_id} is kept in {spec.directory}: its name for show, export and --resume is {name}")
    if spec.services:
        from esper.runtime.conduct import conduct

        return conduct(spec, live=not options.no_view, controls=controls)
    from esper.runtime.alone import conduct_alone

    return conduct_alone(spec, live=not options.no_view, controls=controls)
