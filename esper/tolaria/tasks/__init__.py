"""Three tasks whose data come with the dependencies: digits, text, tabular."""

from esper.errors import InvalidConfig
from esper.tolaria.task import Task, load_task

FACTORIES = {
    "digits": "esper.tolaria.tasks.digits:task",
    "text": "esper.tolaria.tasks.text:task",
    "tabular": "esper.tolaria.tasks.tabular:task",
}


def named_task(name: str, seed: int = 0) -> Task:
    """One of FACTORIES. Raises InvalidConfig for another name."""
    if name not in FACTORIES:
        raise InvalidConfig(
            f"no task {name!r}; there are {', '.join(FACTORIES)}, or train your own: esper train module:task"
        )
    return load_task(FACTORIES[name], {"seed": seed})


__all__ = ["FACTORIES", "named_task"]
