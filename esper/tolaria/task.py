"""What is trained: the user's model, data, loss and optimiser, in a form a worker can make again.

A task comes from an importable factory, `"module:callable"`, so that the nursery can
continue a run in another process from a snapshot of tensors alone.
"""

import functools
import importlib
import inspect
import json
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils import _pytree

from esper.errors import EsperError, InvalidConfig
from esper.host.kept import kept_generators

Batch = Any  # any nesting of tuples, lists and dicts of tensors, batch first

SLICES = ("select", "judge", "test")  # held-out data: choice of candidates, verdicts, the final word
VALIDATION = ("select", "judge")  # what the best state is chosen by


def first_element(model: nn.Module, batch: Batch) -> Any:
    """The default forward: the model on the batch's first element."""
    return model(batch[0])


@dataclass(frozen=True, slots=True)
class TaskReference:
    """How to make the task again: `factory(**arguments)` with `import_paths` importable."""

    factory: str
    arguments: dict[str, Any] = field(default_factory=dict)
    import_paths: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Task:
    """A training task.

    `batch(step)` is the training batch of a step counted from 0 and must be the same every
    time it is asked for. `held_out(slice)` returns the batches of "select", "judge" or
    "test"; the three share no example. `loss(outputs, batch)` is a vector [B], one loss per
    example, or a scalar; a vector makes verdicts sharper, because they are paired by example.
    """

    name: str
    make_model: Callable[[], nn.Module]
    make_optimizer: Callable[[nn.Module], Optimizer]
    batch: Callable[[int], Batch]
    held_out: Callable[[str], Sequence[Batch]]
    loss: Callable[[Any, Batch], Tensor]
    forward: Callable[[nn.Module, Batch], Any] = first_element
    score: Callable[[Any, Batch], Tensor] | None = None  # [B], 0 to 1, e.g. correct or not
    make_scheduler: Callable[[Optimizer], LRScheduler] | None = None
    seed: int = 0  # random seed of the model's first weights
    steps: int = 1000  # training steps of a run that does not say
    target_layers: Any = None  # sites, as for esper.wrap
    seeds_per_layer: int = 4
    growth: dict[str, Any] = field(default_factory=dict)  # GrowthSettings that differ from the defaults
    clip_norm: float | None = None
    autocast_dtype: torch.dtype | None = None
    accumulate: int = 1  # micro-batches per step; batch(step) returns a list of them if > 1
    reference: TaskReference | None = None  # set by load_task

    def build_model(self) -> nn.Module:
        """The model with the first weights of this task's seed; global generators are left as they were."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.make_model()

    def micro_batches(self, step: int) -> list[Batch]:
        """The batches whose gradients make up one step."""
        return list(self.batch(step)) if self.accumulate > 1 else [self.batch(step)]

    def examples(self, slices: Iterable[str]) -> list[Batch]:
        """Held-out batches of several slices, in order."""
        return [batch for name in slices for batch in self.held_out(name)]


def load_task(factory: str, arguments: Mapping[str, Any] | None = None, import_paths: Sequence[str] = ()) -> Task:
    """Import `module:callable`, call it with `arguments` and remember how it was made; once per process.

    Raises InvalidConfig where the module or callable is missing or raises, with its own lines of the traceback, where
    the arguments do not fit, or where what comes back is not a Task.
    """
    try:
        arguments_json = json.dumps(dict(arguments or {}), sort_keys=True)
    except TypeError as error:
        raise InvalidConfig(f"task {factory!r}: arguments must be what JSON can hold: {error}") from error
    return _load(factory, arguments_json, tuple(import_paths))


@functools.cache
def _load(factory: str, arguments_json: str, import_paths: tuple[str, ...]) -> Task:
    module_name, _, attribute = factory.partition(":")
    if not module_name or not attribute:
        raise InvalidConfig(f"a task is named 'module:callable', got {factory!r}")
    for path in import_paths:
        if path not in sys.path:
            sys.path.insert(0, path)
    try:
        make = getattr(_imported(factory, module_name), attribute)
    except AttributeError as error:
        raise InvalidConfig(f"task {factory!r} cannot be imported ({error}); name a callable of its module") from error
    arguments = json.loads(arguments_json)
    _refuse_arguments(factory, make, arguments)
    try:
        task = make(**arguments)
    except EsperError:
        raise
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        raise _raised(f"task {factory!r} raised when it was called with {arguments_json}", error) from error
    if not isinstance(task, Task):
        raise InvalidConfig(f"task {factory!r} returned {type(task).__name__}, not an esper.Task")
    return replace(task, reference=TaskReference(factory, arguments, import_paths))


def _imported(factory: str, module_name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise InvalidConfig(
                f"task {factory!r} cannot be imported ({error}); put its module on the path, or run from its directory"
            ) from error
        raise _raised(f"task {factory!r} cannot be imported", error) from error
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        raise _raised(f"task {factory!r} cannot be imported", error) from error


def _refuse_arguments(factory: str, make: Any, arguments: dict[str, Any]) -> None:
    """Raise InvalidConfig where it is no callable or does not take them; what does not tell is called as it is."""
    if not callable(make):
        raise InvalidConfig(f"task {factory!r} is {type(make).__name__}, not a callable that makes an esper.Task")
    try:
        inspect.signature(make).bind(**arguments)
    except TypeError as error:
        raise InvalidConfig(f"task {factory!r} does not take {json.dumps(arguments)}: {error}") from error
    except ValueError:  # it has no signature
        return


def _raised(what: str, error: BaseException) -> InvalidConfig:
    """The error with its own place first, then the user's lines of the traceback."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__
        and not frame.filename.startswith("<frozen importlib")
        and frame.filename != importlib.__file__
    ]
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    if isinstance(error, SyntaxError) and error.filename:
        place = f"{error.filename}:{error.lineno}"
    lines = "".join([*traceback.format_list(frames), *traceback.format_exception_only(error)]).rstrip()
    return InvalidConfig(f"{what}: {type(error).__name__}: {error}{f', at {place}' if place else ''}\n{lines}")


