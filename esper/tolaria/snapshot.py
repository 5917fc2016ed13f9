"""A run at one step as data: named tensors and JSON, one safetensors file.

Held are parameters and the buffers a state dict has, optimiser, scheduler and scaler,
and the states of torch's, Python's and numpy's generators. Optimiser state is keyed by
parameter names, not by position, so a snapshot fits any optimiser that holds the same
parameters in whatever order they were born.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.errors import Corrupt, NotFound, PreconditionFailed
from esper.host.forward import PREFIX
from esper.tolaria import generators
from esper.tolaria.generators import GeneratorStates
from esper.tolaria.plain import read_plain, write_plain
from esper.tolaria.step import Parts

_SCALARS, _GENERATORS, _MODEL = "scalars", "generators", "model."
_CLONE_ALL = getattr(torch, "_foreach_clone", None)  # torch 2.10 has none
_OF_OTHERS = ("params", "param_names")  # of a group: what surgery keeps, not a setting
_NUMBER = "#"  # ends the key of an optimiser's entry that is a number, not a tensor


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Copies of every tensor of a run, with what is not a tensor beside them."""

    step: int
    tensors: dict[str, Tensor]
    scalars: dict[str, Any]
    random: GeneratorStates | None = None  # None: of the model alone

    def all_tensors(self) -> dict[str, Tensor]:
        """With those of the generators' states."""
        return self.tensors | (self.random.tensors() if self.random is not None else {})

    @property
    def size_bytes(self) -> int:
        """Of the tensors; the file has a few KB besides."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())

    def model_only(self) -> "Snapshot":
        """What a measurement needs of it, without optimiser, scheduler and generators. Shares the tensors."""
        return Snapshot(self.step, {n: t for n, t in self.tensors.items() if n.startswith(_MODEL)}, {})

    def save(self, path: Path) -> None:
        """Write one safetensors file, whole or not at all."""
        partial = path.with_suffix(".partial")
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.all_tensors().items()}
        scalars = self.scalars
        if self.random is not None:
            scalars = {**scalars, _GENERATORS: self.random.beside()}
        try:
            save_file(tensors, partial, {"step": str(self.step), _SCALARS: json.dumps(scalars)})
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def load(path: Path, others: Sequence[Path] = ()) -> Snapshot:
    """Read a snapshot file; `others`: those that hold the rest of its tensors, of one that was cut.

    Raises NotFound, or Corrupt where the file is not one.
    """
    if not path.exists():
        raise NotFound(f"no snapshot at {path}; it may have been dropped by the run's bounded spool")
    try:
        metadata, tensors = _read_file(path)
        for other in others:
            tensors |= _read_file(other)[1]
        step, scalars = int(metadata["step"]), json.loads(metadata[_SCALARS])
        if not scalars:
            return Snapshot(step, tensors, {})
        drawn = generators.read(tensors, scalars.pop(_GENERATORS))
        return Snapshot(step, {n: t for n, t in tensors.items() if not generators.is_state(n)}, scalars, drawn)
    except (SafetensorError, FileNotFoundError, KeyError, ValueError) as error:
        raise Corrupt(f"{path} is not a snapshot: {error}") from error


def _read_file(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 not a dict
        return file.metadata() or {}, tensors


def capture(parts: Parts, step: int, *, model_only: bool = False) -> Snapshot:
    """Copy a run's state on its own device; a later step does not change the copy.

    With `model_only`: what a measurement needs, without optimiser, scheduler and generators.
    Raises PreconditionFailed for state that is not tensors and plain data.
    """
    held = {f"{_MODEL}{name}": _tensor(name, t) for name, t in parts.model.state_dict(keep_vars=True).items()}
    if model_only:
        return Snapshot(step, _copies(held), {})
    held |= _optimizer_tensors(parts)
    scalars: dict[str, Any] = {"made_by": _classes(parts), "groups": _group_settings(parts.optimizer)}
    if parts.scheduler is not None:
        scalars["scheduler"] = write_plain(parts.scheduler.state_dict(), type(parts.scheduler).__name__)
    if parts.scaler is not None:
        scalars["scaler"] = write_plain(parts.scaler.state_dict(), type(parts.scaler).__name__)
    return Snapshot(step, _copies(held), scalars, generators.capture(parts.model))


def _copies(held: dict[str, Tensor]) -> dict[str, Tensor]:
    """One call for all where torch has it: the training thread then lets go of the interpreter once, not each time."""
    with torch.no_grad():
        if _CLONE_ALL is None:
            return {name: tensor.clone() for name, tensor in held.items()}
        return dict(zip(held, _CLONE_ALL(list(held.values())), strict=True)) if held else {}


def restore_model(model: nn.Module, snapshot: Snapshot) -> None:
    """Copy a snapshot's model tensors into `model`, in place: parameters stay the same objects.

    Raises PreconditionFailed for a snapshot of another topology, and then nothing has changed.
    """
    own, saved = model.state_dict(), _of_model(snapshot)
    _check_tensors(own, saved, snapshot.step, "rebuild the model with the snapshot's grafts first")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])


def check_host(parts: Parts, snapshot: Snapshot) -> None:
    """Raise PreconditionFailed unless a snapshot is of this run's host, whatever is grafted to it there or here.

    Its optimiser, scheduler and scaler must be of the same classes too. Changes nothing.
    """
    _check_classes(parts, snapshot)
    own, saved = (
        {name: tensor for name, tensor in held.items() if f".{PREFIX}" not in f".{name}"}
        for held in (parts.model.state_dict(), _of_model(snapshot))
    )
    _check_tensors(own, saved, snapshot.step, "make the model that the run was begun with, or begin a new run")


def _of_model(snapshot: Snapshot) -> dict[str, Tensor]:
    return {name.removeprefix(_MODEL): t for name, t in snapshot.tensors.items() if name.startswith(_MODEL)}


def _check_tensors(own: Mapping[str, Tensor], saved: Mapping[str, Tensor], step: int, remedy: str) -> None:
    if own.keys() != saved.keys():
        missing, extra = sorted(own.keys() - saved.keys()), sorted(saved.keys() - own.keys())
        raise PreconditionFailed(
            f"the snapshot of step {step} is of another topology: it lacks {missing[:5]} and has {extra[:5]} besides; "
            f"{remedy}"
        )
    for name, tensor in own.items():
        if tensor.shape != saved[name].shape:
            raise PreconditionFailed(
                f"{name} is {list(tensor.shape)} in the model and {list(saved[name].shape)} in the snapshot of step "
                f"{step}; build the model as it was then"
            )


def restore(parts: Parts, snapshot: Snapshot) -> None:
    """Put a whole run back to a snapshot: model, optimiser, scheduler, scaler, generators.

    Raises PreconditionFailed for a snapshot of another topology, or of a run that was put together
    in another way, and then nothing has changed.
    """
    _check_classes(parts, snapshot)
    restore_model(parts.model, snapshot)
    _restore_optimizer(parts, snapshot)
    if parts.scheduler is not None:
        parts.scheduler.load_state_dict(read_plain(snapshot.scalars["scheduler"]))
    if parts.scaler is not None:
        parts.scaler.load_state_dict(read_plain(snapshot.scalars["scaler"]))
    assert snapshot.random is not None  # of a whole run
    snapshot.random.restore()


def _classes(parts: Parts) -> dict[str, str]:
    """What a run trains with: class names, and the number of parameter groups."""
    return {
        "optimiser": f"{type(parts.optimizer).__name__} with {len(parts.optimizer.param_groups)} parameter groups",
        "scheduler": "none" if parts.scheduler is None else type(parts.scheduler).__name__,
        "scaler": "none" if parts.scaler is None else type(parts.scaler).__name__,
    }


def _check_classes(parts: Parts, snapshot: Snapshot) -> None:
    saved, present = snapshot.scalars["made_by"], _classes(parts)
    for part, name in saved.items():
        if present[part] != name:
            raise PreconditionFailed(
                f"the snapshot of step {snapshot.step} was taken of a run whose {part} is {name}, and here it is "
                f"{present[part]}; the training loop and its task must make the same one, and esper.attach be given it"
            )


def _group_settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    owner = type(optimizer).__name__
    return [
        {
            key: write_plain(value, f"{owner}, setting {key!r},")
            for key, value in group.items()
            if key not in _OF_OTHERS and not isinstance(value, Tensor)
        }
        for group in optimizer.param_groups
    ]


def _optimizer_tensors(parts: Parts) -> dict[str, Tensor]:
    found = {}
    for index, group in enumerate(parts.optimizer.param_groups):
        for key, value in group.items():
            if isinstance(value, Tensor):  # a learning rate, where a compiled step wants one
                found[f"group.{index}|{key}"] = value
    for name, parameter in parts.model.named_parameters():
        for key, value in parts.optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                found[f"optimizer.{name}|{key}"] = value
            elif isinstance(value, int | float):
                found[f"optimizer.{name}|{key}{_NUMBER}"] = torch.tensor(float(value), dtype=torch.float64)
            elif value is not None:
                raise PreconditionFailed(
                    f"{type(parts.optimizer).__name__} keeps a {type(value).__name__} as {key!r} of {name}; "
                    "snapshots hold tensors and numbers: take another optimiser"
                )
    return found


def _restore_optimizer(parts: Parts, snapshot: Snapshot) -> None:
    groups = parts.optimizer.param_groups
    for group, saved in zip(groups, snapshot.scalars["groups"], strict=True):
        group.update(read_plain(saved))
    named = dict(parts.model.named_parameters())
    for parameter in named.values():
        parts.optimizer.state.pop(parameter, None)
    on_device = {id(p) for g in groups if g.get("capturable") or g.get("fused") for p in g["params"]}
    for name, tensor in snapshot.tensors.items():
        owner, _, rest = name.partition(".")
        if owner == "group":
            index, key = rest.split("|", 1)
            groups[int(index)][key].copy_(tensor)
        elif owner == "optimizer":
            parameter_name, key = rest.rsplit("|", 1)
            parameter = named[parameter_name]
            _restore_entry(parts.optimizer.state[parameter], key, tensor, parameter, id(parameter) in on_device)


def _restore_entry(state: dict[str, Any], key: str, tensor: Tensor, parameter: nn.Parameter, on_device: bool) -> None:
    if key.endswith(_NUMBER):
        number = float(tensor)
        state[key.removesuffix(_NUMBER)] = int(number) if number.is_integer() else number
    elif key == "step" and not on_device:  # torch keeps step counters on the host unless the optimiser wants them
        state[key] = tensor.to("cpu", copy=True)
    else:
        state[key] = tensor.to(parameter.device, copy=True)


def _tensor(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise PreconditionFailed(
            f"state_dict entry {name} is {type(value).__name__}; snapshots hold tensors only: make it a buffer"
        )
    return value
