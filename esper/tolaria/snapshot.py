"""A run at one step as data: named tensors and JSON, one safetensors file.

Held are parameters and the buffers a state dict has, optimiser, scheduler and scaler,
and the states of torch's, Python's and numpy's generators. Optimiser state is keyed by
parameter names, not by position, so a snapshot fits any optimiser that holds the same
parameters in whatever order they were born.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.errors import Corrupt, NotFound, PreconditionFailed
from esper.tolaria import generators
from esper.tolaria.plain import read_plain, write_plain
from esper.tolaria.step import Parts

_SCALARS = "scalars"
_OF_OTHERS = ("params", "param_names")  # of a group: what surgery keeps, not a setting
_NUMBER = "#"  # ends the key of an optimiser's entry that is a number, not a tensor


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Copies of every tensor of a run, with what is not a tensor beside them."""

    step: int
    tensors: dict[str, Tensor]
    scalars: dict[str, Any]

    @property
    def size_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors.values())

    def save(self, path: Path) -> None:
        """Write one safetensors file, whole or not at all."""
        partial = path.with_suffix(".partial")
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        try:
            save_file(tensors, partial, {"step": str(self.step), _SCALARS: json.dumps(self.scalars)})
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def load(path: Path) -> Snapshot:
    """Read a snapshot file. Raises NotFound, or Corrupt where the file is not one."""
    if not path.exists():
        raise NotFound(f"no snapshot at {path}; it may have been dropped by the run's bounded spool")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 not a dict
        return Snapshot(int(metadata["step"]), tensors, json.loads(metadata[_SCALARS]))
    except (SafetensorError, KeyError, ValueError) as error:
        raise Corrupt(f"{path} is not a snapshot: {error}") from error


def capture(parts: Parts, step: int, *, model_only: bool = False) -> Snapshot:
    """Copy a run's state on its own device; a later step does not change the copy.

    With `model_only`: what a measurement needs, without optimiser, scheduler and generators.
    Raises PreconditionFailed for state that is not tensors and plain data.
    """
    tensors = {f"model.{name}": _copy(name, value) for name, value in parts.model.state_dict().items()}
    if model_only:
        return Snapshot(step, tensors, {})
    drawn, beside = generators.capture(parts.model)
    tensors |= drawn | _optimizer_tensors(parts)
    scalars: dict[str, Any] = {
        "made_by": _classes(parts),
        "generators": beside,
        "groups": _group_settings(parts.optimizer),
    }
    if parts.scheduler is not None:
        scalars["scheduler"] = write_plain(parts.scheduler.state_dict(), type(parts.scheduler).__name__)
    if parts.scaler is not None:
        scalars["scaler"] = write_plain(parts.scaler.state_dict(), type(parts.scaler).__name__)
    return Snapshot(step, tensors, scalars)


def restore_model(model: nn.Module, snapshot: Snapshot) -> None:
    """Copy a snapshot's model tensors into `model`, in place: parameters stay the same objects.

    Raises PreconditionFailed for a snapshot of another topology, and then nothing has changed.
    """
    own = model.state_dict()
    saved = {name.removeprefix("model."): t for name, t in snapshot.tensors.items() if name.startswith("model.")}
    if own.keys() != saved.keys():
        missing, extra = sorted(own.keys() - saved.keys()), sorted(saved.keys() - own.keys())
        raise PreconditionFailed(
            f"the snapshot of step {snapshot.step} is of another topology: it lacks {missing[:5]} and has "
            f"{extra[:5]} besides; rebuild the model with the snapshot's grafts first"
        )
    for name, tensor in own.items():
        if tensor.shape != saved[name].shape:
            raise PreconditionFailed(
                f"{name} is {list(tensor.shape)} in the model and {list(saved[name].shape)} in the snapshot "
                f"of step {snapshot.step}; build the model as it was then"
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])


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
    generators.restore(snapshot.tensors, snapshot.scalars["generators"])


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
                found[f"group.{index}|{key}"] = value.detach().clone()
    for name, parameter in parts.model.named_parameters():
        for key, value in parts.optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                found[f"optimizer.{name}|{key}"] = value.detach().clone()
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


def _copy(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise PreconditionFailed(
            f"state_dict entry {name} is {type(value).__name__}; snapshots hold tensors only: make it a buffer"
        )
    return value.detach().clone()