def check_task(task: Task) -> None:
    """Build the task once and run one batch. Raises InvalidConfig naming the part that does not work.

    Global generators are left as they were, whatever the model draws.
    """
    model = _part(task, "make_model", task.build_model)
    if not isinstance(model, nn.Module):
        raise InvalidConfig(f"task {task.name}: make_model returned {type(model).__name__}, not an nn.Module")
    _part(task, "make_optimizer", lambda: task.make_optimizer(model))
    batch = _part(task, "batch(0)", lambda: task.micro_batches(0))[0]
    if not same_batch(batch, _part(task, "batch(0)", lambda: task.micro_batches(0))[0]):
        raise InvalidConfig(
            f"task {task.name}: batch(0) differs between two calls; draw it from a generator seeded by the step"
        )
    with torch.no_grad(), kept_generators(model):
        losses = _part(task, "loss", lambda: task.loss(task.forward(model, batch), batch))
    if not isinstance(losses, Tensor) or losses.ndim > 1 or not bool(torch.isfinite(losses).all()):
        raise InvalidConfig(f"task {task.name}: loss must be a finite scalar or a vector [B], got {losses}")
    for name in SLICES:
        if not _part(task, f"held_out({name!r})", lambda name=name: list(task.held_out(name))):  # type: ignore[misc]
            raise InvalidConfig(f"task {task.name}: held_out({name!r}) is empty; verdicts need held-out data")


def _part(task: Task, what: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # the user's own code may raise anything
        raise InvalidConfig(f"task {task.name}: {what} raised {type(error).__name__}: {error}") from error


def same_batch(a: Batch, b: Batch) -> bool:
    """Whether two batches hold the same tensors in the same structure."""
    left, left_spec = _pytree.tree_flatten(a)
    right, right_spec = _pytree.tree_flatten(b)
    return left_spec == right_spec and all(_same_leaf(x, y) for x, y in zip(left, right, strict=True))


def _same_leaf(x: Any, y: Any) -> bool:
    if isinstance(x, Tensor) or isinstance(y, Tensor):
        return isinstance(x, Tensor) and isinstance(y, Tensor) and torch.equal(x, y)
    return x is y or bool(x == y)
