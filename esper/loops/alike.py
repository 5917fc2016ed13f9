"""A trainer and a task must be set up alike, or the twin that the task makes elsewhere is no control."""

from collections.abc import Callable

from esper.errors import InvalidConfig
from esper.tolaria.step import Parts, build_parts
from esper.tolaria.task import Task


def refuse_other(task: Task, setting: str, trainers: object, field: str, tasks: object) -> None:
    """Raise InvalidConfig where a setting of the trainer's is not the task's."""
    if trainers != tasks:
        raise InvalidConfig(
            f"the trainer has {setting}={trainers} and task {task.name!r} has {field}={tasks}, so a twin would train "
            "otherwise; set them alike"
        )


def refuse_unlike(task: Task, parts: Parts) -> None:
    """Raise InvalidConfig where the trainer holds another model, optimiser or scheduler than the task makes.

    What these hold may differ, a twin begins with the trainer's; classes, names, shapes and groups may not.
    """
    made = build_parts(task)
    for what, read in _READINGS.items():
        ours, theirs = read(parts), read(made)
        if ours != theirs:
            raise InvalidConfig(
                f"the trainer's {what}: {_difference(ours, theirs)} as task {task.name!r} makes it, so a twin of this "
                "run could not be made; let the trainer and the task make the same one"
            )


def _tensors(parts: Parts) -> list[str]:
    return sorted(f"{name} {list(tensor.shape)}" for name, tensor in parts.model.state_dict().items())


def _groups(parts: Parts) -> list[str]:
    names = {id(parameter): name for name, parameter in parts.model.named_parameters()}
    return [
        f"group {index} of "
        + ", ".join(sorted(names.get(id(p), "a parameter not of the model") for p in group["params"]))
        for index, group in enumerate(parts.optimizer.param_groups)
    ]


_READINGS: dict[str, Callable[[Parts], list[str]]] = {
    "model": _tensors,
    "optimiser": lambda parts: [type(parts.optimizer).__name__],
    "optimiser's parameter groups": _groups,
    "scheduler": lambda parts: [type(parts.scheduler).__name__ if parts.scheduler is not None else "none"],
}


def _difference(ours: list[str], theirs: list[str]) -> str:
    """The first entries of each side that the other lacks."""
    extra = next((entry for entry in ours if entry not in theirs), "nothing more")
    missing = next((entry for entry in theirs if entry not in ours), "nothing more")
    return f"{extra} here, and {missing}"
