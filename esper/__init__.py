"""Esper grows neural networks while they train.

    handle = esper.wrap(model, target_layers=["conv*"], seeds_per_layer=4)
    session = esper.attach(handle, optimizer, task="my_task:make_task")
    ...                                   # your loop, with session.step(batch, loss) in it
    plain = esper.unwrap(model)

Names are loaded at first use, so that `import esper` brings no transport, no database and no compiler with it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esper.errors import EsperError
    from esper.host.graft import Strategy
    from esper.kasmina.handle import ModelHandle, SiteHandle
    from esper.kasmina.lifecycle import State
    from esper.kasmina.wrap import handle_of, unwrap, wrap
    from esper.runtime.attach import attach
    from esper.tolaria.session import Session
    from esper.tolaria.task import Task, load_task

__version__ = "0.1.0"

__all__ = [
    "wrap",
    "unwrap",
    "attach",
    "Task",
    "load_task",
    "Session",
    "ModelHandle",
    "SiteHandle",
    "handle_of",
    "State",
    "Strategy",
    "EsperError",
]

_HOMES = {
    "wrap": "kasmina.wrap",
    "unwrap": "kasmina.wrap",
    "handle_of": "kasmina.wrap",
    "attach": "runtime.attach",
    "Task": "tolaria.task",
    "load_task": "tolaria.task",
    "Session": "tolaria.session",
    "ModelHandle": "kasmina.handle",
    "SiteHandle": "kasmina.handle",
    "State": "kasmina.lifecycle",
    "Strategy": "host.graft",
    "EsperError": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'esper' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"esper.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
