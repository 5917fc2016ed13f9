"""What a training run is started with, as data: from the command line or a YAML file, to the trainer process."""

import dataclasses
import json
import re
import secrets
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esper.errors import InvalidConfig
from esper.tolaria.settings import Budget, GrowthSettings, from_mapping, refuse_unknown

RUNS = Path("runs")
SPEC = "spec.json"
# Seeds: torch's generators heed 32 bits and no more. Steps: the nursery counts in as many. Threads: of no use beyond.
_MOST = {"seed": 2**32 - 1, "steps": 2**32 - 1, "threads": 1024}
_RUN_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """One run. Every field can be a key of the YAML file of `esper train`."""

    task: str  # "module:callable"
    arguments: dict[str, Any] = field(default_factory=dict)  # of the callable
    import_paths: list[str] = field(default_factory=list)
    run_id: str = ""  # "": made from the task's name
    directory: str = ""  # "": runs/<run id>
    steps: int = 0  # 0: the task's own
    seed: int = 0
    device: str = "cpu"
    threads: int = 1  # of the training process
    deterministic: bool = False
    services: bool = True
    home: str = ".esper"
    growth: dict[str, Any] = field(default_factory=dict)  # GrowthSettings
    budget: dict[str, Any] = field(default_factory=dict)  # Budget
    telemetry: bool = True
    resume: bool = False

    def __post_init__(self) -> None:
        if self.run_id and not _RUN_ID.fullmatch(self.run_id):
            raise InvalidConfig(f"run_id {self.run_id!r} must match {_RUN_ID.pattern}")
        if self.steps < 0 or self.threads < 1:
            raise InvalidConfig(f"steps must be >= 0 and threads >= 1, got {self.steps} and {self.threads}")
        for name, most in _MOST.items():
            if not 0 <= getattr(self, name) <= most:
                raise InvalidConfig(f"{name} must be 0 to {most}, got {getattr(self, name)}")
        if wrong := [path for path in self.import_paths if not isinstance(path, str)]:
            raise InvalidConfig(f"import_paths must hold folders as text, got {wrong[0]!r}")

    def refuse_absent_device(self) -> None:
        """Raises InvalidConfig for a device that torch does not know, or that this machine does not have."""
        import torch  # `esper runs` does without

        try:
            device = torch.device(self.device)
        except RuntimeError:
            raise InvalidConfig(f'no device {self.device!r}; name one as "cpu", "cuda" or "cuda:0"') from None
        if device.type == "meta":
            raise InvalidConfig("device meta holds no numbers; name one as cpu or cuda")
        if device.type == "cuda":
            count = torch.cuda.device_count()  # without a context of CUDA in this process
            if (device.index or 0) >= count:
                there = f"torch sees {count} CUDA devices" if count else "torch sees no CUDA device"
                raise InvalidConfig(f"device {self.device} is not here: {there}; take another, e.g. cpu")
            return
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).partition("\n")[0]
            raise InvalidConfig(f"device {self.device} is not here: {reason}; take another, e.g. cpu") from error

    def growth_settings(self, task_defaults: Mapping[str, Any]) -> GrowthSettings:
        """The task's own settings with this run's laid over them. Raises InvalidConfig for a wrong one."""
        from esper.tamiyo.policies import policy_named  # needs torch, which `esper runs` does without

        settings = from_mapping(GrowthSettings, {**task_defaults, **self.growth}, "growth")
        policy_named(settings.policy)
        return settings

    def budget_settings(self) -> Budget:
        return from_mapping(Budget, self.budget, "budget")

    def named(self, prefix: str) -> "TrainSpec":
        """With a run id and a directory."""
        run_id = self.run_id or f"{prefix}-{secrets.token_hex(3)}"
        return dataclasses.replace(self, run_id=run_id, directory=self.directory or str(RUNS / run_id))

    def refuse_taken(self) -> None:
        """Raises InvalidConfig where the directory holds a run that is not resumed, or a model that is no run's."""
        folder = Path(self.directory)
        if (folder / SPEC).exists() and not self.resume:
            raise InvalidConfig(
                f"{folder} holds a run; choose another run id, or go on with it: --resume {called(folder)}"
            )
        there = [name for name in ("model.py", "model.pt") if (folder / name).exists()]
        if there and not (folder / SPEC).exists():
            raise InvalidConfig(
                f"directory {folder} holds {' and '.join(there)}, which the run would replace by its own; "
                "choose another directory"
            )

    def write(self) -> Path:
        """Save as `spec.json` in the run's directory.

        Raises InvalidConfig as `refuse_taken`, and where it cannot be written.
        """
        self.refuse_taken()
        path = Path(self.directory) / SPEC
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(dataclasses.asdict(self), indent=1))
        except OSError as error:
            raise InvalidConfig(
                f"the run cannot be kept in {self.directory}: {error.filename}: {error.strerror}; start it where you "
                "may write, or name a `directory` in a YAML file"
            ) from error
        return path


def called(folder: Path) -> str:
    """By what commands find the run of a folder: its name where it is below runs/, else the folder."""
    return folder.name if folder.absolute().parent == RUNS.absolute() else str(folder)


def read_spec(path: Path) -> TrainSpec:
    """A spec that `write` saved. Raises InvalidConfig where the file is not one."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidConfig(f"{path} cannot be read as a run's spec: {error}") from error
    if not isinstance(values, dict):
        raise InvalidConfig(f"{path} must hold keys and values, got {type(values).__name__}")
    return spec_from(values, str(path))


def spec_from(values: Mapping[str, Any], where: str) -> TrainSpec:
    """A spec from a mapping. Raises InvalidConfig for an unknown key, naming the nearest, or a wrong type."""
    known = {f.name: f for f in dataclasses.fields(TrainSpec)}
    types = typing.get_type_hints(TrainSpec)
    for key, value in values.items():
        refuse_unknown(str(key), known, where)
        wanted = typing.get_origin(types[key]) or types[key]
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            raise InvalidConfig(f"{where}: {key} must be {wanted.__name__}, got {value!r}")
    if "task" not in values:
        raise InvalidConfig(f"{where}: no task; name one as 'module:callable'")
    return TrainSpec(**values)
